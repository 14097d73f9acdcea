"""Which documents are trained on, which choose the checkpoint, and which give the figures before and after.

A document's part depends on the seed and its id alone, so a collection that has grown keeps the parts it had: no
document whose queries were held out is ever trained on later. Only of very few documents are some moved, so that no
part is empty; these may move back when there are more.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, TypeVar

from drama_models.errors import CollectionError
from training.specialise.settings import FEWEST_DOCUMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Part = Literal["train", "dev", "test"]
Item = TypeVar("Item")
FEWEST_HELD_OUT = 2  # documents of dev, and of test


def draw(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on the seed and the key alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:7], "big") / 2**56


def drawn(items: Iterable[Item], count: int, seed: int, key: Callable[[Item], str]) -> list[Item]:
    """At most `count` of the items, in their order; those drawn of few are among those drawn of many."""
    given = list(items)
    if len(given) <= count:
        return given
    chosen = sorted(range(len(given)), key=lambda place: draw(seed, key(given[place])))[:count]
    return [given[place] for place in sorted(chosen)]


def split_documents(documents: Iterable[str], *, held_out: float, dev: float, seed: int) -> dict[str, Part]:
    """The part of each document.

    Args:
        documents: ids.
        held_out: share of `test`.
        dev: share of `dev`.
        seed: of the draw.

    Raises:
        CollectionError: there are too few to hold some out.
    """
    ordered = sorted(set(documents), key=lambda document: draw(seed, document))
    if len(ordered) < FEWEST_DOCUMENTS:
        raise CollectionError(
            f"There are {len(ordered)} documents with passages, and at least {FEWEST_DOCUMENTS} are needed to hold the "
            "queries of some out; split long files into parts, such as one file (or one JSON line) a chapter."
        )
    below = [sum(draw(seed, document) < share for document in ordered) for share in (held_out, held_out + dev)]
    tests = max(below[0], FEWEST_HELD_OUT)
    devs = max(below[1], tests + FEWEST_HELD_OUT)
    if devs >= len(ordered):  # large shares of few documents
        tests, devs = FEWEST_HELD_OUT, 2 * FEWEST_HELD_OUT
    return {
        document: "test" if place < tests else "dev" if place < devs else "train"
        for place, document in enumerate(ordered)
    }
