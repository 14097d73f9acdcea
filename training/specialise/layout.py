"""Where a specialisation keeps what: results at the top of its folder, everything in between below `work/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def settings(self) -> Path:
        """The settings that the folder was made with."""
        return self.root / "settings.json"

    @property
    def passages(self) -> Path:
        """Collection of all passages, titles and all: what is indexed with the retriever."""
        return self.root / "passages"

    @property
    def collection(self) -> Path:
        """Collection that is trained on: passages without titles and found questions, and the held-out queries."""
        return self.root / "collection"

    @property
    def examples(self) -> Path:
        """Folder of the filters: the training examples, and what was dropped."""
        return self.root / "examples"

    @property
    def retriever(self) -> Path:
        """The new retriever."""
        return self.root / "retriever"

    @property
    def report(self) -> Path:
        """The report, for people."""
        return self.root / "report.html"

    @property
    def answers(self) -> Path:
        """Answers of the large model, which were paid for."""
        return self.root / "answers"

    @property
    def work(self) -> Path:
        """What lies between documents and results; may be removed, and is then made anew."""
        return self.root / "work"

    @property
    def found(self) -> Path:
        """Passages without titles and questions, and the queries that were found."""
        return self.work / "found"

    @property
    def asked(self) -> Path:
        """The drawn passages that queries are made of, where there are too many."""
        return self.work / "asked"

    @property
    def queries(self) -> Path:
        """Made queries of dev, then of train: what is searched for lists."""
        return self.work / "queries.jsonl"

    @property
    def train(self) -> Path:
        """Made queries of the documents that are trained on, before the filters."""
        return self.work / "train.jsonl"

    @property
    def left_out(self) -> Path:
        """Made queries that were left out before mining, with the reason."""
        return self.work / "left_out.json"

    @property
    def kinds(self) -> Path:
        """The kind of each held-out query."""
        return self.work / "kinds.json"

    @property
    def dev(self) -> Path:
        """Collection that chooses the checkpoint."""
        return self.work / "dev"

    @property
    def vectors(self) -> Path:
        """Vectors of passages, a folder for each model."""
        return self.work / "vectors"

    @property
    def scores(self) -> Path:
        """Scores of a cross-encoder, by the texts that were scored."""
        return self.work / "scores"

    def run(self, name: str) -> Path:
        """Lists of one ranker for the made queries."""
        return self.work / "runs" / f"{name}.run"

    def evaluation(self, queries: str, which: str) -> Path:
        """What was found before or after training, for one set of queries."""
        return self.root / "runs" / f"{queries}-{which}.run"
