"""The documents of a text file, one after another: `.jsonl`, `.txt` (both also as `.gz`) and `.parquet`.

What cannot be read is refused with its file and line, since text that is left out or mended in silence would be missing
from the model. Only lone surrogates, which no tokenizer takes, are read as U+FFFD, as everywhere else.
"""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

from drama_models.errors import CorpusError
from drama_models.surrogates import storable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIXES = (".jsonl", ".txt", ".parquet", ".jsonl.gz", ".txt.gz")


def read_documents(path: Path) -> Iterator[str]:
    """The documents of one file: a line of `.jsonl`, a row of `.parquet`, or paragraphs of `.txt` up to a blank line.

    Raises:
        CorpusError: a damaged file; or a line that is not UTF-8 or not a JSON object with a `text`, or a row without
            one, named by file and number.
    """
    try:
        if path.suffix == ".parquet":
            yield from _read_rows(path)
        else:
            yield from _read_jsonl(path) if ".jsonl" in path.suffixes else _read_paragraphs(path)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CorpusError:
    return CorpusError(f"{path} cannot be read ({error}); replace it with a whole file, or remove it.")


def _read_rows(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise CorpusError(
                    f"{path} has no column `text`, only {', '.join(names)}; rename the one with the text."
                )
            batches = file.iter_batches(columns=["text"])
            rows = (value for batch in batches for value in batch.column("text").to_pylist())
            for number, value in enumerate(rows, start=1):
                yield _checked(value, f"{path}, row {number}")
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):  # a number of a thousand digits, a thousand brackets
            raise CorpusError(f'{path}, line {number}: expected a JSON object such as {{"text": "..."}}.') from None
        yield _checked(document, f"{path}, line {number}")


def _checked(document: Any, place: str) -> str:
    if not isinstance(document, str):
        raise CorpusError(f"{place}: `text` must be a string, found {type(document).__name__}.")
    return storable(document)


def _read_paragraphs(path: Path) -> Iterator[str]:
    """Documents are separated by blank lines."""
    lines: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []
    if lines:
        yield "".join(lines)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="surrogateescape") as file:  # a wrong byte becomes a surrogate
        for number, line in enumerate(file, start=1):
            if storable(line) != line:
                raise CorpusError(f"{path}, line {number}: this is not UTF-8; convert the file.")
            yield number, line
