"""What bulk encoding shows while it runs: a bar or steady lines, and one warning about all texts that were cut."""

from __future__ import annotations

import sys
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

from drama_models.errors import TextsCutWarning
from drama_models.progress import format_seconds
from drama_models.warn import warn_caller

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE_EVERY_S = 10.0  # where there is no terminal for a bar


class EncodingProgress:
    """A bar on a terminal, a line every ten seconds elsewhere; the time left counts what was encoded, not kept."""

    def __init__(self, total: int | None, *, shown: bool) -> None:
        self.total, self.done, self.encoded = total, 0, 0
        self._bar = tqdm(total=total, desc="encode", unit=" documents", disable=None if shown else True)
        self._lines = shown and not sys.stderr.isatty()
        self._began_s = self._said_s = time.monotonic()

    def __enter__(self) -> EncodingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def count(self, documents: int, *, encoded: bool) -> None:
        """Another shard is there."""
        self._bar.update(documents)
        self.done += documents
        if not encoded:
            self._began_s, self.encoded = time.monotonic(), 0
            return
        self.encoded += documents
        if self._lines and time.monotonic() - self._said_s >= LINE_EVERY_S:
            self._said_s = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)  # noqa: T201

    def _line(self) -> str:
        rate = self.encoded / max(time.monotonic() - self._began_s, 1e-9)
        words = f"encode {self.done:,} documents | {rate:,.0f} documents/s"
        if self.total is None:
            return words
        return f"{words} | {format_seconds((self.total - self.done) / rate)} left"


@contextmanager
def one_warning_about_cut_texts() -> Iterator[None]:
    """One warning for the whole corpus instead of one for each shard."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TextsCutWarning)
        yield
    others = [entry for entry in caught if not isinstance(entry.message, TextsCutWarning)]
    for entry in others:
        warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
    cut = sum(entry.message.count for entry in caught if isinstance(entry.message, TextsCutWarning))
    if cut:
        warn_caller(TextsCutWarning(cut))
