"""Texts of a collection by id, without holding them: Arrow shards, and an index of hashed ids on disk.

A document or query is known by its row, a number; ids are turned into rows once, when examples and runs are read. The
index holds 128 bits of each id, sorted by the first 64, so that 25 million ids cost no Python objects: two ids that
agree in all 128 bits are taken for one (for a billion ids the chance of an error is below 10^-20). A row also has the
hash of its normalised content, by which a batch is kept free of documents that say the same under other ids.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from drama_models.collection import titled
from drama_models.errors import CollectionError
from drama_models.surrogates import encoded, storable
from training.data.mapped import MappedArray
from training.data.shards import ShardedTable, build_shards, encoded_lines, source_fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.shards import Block

INDEX_BUCKET = 1 << 20  # ids sorted at a time while the index is built
SCHEMA = pa.schema(
    {
        "id": pa.large_string(),
        "title": pa.large_string(),
        "text": pa.large_string(),
        "line": pa.uint64(),
        "high": pa.uint64(),
        "low": pa.uint64(),
        "content_hash": pa.uint64(),
    }
)


class TextStore:
    """Rows of a BEIR corpus or queries file, with their texts on disk.

    Args:
        source: `corpus.jsonl` or `queries.jsonl`, plain or `.gz`.
        cache: folder for the shards and the index, built on first use.

    Raises:
        CollectionError: no such file, a malformed line, or an id that occurs twice.
    """

    def __init__(self, source: Path, cache: Path) -> None:
        if not source.is_file():
            raise CollectionError(f"There is no {source}; pass a JSON-lines file of `_id`, `title` and `text`.")
        self.source, self.cache = source, cache
        self.fingerprint = source_fingerprint(source)
        """Of the source; part of the fingerprint of whatever refers to its rows."""
        folder = cache / cache_name("texts", source)
        build_shards(folder, self.fingerprint, encoded_lines(source, self._encode), self._finish, source=source)
        self._table = ShardedTable(folder)
        self._content_hash = MappedArray(folder / "content_hash.u64", np.uint64)
        self._high = MappedArray(folder / "index_high.u64", np.uint64)
        self._low = MappedArray(folder / "index_low.u64", np.uint64)
        self._row = MappedArray(folder / "index_row.i64", np.int64)

    def __len__(self) -> int:
        return len(self._table)

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each id, -1 where there is none; shape (len(ids),)."""
        high, low = id_hashes(ids)
        places = np.searchsorted(self._high.values, high)
        rows = np.full(len(ids), -1, np.int64)
        open_ = np.arange(len(ids))
        while open_.size:  # one round, and one more for every other id with the same first 64 bits
            inside = places[open_] < len(self)
            open_ = open_[inside][self._high.values[places[open_][inside]] == high[open_[inside]]]
            here = self._low.values[places[open_]] == low[open_]
            rows[open_[here]] = self._row.values[places[open_[here]]]
            open_ = open_[~here]
            places[open_] += 1
        for array in (self._high, self._low, self._row):
            array.count(len(ids))
        return rows

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Id of each row."""
        return self._table.strings(["id"], rows)[0]

    def contents(self, rows: NDArray[np.int64], separator: str = " ") -> list[str]:
        """Title and text of each row with the separator between them."""
        titles, texts = self._table.strings(["title", "text"], rows)
        return [titled(title, text, separator) for title, text in zip(titles, texts, strict=True)]

    def content_hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Equal where two rows hold the same content, case and white space aside; shape of `rows`."""
        return self._content_hash.gather(rows)

    def _encode(self, block: Block) -> pa.RecordBatch:
        columns: dict[str, list[Any]] = {name: [] for name in ("id", "title", "text", "line", "content_hash")}
        for line, record in json_lines(self.source, block):
            # training examples name their queries otherwise, and can serve as a file of queries
            key, text = (
                record.get(name, record.get(other)) for name, other in (("_id", "query_id"), ("text", "query"))
            )
            title = record.get("title") or ""
            if not isinstance(key, str) or not isinstance(title, str) or not isinstance(text, str):
                raise CollectionError(
                    f"{self.source}, line {line}: `_id`, `title` and `text` must be strings; found "
                    f"_id={key!r:.60}, text of type {type(text).__name__}."
                )
            content = f"{title} {text}".strip()
            values = (storable(key), storable(title), storable(text), line, content_hash(content))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
        high, low = id_hashes(columns["id"])
        arrays = {**columns, "high": high, "low": low}
        return pa.record_batch([pa.array(arrays[field.name], field.type) for field in SCHEMA], schema=SCHEMA)

    def _finish(self, folder: Path, table: ShardedTable) -> None:
        for column in ("high", "low", "content_hash"):
            table.write_column(column, folder / f"{column}.u64")
        high, low = (MappedArray(folder / f"{name}.u64", np.uint64) for name in ("high", "low"))
        names = ("index_high.u64", "index_low.u64", "index_row.i64")
        with (
            (folder / names[0]).open("wb") as f0,
            (folder / names[1]).open("wb") as f1,
            (folder / names[2]).open("wb") as f2,
        ):
            for rows in _sorted_buckets(high.values):
                order = rows[np.lexsort((low.values[rows], high.values[rows]))]
                parts = high.values[order], low.values[order]
                twice = np.flatnonzero((parts[0][1:] == parts[0][:-1]) & (parts[1][1:] == parts[1][:-1]))
                if twice.size:
                    self._refuse_duplicate(table, order[twice[0] : twice[0] + 2])
                for file, values in zip((f0, f1, f2), (*parts, order), strict=True):
                    file.write(values.tobytes())
        for name in ("high", "low"):
            (folder / f"{name}.u64").unlink()

    def _refuse_duplicate(self, table: ShardedTable, rows: NDArray[np.int64]) -> None:
        lines = np.concatenate(list(table.blocks("line")))[np.sort(rows)]
        raise CollectionError(
            f"{self.source}, line {lines[1]}: id {table.strings(['id'], rows)[0][0]!r} was used in line {lines[0]}; "
            "ids must be unique."
        )


def _sorted_buckets(high: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
    """Rows whose hashes begin alike, bucket by bucket in rising order, found by one pass over the hashes each."""
    bits = max((len(high) // INDEX_BUCKET).bit_length(), 1)
    for bucket in range(1 << bits):
        parts = []
        for start in range(0, len(high), INDEX_BUCKET):
            block = high[start : start + INDEX_BUCKET] >> np.uint64(64 - bits)
            parts.append(np.flatnonzero(block == bucket) + start)
        yield np.concatenate(parts)


def json_lines(path: Path, block: Block) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line of a block.

    Raises:
        CollectionError: a line that is not a JSON object, or not UTF-8.
    """
    for number, line in block.lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CollectionError(
                f"{path}, line {number}: not valid JSON ({error}); each line must be one object in UTF-8."
            ) from None
        if not isinstance(record, dict):
            raise CollectionError(f"{path}, line {number}: expected an object, found {shown(line)}.")
        yield number, record


def shown(line: bytes) -> str:
    """The start of a line, for messages."""
    return repr(line.strip()[:60].decode("utf-8", "replace"))


def id_hashes(ids: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """First and last 64 of 128 bits that stand for an id; two arrays of shape (len(ids),)."""
    halves = np.frombuffer(b"".join([xxh3_128_digest(encoded(key)) for key in ids]), np.dtype("<u8")).reshape(-1, 2)
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


def content_hash(text: str) -> int:
    """64 bits that stand for a text, whatever its case, white space and Unicode composition."""
    normalised = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return xxh3_64_intdigest(encoded(normalised))


def cache_name(kind: str, *sources: Path, settings: object = None) -> str:
    """Name of the cache folder of something made from files."""
    told = json.dumps([[str(path.resolve()) for path in sources], settings], default=str)
    digest = hashlib.blake2b(told.encode(), digest_size=6).hexdigest()
    return f"{kind}-{sources[0].name.partition('.')[0]}-{digest}"
