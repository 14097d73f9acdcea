"""Short manuals of a made-up zoo, for the tests of specialisation: title, headings, a question, sentences."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

ANIMALS = [
    "owl",
    "fox",
    "bear",
    "carp",
    "wasp",
    "seal",
    "crow",
    "toad",
    "mole",
    "hare",
    "lynx",
    "moth",
    "newt",
    "swan",
    "wolf",
]
PLACES = ["river", "forest", "meadow", "cliff", "marsh", "dune"]
ACTS = ["sleeps", "hunts", "sings", "hides", "digs", "builds", "swims"]

QUICK: dict[str, Any] = {
    "candidates": 6, "epochs": 1.0, "batch_size": 8, "precision": "fp32", "device": "cpu", "workers": 1,
    "learning_rate": 1e-3,
}  # fmt: skip
"""Settings under which a specialisation of forty manuals takes seconds."""


def manual(number: int) -> str:
    """One manual as Markdown."""
    draw = random.Random(number)  # noqa: S311
    animal, place = ANIMALS[number % len(ANIMALS)], PLACES[number // len(ANIMALS) % len(PLACES)]
    first, second, third = draw.choices(ACTS, k=3)
    return (
        f"# The {animal} of the {place}\n\n"
        f"The {animal} of the {place} {first} by day and {second} by night. Its song number {number} is loud.\n\n"
        f"## Where does {animal} number {number} live?\n\n"
        f"It lives in the {place} and eats {draw.choice(ANIMALS)} and {draw.choice(ANIMALS)} all year. "
        f"It {third} there with {number + 2} others.\n"
    )


def write_manuals(folder: Path, numbers: range = range(40)) -> Path:
    """A file for each manual."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:03}.md").write_text(manual(number), encoding="utf-8")
    return folder
