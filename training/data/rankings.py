"""Teachers' TREC runs as memory-mapped lists: query to ranked document rows with scores.

Any system's output can be a teacher. Lists are ordered by score, ties as in the file; the rank column is not read. A
run may lack queries: those without a hit from any teacher are left out of training, as in DRAGON (arXiv 2302.07452).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from drama_models.errors import CollectionError
from drama_models.folders import atomic_file
from training.data.documents import cache_name, shown
from training.data.draws import draw_below
from training.data.examples import LARGEST_SCORE
from training.data.mapped import MappedArray
from training.data.pools import Pools
from training.data.shards import ShardedTable, build_shards, encoded_lines, source_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.documents import TextStore
    from training.data.shards import Block
    from training.data.supervision import RankWindows, Supervision

SCHEMA = pa.schema(
    {
        "query": pa.int64(),
        "line": pa.int64(),
        "documents": pa.large_list(pa.int64()),
        "scores": pa.large_list(pa.float32()),
    }
)
QUERIES_PER_SCAN = 1 << 20  # of one array, written or looked through at a time


class Rankings:
    """The ranked lists of one teacher.

    Args:
        folder: made by `open_run`, or by `training.data.score_fusion.fuse`.
        fingerprint: of what it was made from.
        source: the run; None for fused lists, which have no lines.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], source: Path | None = None) -> None:
        self.folder, self.fingerprint, self.source = folder, fingerprint, source
        self._table = ShardedTable(folder)
        self._list_of_query = MappedArray(folder / "list_of_query.i64", np.int64)

    def __len__(self) -> int:
        return len(self._table)

    def covers(self, queries: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether there is a list for each of these query rows."""
        return self._list_of_query.gather(queries) >= 0

    def ranked(
        self, queries: NDArray[np.int64], first: int = 0, last: int | None = None
    ) -> tuple[list[NDArray[np.int64]], list[NDArray[Any]]]:
        """Documents and scores at ranks `first` (counted from 0) to `last` (exclusive) of each query's list."""
        lists = self._list_of_query.gather(queries)
        documents, scores = self._table.lists(("documents", "scores"), lists, first, last)
        return documents, scores

    def first_shorter(self, length: int) -> tuple[int, int, int] | None:
        """Query row, line in the run and length of the first list that is shorter; None if none is."""
        columns = (self._table.lengths("documents"), self._table.blocks("query"), self._table.blocks("line"))
        for lengths, queries, lines in zip(*columns, strict=True):
            if (lengths < length).any():
                place = int(np.argmax(lengths < length))
                return int(queries[place]), int(lines[place]), int(lengths[place])
        return None

    def cover_some(self, number: int) -> NDArray[np.bool_]:
        """`covers` for the `QUERIES_PER_SCAN` query rows from `number` on."""
        return self._list_of_query.values[number : number + QUERIES_PER_SCAN] >= 0


def open_run(path: Path, queries: TextStore, documents: TextStore, cache: Path) -> Rankings:
    """The lists of a TREC run file; built on first use.

    Raises:
        CollectionError: no such file or an empty one, a malformed line, an unknown id, a score that is not finite, a
            document twice in one list, or a query whose lines are not together.
    """
    if not path.is_file():
        raise CollectionError(f"There is no run at {path}; pass a TREC run file of a teacher.")
    folder = cache / cache_name("run", path, queries.source, documents.source)
    fingerprint = {
        "run": source_fingerprint(path),
        "queries": queries.fingerprint,
        "documents": documents.fingerprint,
    }
    encode = _RunEncoder(path, queries, documents)
    shards = encoded_lines(path, encode, group=lambda line: line.split(None, 1)[0] if line.strip() else b"")
    build_shards(folder, fingerprint, shards, write_list_of_query(path, queries), source=path)
    return Rankings(folder, fingerprint, path)


class RankedQueries:
    """Queries with the labels of their teachers' lists.

    Args:
        queries: texts.
        teachers: their lists, in the order in which progressive supervision adds them; fused lists are one teacher.
        windows: ranks that count for each of them.
        supervision: whose lists count when.
        cache: folder for the list of queries with hits, built on first use.

    Raises:
        CollectionError: no query has a list.
    """

    def __init__(
        self,
        queries: TextStore,
        teachers: Sequence[Rankings],
        windows: Sequence[RankWindows],
        supervision: Supervision,
        cache: Path,
    ) -> None:
        self._queries, self.teachers, self._windows, self.supervision = queries, teachers, windows, supervision
        state = json.dumps([teacher.fingerprint for teacher in teachers])
        path = cache / f"{cache_name('queries', *(teacher.folder for teacher in teachers), settings=state)}.i64"
        if not path.is_file():
            with atomic_file(path) as partial, partial.open("wb") as file:
                for number in range(0, len(queries), QUERIES_PER_SCAN):
                    hit = np.logical_or.reduce([teacher.cover_some(number) for teacher in teachers])
                    file.write((np.flatnonzero(hit) + number).astype(np.int64).tobytes())
        self._rows = MappedArray(path, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def query_ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Id of each query."""
        return self._queries.ids(self._query_rows(rows))

    def queries(self, rows: NDArray[np.int64]) -> list[str]:
        """Text of each query, without a prompt."""
        return self._queries.contents(self._query_rows(rows))

    def categories(self, rows: NDArray[np.int64]) -> list[str]:
        """None: queries with ranked lists have no categories."""
        return [""] * len(rows)

    def query_hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Equal where two queries have the same text; shape of `rows`."""
        return self._queries.content_hashes(self._query_rows(rows))

    def check_lists(self) -> None:
        """Whether every list reaches into its window of hard negatives, so that it has two documents to compare.

        Raises:
            CollectionError: one does not.
        """
        for teacher, windows in zip(self.teachers, self._windows, strict=True):
            least = windows.k - windows.negatives + 1
            found = teacher.first_shorter(least)
            if found is None:
                continue
            query, line, length = found
            where = f"{teacher.source}, line {line}" if teacher.source else f"Fused lists of {self._queries.source}"
            raise CollectionError(
                f"{where}: the list of query {self._queries.ids(np.array([query]))[0]!r} ends at rank {length}, before "
                f"ranks {least} to {windows.k}, where windows look for hard negatives; a list teaches with at least "
                "two documents. Drop the query, set other windows, or set unscored: skip."
            )

    def pools(self, rows: NDArray[np.int64], iteration: int = 1, *key: int) -> Pools:
        """Labels from one active teacher a query, drawn uniformly among those that have a list for it.

        A query that no active teacher has hits for gets empty pools.
        """
        queries = self._query_rows(rows)
        active = list(self.supervision.active(len(self.teachers), iteration))
        covered = np.stack([self.teachers[number].covers(queries) for number in active])  # (teachers, queries)
        choices = covered.sum(axis=0)
        drawn = draw_below(np.maximum(choices, 1), *key, rows)
        chosen = np.argmax(np.cumsum(covered, axis=0) > drawn, axis=0)  # place of the drawn one among those that cover
        empty: NDArray[Any] = np.empty(0, np.int64)
        pools = Pools(**{name: [empty] * len(rows) for name in Pools.__dataclass_fields__})
        for place, number in enumerate(active):
            mine = np.flatnonzero((chosen == place) & (choices > 0))
            windows, teacher = self._windows[number], self.teachers[number]
            top = teacher.ranked(queries[mine], windows.top.start, windows.top.stop)
            end = teacher.ranked(queries[mine], windows.end.start, windows.end.stop)
            for index, *found in zip(mine.tolist(), *top, *end, strict=True):
                pools.positives[index], pools.positive_scores[index] = found[0], found[1]
                pools.negatives[index], pools.negative_scores[index] = found[2], found[3]
        return pools

    def _query_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._rows.gather(rows)


class _RunEncoder:
    """Lines of a run to lists of rows."""

    def __init__(self, path: Path, queries: TextStore, documents: TextStore) -> None:
        self.path, self.queries, self.documents = path, queries, documents

    def __call__(self, block: Block) -> pa.RecordBatch:
        fields = [self._fields(number, line) for number, line in block.lines]
        names, documents, scores = zip(*fields, strict=True)
        lines = [number for number, _ in block.lines]
        starts = [0, *(place for place in range(1, len(names)) if names[place] != names[place - 1])]
        query_rows = self.queries.rows([names[start] for start in starts])
        rows = self.documents.rows(documents)
        self._check_known(query_rows, [names[start] for start in starts], [lines[start] for start in starts], "query")
        self._check_known(rows, documents, lines, "document")
        columns: dict[str, list[Any]] = {"query": query_rows.tolist(), "line": [lines[start] for start in starts]}
        columns |= {"documents": [], "scores": []}
        values = np.array(scores, np.float32)
        for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
            order = start + np.argsort(-values[start:end], kind="stable")
            if len(np.unique(rows[order])) < len(order):
                raise CollectionError(
                    f"{self.path}, line {lines[start]}: a document occurs twice in the list of query "
                    f"{names[start]!r}; each must be there once."
                )
            columns["documents"].append(rows[order])
            columns["scores"].append(values[order])
        return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)

    def _fields(self, number: int, line: bytes) -> tuple[str, str, float]:
        try:
            query, _, document, _, score, *_ = line.decode().split()
            value = float(score)
        except ValueError:
            raise CollectionError(
                f"{self.path}, line {number}: expected `query Q0 document rank score name`, found {shown(line)}."
            ) from None
        if not abs(value) <= LARGEST_SCORE:
            raise CollectionError(
                f"{self.path}, line {number}: the score of document {document!r} is {score}; it must be finite, "
                f"and at most {LARGEST_SCORE:.1e}."
            )
        return query, document, value

    def _check_known(self, rows: NDArray[np.int64], names: Sequence[str], lines: Sequence[int], what: str) -> None:
        if (rows < 0).any():
            place = int(np.argmax(rows < 0))
            source = (self.queries if what == "query" else self.documents).source
            raise CollectionError(
                f"{self.path}, line {lines[place]}: {what} {names[place]!r} is not in {source}; "
                "use a run made on this collection."
            )


def write_list_of_query(path: Path, queries: TextStore) -> Callable[[Path, ShardedTable], None]:
    """Writes, for every query row, the number of its list, or -1."""

    def finish(folder: Path, table: ShardedTable) -> None:
        name = folder / "list_of_query.i64"
        with name.open("wb") as file:  # written before it is mapped: a full disk is then an error, not a signal
            for start in range(0, len(queries), QUERIES_PER_SCAN):
                np.full(min(QUERIES_PER_SCAN, len(queries) - start), -1, np.int64).tofile(file)
        lists = np.memmap(name, np.int64, mode="r+", shape=(len(queries),))
        number = 0
        for rows, lines in zip(table.blocks("query"), table.blocks("line"), strict=True):
            again = lists[rows] >= 0
            again[np.setdiff1d(np.arange(len(rows)), np.unique(rows, return_index=True)[1])] = True
            if again.any():
                row, line = rows[np.argmax(again)], lines[np.argmax(again)]
                raise CollectionError(
                    f"{path}, line {line}: query {queries.ids(np.array([row]))[0]!r} was there before; the lines of a "
                    "query must be together (sort the run by its first column)."
                )
            lists[rows] = np.arange(number, number + len(rows))
            number += len(rows)
        lists.flush()

    return finish
