"""What a recipe says about its training data, and the same opened: a mixture of datasets, each with its task.

A dataset is a file of training examples, or queries with the TREC runs of teachers. Its task decides whether other
queries' documents are negatives, how many queries make a batch and how many documents a query brings (bge-en-icl, arXiv
2409.15700, sections 3.2 and 4.1). A batch holds queries of one dataset.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from drama_models.collection import Collection
from drama_models.errors import CollectionError, RecipeError
from training.data.documents import TextStore
from training.data.example_store import ExampleStore
from training.data.rankings import RankedQueries, open_run
from training.data.score_fusion import fuse
from training.data.supervision import RankWindows, Supervision, Teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.data.pools import LabelSource

BATCH_SIZE, NEGATIVES = 2048, 7  # DRAMA 0.1B, arXiv 2502.18460, section 4.2


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a dataset's pairs of texts are, and what follows for its batches."""

    name: str
    """One of `TASKS`."""
    in_batch_negatives: bool = True
    """Whether the documents of other queries are negatives; where rows share labels they would be false ones."""
    symmetric: bool = False
    """Whether both sides are texts of one kind: such batches have half the queries."""
    instruction: str = ""
    """What the query side asks for, for prompts that say it."""
    use_examples: bool = True
    """Whether queries may carry solved examples from their batch (in-context training)."""

    def batch_size(self, default: int) -> int:
        """Queries of a batch, where `default` is that of retrieval."""
        return max(default // 2, 1) if self.symmetric else default

    def group_size(self, default: int, available_negatives: int) -> int:
        """Documents of a query: the positive and its negatives.

        Args:
            default: group size of the recipe.
            available_negatives: of the dataset's first query.
        """
        if self.name == "only_1neg":
            return 2
        return min(available_negatives + 1, default) if self.name == "classification" else default


TASKS = {
    task.name: task
    for task in (
        Task(name="retrieval"),
        Task(name="only_1neg"),
        Task(name="sts", in_batch_negatives=False, symmetric=True),
        Task(name="clustering", in_batch_negatives=False, symmetric=True),
        Task(name="classification", in_batch_negatives=False, symmetric=True),
    )
}
BGE_TYPES = {
    "normal": "retrieval",
    "symmetric_sts": "sts",
    "symmetric_clustering": "clustering",
    "symmetric_class": "classification",
}
"""Names of the same in FlagEmbedding's data files."""


def task_named(name: str) -> Task:
    """The task of that name, ours or FlagEmbedding's.

    Raises:
        RecipeError: there is none.
    """
    known = BGE_TYPES.get(name, name)
    if known not in TASKS:
        raise RecipeError(f"task={name!r} is none; choose one of {', '.join(TASKS)}.")
    return TASKS[known]


@dataclass(frozen=True, kw_only=True)
class DatasetRecipe:
    """One dataset of a mixture: `examples`, or `queries` with `teachers`."""

    name: str
    """For logs, and for the draws: renaming a dataset draws anew."""
    task: str = ""
    """retrieval, only_1neg, sts, clustering or classification."""
    collection: Path
    """BEIR folder with the documents."""
    examples: Path | None = None
    """Training examples, JSON lines."""
    queries: Path | None = None
    """JSON lines of `_id` and `text`, for the teachers' runs; the collection's by default."""
    teachers: list[Teacher] = field(default_factory=list)
    """Whose ranked lists are the labels, in the order of progressive supervision."""
    supervision: Supervision = field(default_factory=Supervision)
    """Whose lists count, and when."""
    windows: RankWindows = field(default_factory=RankWindows)
    """Ranks of positives and hard negatives. DRAMA's crops and generated queries: 1-10 and 31-50."""
    weight: float | None = None
    """Share of the queries seen in training, as 2:1:1; set it for all datasets or for none. By size by default."""
    batch_size: int | None = None
    """Queries of a step over all devices; by the task from the run's by default."""
    negatives: int | None = None
    """Hard negatives of a query; by the task from the run's by default."""
    in_batch_negatives: bool | None = None
    """Whether other queries' documents are negatives; by the task (retrieval only) by default."""
    shared_documents: bool = False
    """Whether lists of a batch may share documents, as listwise distillation needs for whole lists; with in-batch
    negatives set `objective.contrastive.false_negatives` too, which knows copies of a positive."""
    too_few_negatives: Literal["pad", "repeat"] = "pad"
    """Queries with fewer negatives: fill up with absent documents (DRAGON), or repeat their own (bge-en-icl)."""
    instruction: str = ""
    """What the query side asks for, for prompts that say it."""
    use_examples: bool = True
    """Whether queries may carry solved examples from their batch."""
    title_separator: str | None = None
    """Between title and text, as it is; the encoder's by default."""

    def __post_init__(self) -> None:
        where = f"Dataset {self.name!r}"
        if not self.task:
            raise ValueError(f"{where} has no task; set task to one of {', '.join(TASKS)}.")
        if BGE_TYPES.get(self.task, self.task) not in TASKS:
            raise ValueError(f"{where} has task={self.task!r}, which is none; choose one of {', '.join(TASKS)}.")
        if (self.examples is None) == (not self.teachers):
            raise ValueError(f"{where} must have either examples or teachers; set one of them.")
        if self.examples is not None and self.queries is not None:
            raise ValueError(f"{where} has examples, which carry their queries; drop queries.")
        if self.supervision.kind == "single" and len(self.teachers) > 1:
            raise ValueError(f"{where} has {len(self.teachers)} teachers; keep one, or set another supervision.kind.")
        if len({teacher.name for teacher in self.teachers}) < len(self.teachers):
            raise ValueError(f"{where} has two teachers of one name; give each its own.")
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ValueError(f"{where} has weight={self.weight}; it must be positive, or drop the dataset.")
        if (self.batch_size or 1) < 1 or (self.negatives or 0) < 0:
            raise ValueError(
                f"{where} has batch_size={self.batch_size}, negatives={self.negatives}; they must be at least 1 and 0."
            )

    def resolved_task(self) -> Task:
        """The task with this dataset's settings."""
        task = task_named(self.task)
        in_batch = task.in_batch_negatives if self.in_batch_negatives is None else self.in_batch_negatives
        return replace(task, in_batch_negatives=in_batch, instruction=self.instruction, use_examples=self.use_examples)


@dataclass(frozen=True, kw_only=True)
class TrainingDataset:
    """A dataset opened: its labels and documents on disk, and the size of its batches."""

    name: str
    task: Task
    labels: LabelSource
    """Queries by row, with label pools."""
    documents: TextStore
    batch_size: int
    """Queries of a global batch."""
    group_size: int
    """Documents of a query: its positive and negatives."""
    source: Path | None = None
    """File of its queries, for messages."""
    fewest_documents: int = 1
    """Documents without which a query is not taken into a batch: two for a listwise objective."""
    supervision: Supervision = field(default_factory=Supervision)
    teachers: int = 1
    weight: float | None = None
    shared_documents: bool = False
    repeat_negatives: bool = False
    title_separator: str = " "

    def __post_init__(self) -> None:
        if self.batch_size > len(self):
            where = f" in {self.source}" if self.source else ""
            raise CollectionError(
                f"Dataset {self.name!r} has {len(self):,} queries{where}, fewer than its batch of "
                f"{self.batch_size:,}; set a smaller batch_size, or add data."
            )
        if self.group_size < max(self.fewest_documents, 1 if self.task.in_batch_negatives else 2):
            why = "its task has no other negatives" if self.fewest_documents < 2 else "a list of one teaches nothing"
            raise CollectionError(
                f"Dataset {self.name!r} brings a positive without hard negatives for each query, and {why}; "
                "set negatives to at least 1, and give its first query one."
            )

    def __len__(self) -> int:
        """Queries."""
        return len(self.labels)

    @property
    def key(self) -> int:
        """Tells the draws of one dataset from those of another."""
        return zlib.crc32(self.name.encode())

    @property
    def batches_per_epoch(self) -> int:
        """Full batches; what is left over comes up in another epoch's order."""
        return len(self) // self.batch_size


def open_datasets(
    recipes: Sequence[DatasetRecipe],
    *,
    batch_size: int = BATCH_SIZE,
    negatives: int = NEGATIVES,
    cache: Path | None = None,
    lists: bool = False,
    title_separator: str = " ",
) -> list[TrainingDataset]:
    """Open every dataset of a mixture; caches are built where they are missing or stale.

    Args:
        recipes: of the datasets.
        batch_size: queries of a global batch of retrieval, where a dataset does not say.
        negatives: hard negatives of a query, where a dataset does not say.
        cache: folder for the caches; `.cache` in each collection by default.
        lists: whether every query needs a list of scored documents, for a listwise objective.
        title_separator: between title and text, where a dataset does not say.

    Raises:
        RecipeError: no dataset, two of one name, or weights for some only.
        CollectionError: a malformed or empty file, unknown ids, a batch larger than a dataset, or a list that cannot
            teach where lists are needed.
    """
    names = [recipe.name for recipe in recipes]
    if not names:
        raise RecipeError("The mixture has no datasets; add at least one to `datasets`.")
    if len(set(names)) < len(names):
        raise RecipeError(f"Two datasets have one name among {', '.join(names)}; give each its own.")
    weighted = [recipe.name for recipe in recipes if recipe.weight is not None]
    if len(weighted) not in (0, len(recipes)):
        without = ", ".join(name for name in names if name not in weighted)
        raise RecipeError(f"{', '.join(weighted)} have a weight, {without} have none; set it for all or for none.")
    opened = [_open(recipe, batch_size, negatives, cache, lists) for recipe in recipes]
    own = [title_separator if recipe.title_separator is None else recipe.title_separator for recipe in recipes]
    return [replace(dataset, title_separator=each) for dataset, each in zip(opened, own, strict=True)]


def _open(recipe: DatasetRecipe, batch_size: int, negatives: int, cache: Path | None, lists: bool) -> TrainingDataset:
    collection = Collection(recipe.collection)
    cache = recipe.collection / ".cache" if cache is None else cache
    documents = TextStore(collection.corpus_file, cache)
    labels: LabelSource
    if recipe.examples is not None:
        labels = ExampleStore(recipe.examples, documents, cache)
    else:
        labels = _ranked_queries(recipe, collection, documents, cache)
    if lists:
        labels.check_lists()
    task = recipe.resolved_task()
    first = labels.pools(np.zeros(1, np.int64), max(len(recipe.teachers), 1))
    group = task.group_size(1 + negatives, len(first.negatives[0]))
    return TrainingDataset(
        name=recipe.name,
        task=task,
        labels=labels,
        documents=documents,
        batch_size=task.batch_size(batch_size) if recipe.batch_size is None else recipe.batch_size,
        group_size=group if recipe.negatives is None else 1 + recipe.negatives,
        source=recipe.examples or recipe.queries or collection.queries_file,
        fewest_documents=2 if lists else 1,
        supervision=recipe.supervision,
        teachers=1 if recipe.supervision.kind == "fused" else max(len(recipe.teachers), 1),
        weight=recipe.weight,
        shared_documents=recipe.shared_documents,
        repeat_negatives=recipe.too_few_negatives == "repeat",
    )


def _ranked_queries(recipe: DatasetRecipe, collection: Collection, documents: TextStore, cache: Path) -> RankedQueries:
    queries = TextStore(recipe.queries or collection.queries_file, cache)
    teachers = [open_run(teacher.run, queries, documents, cache) for teacher in recipe.teachers]
    windows = [teacher.windows or recipe.windows for teacher in recipe.teachers]
    if recipe.supervision.kind == "fused":
        weights = [teacher.weight for teacher in recipe.teachers]
        normalisation = recipe.supervision.normalisation
        teachers = [fuse(teachers, weights, queries, cache, normalisation=normalisation)]
        windows = [recipe.windows]
    return RankedQueries(queries, teachers, windows, recipe.supervision, cache)
