"""What a specialisation found out: all that its report shows, as plain values, kept in `findings.json`.

Nothing is computed here. Stages fill these classes; `report.html` is written from them and from nothing else, so a
report can be made anew, or differently, without running anything.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from drama_models.errors import CollectionError
from drama_models.folders import atomic_file

FILE_NAME = "findings.json"
SAMPLE = 20
"""Queries of each kind that are kept for reading."""
WORST = 10
"""Queries shown with what was found instead."""

SIGNIFICANT = 0.05
"""p below which a change is taken for one."""

Value = TypeVar("Value")
Choice = Literal["new", "old"]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What the documents became."""

    documents: int
    """Documents with text in them."""
    passages: int
    """Passages that are searched, after de-duplication."""
    duplicates: int
    """Passages taken away since another one contains them."""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Names of files without text, by reason."""
    split: dict[str, int] = field(default_factory=dict)
    """Documents of `train`, `dev` and `test`: all queries of a document are in its part."""


@dataclass(frozen=True, kw_only=True)
class SampleQuery:
    """A made query beside its passage."""

    query: str
    passage_id: str
    passage: str
    """The passage's first characters."""


@dataclass(frozen=True, kw_only=True)
class QueryKind:
    """What was made of one kind of query."""

    kind: str
    """crop, title, heading, question, or a kind that a large model writes, such as claim."""
    source: str
    """`found` in the documents, or `generate`d by a large model."""
    train: int
    """Queries of documents that are trained on, before the filters."""
    kept: int
    """Of these, how many passed the filters: the training examples."""
    dev: int
    """Queries that chose the checkpoint."""
    test: int
    """Queries of held-out documents, for the figures before and after."""
    samples: list[SampleQuery]
    """Up to twenty of all that were made, drawn with the run's seed."""


@dataclass(frozen=True, kw_only=True)
class DroppedQuery:
    """A query that a filter dropped."""

    query_id: str
    query: str
    kind: str
    own: str
    """Id of the passage it was made from."""
    own_text: str
    instead: str | None
    """Id of the passage that stood first, where the filter looks at that."""
    instead_text: str | None


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What one filter did."""

    name: str
    kept: int
    dropped: int
    samples: list[DroppedQuery]
    """Up to twenty of the dropped."""


@dataclass(frozen=True, kw_only=True)
class RankerQuality:
    """How well one of those that rank does on the dev queries; a teacher should be better than the model it teaches."""

    name: str
    role: Literal["model", "retriever", "teacher", "labels"]
    """The model before training; a retriever that only gives candidates; a teacher; what was learned: the labels."""
    queries: int
    ndcg_at_10: float


@dataclass(frozen=True, kw_only=True)
class Change:
    """A metric before and after, on the same queries and passages; values in [0, 1]."""

    metric: str
    """ndcg@10 or recall@100."""
    before: float
    after: float
    low: float
    """Lower end of the 95% confidence interval of after - before."""
    high: float
    p: float
    """Two-sided, of a paired randomisation test over documents (over queries, where each stands for itself)."""

    @property
    def difference(self) -> float:
        """After - before."""
        return self.after - self.before

    @property
    def significant(self) -> bool:
        """Whether p is below 0.05."""
        return self.p < SIGNIFICANT


@dataclass(frozen=True, kw_only=True)
class KindChange:
    """nDCG@10 before and after on the test queries of one kind."""

    kind: str
    queries: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class DimChange:
    """nDCG@10 before and after with embeddings cut to a Matryoshka size."""

    dim: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class QueryScore:
    """nDCG@10 of one test query."""

    query_id: str
    query: str
    kind: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class ShownPassage:
    """A passage in the report."""

    id: str
    text: str
    """Its first characters, title in front."""
    relevant: bool


@dataclass(frozen=True, kw_only=True)
class WorstQuery:
    """A test query on which the new retriever does badly."""

    query_id: str
    query: str
    kind: str
    before: float
    after: float
    expected: list[ShownPassage]
    """What should have been found (at most three)."""
    found: list[ShownPassage]
    """What the new retriever finds first (three)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Before and after on one set of queries, over all passages."""

    name: Literal["held-out queries", "your queries"]
    """Queries made from documents that were not trained on, or those the user judged."""
    queries: int
    groups: int
    """Documents that the queries come from, which the test and the interval are drawn over; the user's queries are each
    a group of their own."""
    changes: list[Change]
    """nDCG@10 first, then Recall@100; all dimensions of the embedding."""
    by_kind: list[KindChange]
    by_dim: list[DimChange]
    """Largest first; the full size alone where the model knows no others."""
    scores: list[QueryScore]
    """Of every query."""
    worst: list[WorstQuery]
    """The ten with the lowest nDCG@10 after training, the largest losses first among equals; none that is perfect."""

    def change(self, metric: str) -> Change:
        """The change of a metric; ValueError where it was not measured."""
        for change in self.changes:
            if change.metric == metric:
                return change
        raise ValueError(f"{metric!r} is not among {[change.metric for change in self.changes]}.")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a run found out."""

    model: str
    """The model that was specialised, as it was given."""
    retriever: str
    """The folder that was made."""
    recommended: Choice
    """`new` or `old`; see `reason`."""
    recommended_folder: str
    """The one of `model` and `retriever` that should be used."""
    reason: str
    """A sentence that says why."""
    warnings: list[str]
    """Sentences that a reader should see before any figure."""
    corpus: Corpus
    kinds: list[QueryKind]
    filters: list[Filter]
    rankers: list[RankerQuality]
    labels_from: str
    """Who gave the scores that were learned."""
    evaluations: list[Evaluation]
    """On held-out queries; then on the user's, where there are any."""
    training: dict[str, Any]
    """Examples, steps, best step and its nDCG@10 on the dev queries."""
    large_model: dict[str, Any]
    """Answers, tokens and cost of the large model; empty without one."""
    settings: dict[str, Any]
    """The run's recipe."""
    versions: dict[str, str]
    """Of the packages that shape results."""
    times: dict[str, float]
    """Seconds of each stage, over all attempts of a run that was interrupted."""
    export_command: str
    """What makes a release of the new retriever."""

    def save(self, path: str | Path) -> None:
        """Write the findings as JSON, complete or not at all."""
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Findings:
        """Read what `save` wrote.

        Raises:
            CollectionError: there is no such file, or it is not one of findings.
        """
        if not Path(path).is_file():
            raise CollectionError(f"There are no findings at {path}; `python -m training specialise` makes them.")
        try:
            return _read(cls, json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CollectionError(
                f"{path} is not a file of findings ({error}); make it again with `python -m training specialise`."
            ) from None


def _read(kind: type[Value], value: Any) -> Value:
    """A value of JSON as the type that a field says: dataclasses, and lists of them."""
    if get_origin(kind) is list:
        (inner,) = get_args(kind)
        return [_read(inner, item) for item in value]  # type: ignore[return-value]
    if not is_dataclass(kind):
        return value
    hints = get_type_hints(kind)
    return kind(**{each.name: _read(hints[each.name], value[each.name]) for each in fields(kind)})
