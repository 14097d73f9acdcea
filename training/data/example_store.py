"""Training examples on disk with their documents resolved to rows: what a run over 25 million of them reads.

The JSON lines are read once, in constant memory, into Arrow shards beside the collection's cache; ids that the
collection does not have are found then, not after hours of training.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from drama_models.errors import CollectionError
from drama_models.surrogates import storable
from training.data.documents import cache_name, content_hash, json_lines
from training.data.examples import parse_example
from training.data.mapped import MappedArray
from training.data.pools import Pools
from training.data.shards import ShardedTable, build_shards, encoded_lines, line_of, source_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.documents import TextStore
    from training.data.examples import TrainingExample
    from training.data.shards import Block

SCHEMA = pa.schema(
    {
        "query_id": pa.large_string(),
        "query": pa.large_string(),
        "category": pa.large_string(),
        "query_hash": pa.uint64(),
        "positives": pa.large_list(pa.int64()),
        "negatives": pa.large_list(pa.int64()),
        "positive_scores": pa.large_list(pa.float32()),
        "negative_scores": pa.large_list(pa.float32()),
        "whole": pa.uint8(),
    }
)
FIRST_PARTIAL = "first_partial.json"


class ExampleStore:
    """The examples of one file, by row.

    Args:
        path: training examples, JSON lines, plain or `.gz`.
        documents: of the collection that they name.
        cache: folder for the shards, built on first use.

    Raises:
        CollectionError: no such file or an empty one, a malformed line, an example without a positive, a score that is
            not finite, a document that is both positive and negative, or an id that the collection does not have.
    """

    def __init__(self, path: Path, documents: TextStore, cache: Path) -> None:
        if not path.is_file():
            raise CollectionError(f"There are no training examples at {path}; pass the path of a JSON-lines file.")
        self.path, self._documents = path, documents
        folder = cache / cache_name("examples", path, documents.source)
        fingerprint = {
            "examples": source_fingerprint(path),
            "documents": documents.fingerprint,
            "columns": SCHEMA.names,
        }
        build_shards(folder, fingerprint, encoded_lines(path, self._encode), self._finish, source=path)
        self._table = ShardedTable(folder)
        self._query_hash = MappedArray(folder / "query_hash.u64", np.uint64)
        self._first_partial: int | None = json.loads((folder / FIRST_PARTIAL).read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self._table)

    def query_ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Id of each row's query."""
        return self._table.strings(["query_id"], rows)[0]

    def queries(self, rows: NDArray[np.int64]) -> list[str]:
        """Text of each row's query."""
        return self._table.strings(["query"], rows)[0]

    def categories(self, rows: NDArray[np.int64]) -> list[str]:
        """What each row's query belongs to; "" where it does not say."""
        return self._table.strings(["category"], rows)[0]

    def query_hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Equal where two queries have the same text, case and white space aside; shape of `rows`."""
        return self._query_hash.gather(rows)

    def pools(self, rows: NDArray[np.int64], iteration: int = 1, *key: int) -> Pools:  # noqa: ARG002
        """All labelled documents of each row; examples have one set of labels, so nothing is drawn."""
        names = ("positives", "negatives", "positive_scores", "negative_scores")
        return Pools(**dict(zip(names, self._table.lists(names, rows), strict=True)))

    def check_lists(self) -> None:
        """Whether every example has a list that can teach: at least one negative, and a score for every document.

        Raises:
            CollectionError: one has not.
        """
        if self._first_partial is None:
            return
        row = np.array([self._first_partial])
        pools = self.pools(row)
        scores = np.concatenate([pools.positive_scores[0], pools.negative_scores[0]])
        raise CollectionError(
            f"{self.path}, line {line_of(self.path, self._first_partial)}: query {self.query_ids(row)[0]!r} has "
            f"{len(pools.negatives[0])} negatives, and teacher scores for {np.isfinite(scores).sum()} of its "
            f"{len(scores)} documents; a list teaches with a score for each of at least two. Score it with the "
            "teacher, drop the line, or set unscored: skip."
        )

    def _encode(self, block: Block) -> pa.RecordBatch:
        lines = [line for line, _ in block.lines]
        examples = [parse_example(record, self.path, line) for line, record in json_lines(self.path, block)]
        columns: dict[str, Any] = {
            "query_id": [storable(example.query_id) for example in examples],
            "query": [storable(example.query) for example in examples],
            "category": [storable(example.category) for example in examples],
            "query_hash": [content_hash(example.query) for example in examples],
            "positives": self._rows(examples, lines, "positive_ids"),
            "negatives": self._rows(examples, lines, "negative_ids"),
            "positive_scores": [_scores(example, example.positive_ids) for example in examples],
            "negative_scores": [_scores(example, example.negative_ids) for example in examples],
            "whole": [int(_is_whole(example)) for example in examples],
        }
        for line, example in zip(lines, examples, strict=True):
            if both := set(example.positive_ids).intersection(example.negative_ids):
                key = min(both)
                raise CollectionError(
                    f"{self.path}, line {line}: document {key!r} is both a positive and a negative; drop it from one."
                )
        return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)

    def _rows(self, examples: list[TrainingExample], lines: list[int], name: str) -> list[NDArray[np.int64]]:
        lists: list[list[str]] = [getattr(example, name) for example in examples]
        rows = self._documents.rows([key for ids in lists for key in ids])
        ends = np.cumsum([len(ids) for ids in lists])
        if (rows < 0).any():
            place = int(np.argmax(rows < 0))
            example = int(np.searchsorted(ends, place, side="right"))
            key = lists[example][place - (int(ends[example]) - len(lists[example]))]
            raise CollectionError(
                f"{self.path}, line {lines[example]}: document {key!r} is not in {self._documents.source}; "
                "use examples made on this collection."
            )
        return np.split(rows, ends[:-1])

    def _finish(self, folder: Path, table: ShardedTable) -> None:
        table.write_column("query_hash", folder / "query_hash.u64")
        first, row = 0, None
        for whole in table.blocks("whole"):
            if not whole.all():
                row = first + int(np.argmin(whole))
                break
            first += len(whole)
        (folder / FIRST_PARTIAL).write_text(json.dumps(row), encoding="utf-8")


def _is_whole(example: TrainingExample) -> bool:
    """Whether the example's list has something to be compared with, and a score for all."""
    return bool(example.negative_ids) and example.scores.keys() >= {*example.positive_ids, *example.negative_ids}


def _scores(example: TrainingExample, ids: list[str]) -> list[float]:
    return [example.scores.get(key, math.nan) for key in ids] if example.scores else [math.nan] * len(ids)
