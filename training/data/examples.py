"""Training examples: JSON lines of ids; the text stays in the collection.

{"query_id", "query", "positive_ids": [...], "negative_ids": [...], "teacher", "scores": {id: score}, "task", "source"}

Clustering examples may also have a "category".
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.errors import CollectionError
from drama_models.folders import atomic_file
from drama_models.surrogates import storable_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


LARGEST_SCORE = 3.4e38  # of a float32, in which scores are kept


@dataclass(frozen=True, kw_only=True)
class TrainingExample:
    """One query with the documents that are labelled for it."""

    query_id: str
    """Id of the query."""
    query: str
    """Its text, without the prompt."""
    positive_ids: list[str]
    """Documents that answer it; at least one."""
    negative_ids: list[str] = field(default_factory=list)
    """Hard negatives, hardest first."""
    teacher: str = ""
    """What labelled it, such as a run's name."""
    scores: dict[str, float] = field(default_factory=dict)
    """The teacher's score of each document."""
    task: str = ""
    """Kind of retrieval, where one model learns several."""
    source: str = ""
    """Where the query came from: crop, found, generate or human."""
    category: str = ""
    """What a clustering query belongs to: answers it where it serves as an example for others."""


FIELDS = {each.name for each in fields(TrainingExample)}
REQUIRED_FIELDS = {
    each.name for each in fields(TrainingExample) if each.default is MISSING and each.default_factory is MISSING
}


def write_examples(path: str | Path, examples: Iterable[TrainingExample]) -> int:
    """Write examples, complete or not at all; returns their number."""
    count = 0
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for example in examples:
            file.write(example_line(example))
            count += 1
    return count


def example_line(example: TrainingExample) -> str:
    """An example as a line of its file; a category that it does not have is left out."""
    fields = {name: value for name, value in asdict(example).items() if value or name != "category"}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def read_examples(path: str | Path) -> Iterator[TrainingExample]:
    """Read examples one at a time; lone surrogates are read as U+FFFD.

    Raises:
        CollectionError: a missing file, a broken line, an unknown or missing field, or an example without a positive.
    """
    if not Path(path).is_file():
        raise CollectionError(f"There are no training examples at {path}; pass the path of a JSON-lines file.")
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = storable_json(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise CollectionError(_malformed(path, number, str(error))) from None
            yield parse_example(record, path, number)


def parse_example(record: Mapping[str, Any], path: str | Path, number: int) -> TrainingExample:
    """The example of one line of a file.

    Args:
        record: the line's object.
        path: of the file, for messages.
        number: of the line, counted from 1, for messages.

    Raises:
        CollectionError: an unknown or missing field, one of the wrong type, no positive, or a score that is no number.
    """
    if unknown := record.keys() - FIELDS:
        raise CollectionError(_malformed(path, number, f"unknown field {min(unknown)!r}"))
    if missing := REQUIRED_FIELDS - record.keys():
        raise CollectionError(_malformed(path, number, f"`{min(missing)}` is missing"))
    example = TrainingExample(**record)
    if not isinstance(example.query_id, str) or not isinstance(example.query, str):
        raise CollectionError(_malformed(path, number, "`query_id` and `query` must be strings"))
    if not isinstance(example.category, str):
        raise CollectionError(_malformed(path, number, "`category` must be a string"))
    for name, ids in (("positive_ids", example.positive_ids), ("negative_ids", example.negative_ids)):
        if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
            raise CollectionError(_malformed(path, number, f"`{name}` must be a list of strings"))
    if not example.positive_ids:
        raise CollectionError(
            f"{path}, line {number}: query {example.query_id!r} has no positive; provide one, or drop the line."
        )
    if not isinstance(example.scores, dict):
        raise CollectionError(_malformed(path, number, "`scores` must map document ids to numbers"))
    for key, score in example.scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= LARGEST_SCORE:
            raise CollectionError(
                f"{path}, line {number}: the score of document {key!r} is {score!r:.40}; it must be a finite number of "
                f"at most {LARGEST_SCORE:.1e}, leave out those that are unknown."
            )
    return example


def _malformed(path: str | Path, number: int, reason: str) -> str:
    return f"{path}, line {number}: not a training example ({reason}); see `TrainingExample` for its fields."
