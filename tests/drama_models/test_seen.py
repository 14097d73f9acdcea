"""Strings that came before, against Python's own set; and what a collection makes of two ids with one hash."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest

from drama_models import Collection
from drama_models.errors import CollectionError
from drama_models.seen import FIRST_PLACES, FULLEST, SeenStrings

LETTERS = list(string.ascii_letters)


def test_answers_are_those_of_a_set() -> None:
    draw = np.random.default_rng(0)
    known: set[str] = set()
    seen = SeenStrings()
    for _ in range(10 * FIRST_PLACES):  # the table grows several times
        text = "".join(draw.choice(LETTERS, 3))
        assert seen.add(text) == (text in known)
        known.add(text)
    assert len(known) > 4 * FIRST_PLACES * FULLEST


def test_two_ids_of_one_hash_are_two_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drama_models.seen.hash", lambda text: len(text), raising=False)
    lines = [json.dumps({"_id": key, "text": "t"}) for key in ("a", "b", "", "cc", "c")]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(lines), encoding="utf-8")
    assert [document.id for document in Collection(tmp_path).documents()] == ["a", "b", "", "cc", "c"]
    corpus.write_text("\n".join([*lines, lines[1]]), encoding="utf-8")
    with pytest.raises(CollectionError, match="line 6: id 'b' was used in line 2; ids must be unique"):
        list(Collection(tmp_path).documents())
