"""Passages that say the same, or are contained in another, are removed before queries are made of them.

Texts are compared without case, accents, digits, punctuation and spacing. Sorted by that form, a text that another
one starts with stands just before it; sorted by the reversed form, one that another ends with. A text goes if one of
the next nine contains it, in either order; so copies, beginnings and ends of longer passages are found, and of equal
ones the last stays. A text from the very middle of another one is not found: that would take a suffix array.

The sorting is done on disk (sorted parts, then merged), so memory does not grow with the number of passages.

Tamber et al., 2025, https://arxiv.org/abs/2502.19712, section 3.
"""

from __future__ import annotations

import heapq
import re
import tempfile
import unicodedata
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.collection import Collection
from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Row = tuple[str, int]  # normalised text, position in the corpus

DROPPED = re.compile(r"[^\w\s]|\d")  # marks that NFKD split off are no word characters either
SHORTEST = 10  # characters of normalised text
NEIGHBOURS = 9
PART_CHARACTERS = 64 << 20  # of normalised text sorted in memory at once; about 200 MB with Python's overhead
REMOVED = "duplicates.txt"


@dataclass(frozen=True, kw_only=True)
class DeduplicateRecipe:
    """Settings of de-duplication."""

    collection: Path
    """Collection (BEIR folder); its queries and judgements are not carried over."""
    out: Path
    """Collection to make: without duplicates, with their ids in duplicates.txt."""


def deduplicate(recipe: DeduplicateRecipe) -> dict[str, Any]:
    """Make a collection without duplicates; returns the provenance record.

    Raises:
        CollectionError: the collection is malformed.
    """
    collection = Collection(recipe.collection)
    with atomic_folder(recipe.out) as partial:
        removed = duplicate_positions((document.text for document in collection.documents()), partial)
        kept = (record for position, record in enumerate(collection.records()) if position not in removed)
        Collection.write(partial, kept)
        ids = [document.id for position, document in enumerate(collection.documents()) if position in removed]
        (partial / REMOVED).write_text("".join(f"{key}\n" for key in ids), encoding="utf-8")
        figures = {"removed": len(removed), "kept": collection.count() - len(removed)}
        inputs = {"collection": recipe.collection}
        return write_provenance(
            partial,
            stage="training.deduplicate",
            recipe=recipe,
            inputs=inputs,
            figures=figures,
            parent=recipe.collection,
        )


def normalise(text: str) -> str:
    """The form in which texts are compared: no case, accents, digits or punctuation, single spaces."""
    plain = text if text.isascii() else unicodedata.normalize("NFKD", text)
    return " ".join(DROPPED.sub("", plain.lower()).split())


def duplicate_positions(
    texts: Iterable[str], work: str | Path | None = None, part_characters: int = PART_CHARACTERS
) -> set[int]:
    """Positions of the texts that are too short, or contained in a neighbour.

    Args:
        texts: in corpus order; read once.
        work: folder for temporary files, the system's by default.
        part_characters: of normalised text sorted in memory at once.
    """
    removed: set[int] = set()

    def rows() -> Iterator[Row]:
        for position, text in enumerate(texts):
            normalised = normalise(text)
            if len(normalised) < SHORTEST:
                removed.add(position)
            yield normalised, position  # removed ones stay among the neighbours, as in the paper's script

    with tempfile.TemporaryDirectory(dir=work) as folder:
        forward = _compared(_sorted_on_disk(rows(), Path(folder) / "forward", part_characters), removed)
        backward = ((text[::-1], position) for text, position in forward)
        for _ in _compared(_sorted_on_disk(backward, Path(folder) / "backward", part_characters), removed):
            pass
    return removed


def _compared(rows: Iterable[Row], removed: set[int]) -> Iterator[Row]:
    """All rows; the positions of those that one of the next nine contains are noted."""
    ahead: deque[Row] = deque()
    iterator = iter(rows)
    ahead.extend(islice(iterator, NEIGHBOURS + 1))
    while ahead:
        text, position = ahead.popleft()
        if any(text in other for other, _ in ahead):
            removed.add(position)
        yield text, position
        ahead.extend(islice(iterator, 1))


def _sorted_on_disk(rows: Iterable[Row], work: Path, part_characters: int) -> Iterator[Row]:
    """Rows by text, then position, through sorted files of limited size."""
    work.mkdir()
    paths = []
    for number, part in enumerate(_parts(rows, part_characters)):
        path = work / str(number)
        part.sort()
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{text}\t{position}\n" for text, position in part)
        part.clear()
        paths.append(path)
    with ExitStack() as stack:
        files = [stack.enter_context(path.open(encoding="utf-8", newline="\n")) for path in paths]
        yield from heapq.merge(*(_rows(file) for file in files))


def _parts(rows: Iterable[Row], part_characters: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    characters = 0
    for row in rows:
        part.append(row)
        characters += len(row[0])
        if characters >= part_characters:
            yield part
            part, characters = [], 0
    yield part


def _rows(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        text, _, position = line.rpartition("\t")
        yield text, int(position)
