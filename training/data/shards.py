"""Line files as Arrow shards: built once, in constant memory, resumable; then read at random without loading them.

The source is read in blocks of bounded size. Each becomes one shard, which appears under its name only when it is
complete and carries the place in the source where the next block begins: a build that was killed goes on at the last
complete shard. The folder takes its final name when everything is there. Of several processes that want it, one builds
and the others wait.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from filelock import FileLock

from drama_models.errors import CollectionError
from drama_models.folders import atomic_file, may_not_write
from training.data.mapped import MappedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK_LINES = 1 << 15
BLOCK_BYTES = 32 << 20
MANIFEST = "manifest.json"
FORMAT = 3


@dataclass(frozen=True)
class Place:
    """Where a line begins in a source file."""

    offset: int = 0
    """Bytes before it, of the unpacked file."""
    line: int = 0
    """Lines before it."""


@dataclass(frozen=True)
class Block:
    """Lines of a source file that make one shard."""

    lines: list[tuple[int, bytes]]
    """Line number, counted from 1, and content; blank lines left out."""
    end: Place
    """Where the next block begins."""


def source_fingerprint(path: Path) -> dict[str, int]:
    """What tells one state of a source file from another: size in bytes and time of the last change."""
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def build_shards(
    folder: Path,
    fingerprint: Mapping[str, Any],
    shards: Callable[[Place], Iterable[tuple[Place, pa.RecordBatch]]],
    finish: Callable[[Path, ShardedTable], None],
    *,
    source: Path,
) -> None:
    """Make `folder` of Arrow shards, unless it is there and was made from the same.

    Args:
        folder: to make or to replace.
        fingerprint: of everything the result depends on; must survive JSON.
        shards: the rows of each shard from a place in the source on, and the place where the next shard begins.
        finish: writes what needs all shards, such as an index, into the given folder.
        source: what the shards are made from, for messages.

    Raises:
        CollectionError: whatever `shards` refuses, a source that gives none, or a folder that cannot be written.
    """
    wanted = json.loads(json.dumps({"format": FORMAT, **fingerprint}))
    if _made_from(folder) == wanted:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if _made_from(folder) == wanted:
                return
            work = _working_folder(folder, wanted)
            _write_shards(work, shards(_next_place(work)), source)
            finish(work, ShardedTable(work))
            (work / "building.json").rename(work / MANIFEST)
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
    except OSError as error:
        if not may_not_write(error):
            raise
        raise CollectionError(
            f"{folder.parent} cannot be written ({error}); set `cache` to a folder that can."
        ) from None


def encoded_lines(
    source: Path, encode: Callable[[Block], pa.RecordBatch], group: Callable[[bytes], bytes] | None = None
) -> Callable[[Place], Iterator[tuple[Place, pa.RecordBatch]]]:
    """The shards of a line file, for `build_shards`.

    Args:
        source: line file, plain or `.gz`.
        encode: turns a block of lines into the rows of one shard.
        group: key of a line; neighbouring lines of one key stay in one block.
    """
    return lambda start: ((block.end, encode(block)) for block in _blocks(source, start, group))


def line_of(source: Path, row: int) -> int:
    """Number of the line that a row was made from, counted from 1; rows are the lines that are not blank."""
    before = 0
    for block in _blocks(source, Place(), None):
        if row < before + len(block.lines):
            return block.lines[row - before][0]
        before += len(block.lines)
    raise IndexError(f"row {row} of {before} in {source}")


def _made_from(folder: Path) -> Any:
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _working_folder(folder: Path, wanted: dict[str, Any]) -> Path:
    """The folder of an interrupted build of the same, or an empty one."""
    work = folder.parent / f".{folder.name}.building"
    begun = work / "building.json"
    if not begun.is_file() or json.loads(begun.read_text(encoding="utf-8")) != wanted:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with atomic_file(begun) as partial:
            partial.write_text(json.dumps(wanted), encoding="utf-8")
    return work


def _next_place(work: Path) -> Place:
    shards = sorted(work.glob("*.arrow"))
    if not shards:
        return Place()
    with pa.memory_map(str(shards[-1])) as file:
        end = pa.ipc.open_file(file).schema.metadata[b"end"]
    return Place(*json.loads(end))


def _write_shards(work: Path, shards: Iterable[tuple[Place, pa.RecordBatch]], source: Path) -> None:
    number = len(list(work.glob("*.arrow")))
    for end, batch in shards:
        schema = batch.schema.with_metadata({"end": json.dumps([end.offset, end.line])})
        with atomic_file(work / f"{number:06d}.arrow") as partial, partial.open("wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())  # so that a name never stands for less than its shard, even after a power cut
        number += 1
    if not number:
        raise CollectionError(f"There is nothing in {source}; pass a file with at least one line.")


def _blocks(source: Path, start: Place, group: Callable[[bytes], bytes] | None) -> Iterator[Block]:
    try:
        yield from _blocks_unchecked(source, start, group)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CollectionError(f"{source} is not a whole gzip file ({error}); fetch or pack it again.") from None


def _blocks_unchecked(source: Path, start: Place, group: Callable[[bytes], bytes] | None) -> Iterator[Block]:
    opener = gzip.open if source.suffix == ".gz" else open
    with cast(IO[bytes], opener(source, "rb")) as file:
        file.seek(start.offset)
        offset, number = start.offset, start.line
        lines: list[tuple[int, bytes]] = []
        held = 0
        for line in file:
            full = len(lines) >= BLOCK_LINES or held >= BLOCK_BYTES
            if full and (group is None or group(line) != group(lines[-1][1])):
                yield Block(lines, Place(offset, number))
                lines, held = [], 0
            offset, number = offset + len(line), number + 1
            if line.strip():
                lines.append((number, line))
                held += len(line)
        if lines:
            yield Block(lines, Place(offset, number))


class ShardedTable:
    """The rows of all shards of a folder, memory-mapped.

    Args:
        folder: with `*.arrow` shards of one record batch each.
    """

    RELEASE_AFTER = 1 << 11
    """Rows read before the shards' pages are handed back."""

    def __init__(self, folder: Path) -> None:
        self._files = [MappedFile(path) for path in sorted(folder.glob("*.arrow"))]
        self._shards = [file.batch() for file in self._files]
        self._starts = np.cumsum([0, *(shard.num_rows for shard in self._shards)])
        self._views: dict[str, list[tuple[memoryview, memoryview]]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def strings(self, columns: Sequence[str], rows: NDArray[np.int64]) -> list[list[str]]:
        """Values of text columns: one list a column, one value a row."""
        views = [self._view(column) for column in columns]
        found: list[list[str]] = [[] for _ in columns]
        for shard, row in self._located(rows):
            for values, view in zip(found, views, strict=True):
                offsets, text = view[shard]
                values.append(str(text[offsets[row] : offsets[row + 1]], "utf-8"))
        return found

    def lists(
        self, columns: Sequence[str], rows: NDArray[np.int64], first: int = 0, last: int | None = None
    ) -> list[list[NDArray[Any]]]:
        """Values `first` to `last` (exclusive) of each row's lists, fewer where they are shorter; copies."""
        views = [self._view(column) for column in columns]
        dtypes = [self._shards[0].schema.field(column).type.value_type.to_pandas_dtype() for column in columns]
        found: list[list[NDArray[Any]]] = [[] for _ in columns]
        for shard, row in self._located(rows):
            for arrays, view, dtype in zip(found, views, dtypes, strict=True):
                offsets, values = view[shard]
                start, end = offsets[row] + first, offsets[row + 1]
                end = end if last is None else min(offsets[row] + last, end)
                arrays.append(np.array(values[start : max(start, end)], dtype))
        return found

    def blocks(self, column: str) -> Iterator[NDArray[Any]]:
        """A column of numbers, one shard at a time."""
        for file, shard in zip(self._files, self._shards, strict=True):
            yield shard.column(column).to_numpy()
            file.release()

    def lengths(self, column: str) -> Iterator[NDArray[np.int64]]:
        """Lengths of a column of lists, one shard at a time."""
        for file, (offsets, _) in zip(self._files, self._view(column), strict=True):
            yield np.diff(np.asarray(offsets))
            file.release()

    def write_column(self, column: str, path: Path) -> None:
        """Write a column of numbers as a flat file, for `MappedArray`."""
        with path.open("wb") as file:
            for values in self.blocks(column):
                file.write(values.tobytes())

    def _located(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Shard of each row and its place there; pages are handed back every now and then."""
        for begin in range(0, len(rows), self.RELEASE_AFTER):
            part = rows[begin : begin + self.RELEASE_AFTER]
            shards = np.searchsorted(self._starts, part, side="right") - 1
            yield from zip(shards.tolist(), (part - self._starts[shards]).tolist(), strict=True)
            for shard in np.unique(shards).tolist():
                self._files[shard].release()

    def _view(self, column: str) -> list[tuple[memoryview, memoryview]]:
        """Offsets and values of a column of texts or lists, for each shard; mapped, not copied."""
        if column not in self._views:
            self._views[column] = [_buffers(shard.column(column)) for shard in self._shards]
        return self._views[column]


def _buffers(column: pa.Array) -> tuple[memoryview, memoryview]:
    """Plain memory beneath a `large_string` or `large_list` column: cheaper to read at random than Arrow's scalars."""
    _, offsets, *rest = column.buffers()
    if pa.types.is_large_list(column.type):
        return memoryview(offsets).cast("q"), memoryview(column.values.to_numpy())
    return memoryview(offsets).cast("q"), memoryview(rest[0] or b"")
