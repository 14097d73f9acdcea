"""Which queries are worth training on, and the scores that they are trained with.

A query stays if its own passage is among the first the retriever finds, the teacher ranks it first of a full list, and
its score is no outlier at the bottom. Scores are then brought to [0, 1] by the 1st and 99th percentile of their group,
clipped. Each filter says how many it dropped and keeps a sample for reading: that is how a bad prompt is noticed.

Tamber et al., 2025, https://arxiv.org/abs/2502.19712, section 3 (the 25th percentile is in their scripts alone);
positive-aware threshold as in NV-Retriever, https://arxiv.org/abs/2407.15831.
"""

from __future__ import annotations

import json
import random
import sys
from array import array
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.collection import Collection
from drama_models.errors import CollectionError
from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance
from training.augment.runs import stream_run
from training.data.examples import TrainingExample, read_examples, write_examples

if TYPE_CHECKING:
    from collections.abc import Collection as Container
    from collections.abc import Iterable, Iterator

    from numpy.typing import ArrayLike

    from training.augment.runs import Hits

SAMPLE = 20
SHOWN_CHARACTERS = 300
LOW, WEAK, HIGH = 1, 25, 99  # percentiles


@dataclass(frozen=True, kw_only=True)
class FilterRecipe:
    """Settings of filtering."""

    collection: Path
    """Collection of passages (BEIR folder), for the texts of the samples."""
    examples: Path
    """Training examples; the first positive of each is the passage that its query was made from."""
    teacher_run: Path
    """TREC run with the teacher's scores, such as `rerank` makes."""
    out: Path
    """Folder to make: examples.jsonl with lists and scores, report.json with counts and samples."""
    retriever_run: Path | None = None
    """TREC run of the retriever that is to be trained; without it that filter is left out."""
    removed: Path | None = None
    """File of ids, one a line, of passages to leave out everywhere: duplicates, held-out ones."""
    top_k: int = 20
    """The query's own passage must be among so many of the retriever's first."""
    length: int = 20
    """Passages of each list, positive included; a shorter list drops its query."""
    drop_weak: bool = True
    """Drop queries whose own passage scores below the 25th percentile of all scores."""
    threshold: float | None = None
    """Negatives that score above this share of the positive are left out, such as 0.6; none by default."""
    seed: int = 42
    """Decides which dropped queries are kept for reading."""

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.length < 2 or (self.threshold is not None and not 0 < self.threshold <= 1):
            raise ValueError(
                f"top_k={self.top_k} must be positive, length={self.length} at least 2 and threshold={self.threshold} "
                "between 0 and 1; try top_k=20, length=20, threshold=0.6."
            )


@dataclass(frozen=True)
class Percentiles:
    """Of all scores of a group of queries."""

    low: float
    weak: float
    high: float

    @classmethod
    def of(cls, scores: ArrayLike) -> Percentiles:
        """The 1st, 25th and 99th percentile, interpolated linearly; at least one score."""
        return cls(*(float(value) for value in np.percentile(np.asarray(scores), [LOW, WEAK, HIGH])))

    def normalised(self, score: float) -> float:
        """The score's place between the 1st and the 99th percentile, clipped to [0, 1]."""
        if self.high <= self.low:
            return 1.0
        return min(max((score - self.low) / (self.high - self.low), 0.0), 1.0)


@dataclass
class Dropped:
    """What one filter did."""

    name: str
    kept: int = 0
    dropped: int = 0
    sample: list[dict[str, Any]] = field(default_factory=list)
    """Twenty of the dropped, drawn uniformly."""

    def drop(self, record: dict[str, Any], draw: random.Random) -> None:
        """Count a dropped record, and keep it for reading with the right chance (reservoir sampling)."""
        self.dropped += 1
        if len(self.sample) < SAMPLE:
            self.sample.append(record)
        elif (place := draw.randrange(self.dropped)) < SAMPLE:
            self.sample[place] = record


def found_by_retriever(
    source: str, ranked: Iterable[str], top_k: int, removed: Container[str] = ()
) -> list[str] | None:
    """A query's list without removed passages, or None where its own passage is not among the first `top_k` then.

    Args:
        source: id of the passage that the query was made from; a removed one drops the query.
        ranked: ids as found, best first.
        top_k: ranks are counted after the removal.
        removed: ids of duplicates and held-out passages.
    """
    kept = [key for key in ranked if key not in removed]
    return kept if source not in removed and source in kept[:top_k] else None


def first_of_full_list(source: str, hits: Hits, length: int) -> bool:
    """Whether the teacher ranks the query's own passage first, in a list of at least `length`."""
    return len(hits) >= length and hits[0][0] == source


def without_false_negatives(hits: Hits, threshold: float) -> Hits:
    """The positive, which comes first, and the hits that do not score above `threshold` times its score.

    Args:
        hits: scores in [0, 1].
        threshold: share of the positive's score; a negative at exactly this share stays.
    """
    most = threshold * hits[0][1]
    most += 4 * sys.float_info.epsilon * abs(most)  # so that rounding does not lose one at exactly this share
    return hits[:1] + [hit for hit in hits[1:] if hit[1] <= most]


def filter_examples(recipe: FilterRecipe) -> dict[str, Any]:
    """Write the examples that pass all filters; returns the provenance record.

    Raises:
        CollectionError: a malformed file, or no query that passes.
    """
    filtering = _Filtering(recipe)
    filtering.keep_found()
    filtering.collect_scores()
    with atomic_folder(recipe.out) as partial:
        count = write_examples(partial / "examples.jsonl", filtering.passed())
        if not count:
            drops = ", ".join(f"{each.name} dropped {each.dropped:,}" for each in filtering.filters)
            raise CollectionError(
                f"No query of {recipe.examples} passed the filters ({drops}); check that the runs belong to these "
                "examples, or raise top_k."
            )
        report = filtering.report(Collection(recipe.collection))
        (partial / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        figures = {each.name: {"kept": each.kept, "dropped": each.dropped} for each in filtering.filters}
        return write_provenance(
            partial, stage="training.filter", recipe=recipe, inputs={}, figures=figures | {"examples": count}
        )


class _Filtering:
    """The state of one call: the examples that are left, and what each filter dropped."""

    def __init__(self, recipe: FilterRecipe) -> None:
        self.recipe = recipe
        self.examples = {example.query_id: example for example in read_examples(recipe.examples)}
        self.removed = _read_ids(recipe.removed) if recipe.removed else set()
        self.filters: list[Dropped] = []
        self.groups: dict[str, Percentiles] = {}
        self._draw = random.Random(recipe.seed)  # noqa: S311

    def keep_found(self) -> None:
        """Drop queries whose own passage the retriever does not find."""
        if self.recipe.retriever_run is None:
            return
        lists = ((key, [document for document, _ in hits]) for key, hits in stream_run(self.recipe.retriever_run))
        found = {}
        for key, ranked in lists:
            example = self.examples.get(key)
            if example is not None:
                kept = found_by_retriever(example.positive_ids[0], ranked, self.recipe.top_k, self.removed)
                found[key] = (kept is not None, next(iter(ranked), None))
        step = self._filter("found by the retriever")
        for key, example in list(self.examples.items()):
            passed, first = found.get(key, (False, None))
            self._judge(step, example, passed=passed, first=first)

    def collect_scores(self) -> None:
        """Drop queries whose own passage is not the teacher's first, and take each group's percentiles."""
        step = self._filter("first of a full list after reranking")
        scores: dict[str, array[float]] = defaultdict(lambda: array("d"))
        seen = set()
        for example, hits in self._teacher_lists():
            seen.add(example.query_id)
            passed = first_of_full_list(example.positive_ids[0], hits, self.recipe.length)
            self._judge(step, example, passed=passed, first=hits[0][0] if hits else None)
            if passed:
                scores[example.task].extend(score for _, score in hits)
        for key, example in list(self.examples.items()):
            if key not in seen:
                self._judge(step, example, passed=False, first=None)
        self.groups = {task: Percentiles.of(values) for task, values in scores.items()}

    def passed(self) -> Iterator[TrainingExample]:
        """Examples with their lists and normalised scores, in the order of the teacher's run."""
        weak = self._filter("not weak: own passage above the 25th percentile") if self.recipe.drop_weak else None
        false_negatives = (
            self._filter("negatives: below the positive-aware threshold") if self.recipe.threshold else None
        )
        for example, hits in self._teacher_lists():
            group = self.groups[example.task]
            if weak is not None and not self._judge(weak, example, passed=hits[0][1] >= group.weak, first=None):
                continue
            scored = [(key, group.normalised(score)) for key, score in hits[: self.recipe.length]]
            if false_negatives is not None and self.recipe.threshold is not None:
                kept = without_false_negatives(scored, self.recipe.threshold)
                false_negatives.kept += len(kept) - 1
                for key, score in scored:
                    if (key, score) not in kept:
                        false_negatives.drop(_record(example, key) | {"score": score}, self._draw)
                scored = kept
            yield replace(
                example,
                negative_ids=[key for key, _ in scored[1:]],
                scores=dict(scored),
                teacher=self.recipe.teacher_run.name,
            )

    def report(self, collection: Collection) -> dict[str, Any]:
        """Counts and samples of all filters, the passages' texts beside their ids."""
        samples = [record for each in self.filters for record in each.sample]
        wanted = {record[role] for record in samples for role in ("own", "instead") if record[role]}
        texts = {
            document.id: document.content[:SHOWN_CHARACTERS]
            for document in collection.documents()
            if document.id in wanted
        }
        for record in samples:
            record |= {f"{role}_text": texts.get(record[role]) for role in ("own", "instead")}
        return {
            "filters": [asdict(each) for each in self.filters],
            "percentiles": {task: asdict(values) for task, values in self.groups.items()},
        }

    def _teacher_lists(self) -> Iterator[tuple[TrainingExample, Hits]]:
        """The teacher's lists of the examples that are left, without removed passages."""
        for key, hits in stream_run(self.recipe.teacher_run):
            example = self.examples.get(key)
            if example is not None:
                yield example, [hit for hit in hits if hit[0] not in self.removed]

    def _filter(self, name: str) -> Dropped:
        self.filters.append(Dropped(name))
        return self.filters[-1]

    def _judge(self, step: Dropped, example: TrainingExample, *, passed: bool, first: str | None) -> bool:
        if passed:
            step.kept += 1
        else:
            step.drop(_record(example, first), self._draw)
            del self.examples[example.query_id]
        return passed


def _record(example: TrainingExample, instead: str | None) -> dict[str, Any]:
    return {
        "query_id": example.query_id,
        "query": example.query,
        "task": example.task,
        "own": example.positive_ids[0],
        "instead": instead,
    }


def _read_ids(path: Path) -> set[str]:
    if not path.is_file():
        raise CollectionError(f"There is no file of ids at {path}; pass one with an id on each line.")
    ids = set()
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            ids.add(line.rstrip(b"\r").decode())
        except UnicodeDecodeError:
            raise CollectionError(f"{path}, line {number}: not text in UTF-8; save the file as such.") from None
    return ids - {""}
