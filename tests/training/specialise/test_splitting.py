"""Documents keep their part when others come, and too few of them are refused."""

from __future__ import annotations

import pytest

from drama_models.errors import CollectionError
from training.specialise.splitting import draw, drawn, split_documents


def test_a_grown_collection_keeps_the_parts_it_had() -> None:
    names = [f"doc {number}" for number in range(3000)]
    few = split_documents(names[:1000], held_out=0.1, dev=0.05, seed=1)
    many = split_documents(names, held_out=0.1, dev=0.05, seed=1)
    assert all(many[name] == part for name, part in few.items())
    counts = [list(many.values()).count(part) for part in ("test", "dev", "train")]
    assert counts == [pytest.approx(300, abs=60), pytest.approx(150, abs=45), pytest.approx(2550, abs=90)]
    assert split_documents(names, held_out=0.1, dev=0.05, seed=2) != many


def test_few_documents_have_all_parts_and_fewer_are_refused() -> None:
    names = [f"{number}.md" for number in range(10)]
    for seed in range(20):
        for held_out in (0.05, 0.5):
            parts = list(split_documents(names, held_out=held_out, dev=0.4, seed=seed).values())
            assert min(parts.count("test"), parts.count("dev")) >= 2
            assert parts.count("train") >= 1
    with pytest.raises(CollectionError, match="There are 9 documents with passages, and at least 10"):
        split_documents([*names[:9], names[0]], held_out=0.1, dev=0.1, seed=0)


def test_draws_are_uniform_and_a_small_one_is_part_of_a_large_one() -> None:
    values = sorted(draw(3, str(number)) for number in range(2000))
    assert max(abs(value - (place + 0.5) / 2000) for place, value in enumerate(values)) < 0.04  # Kolmogorov, p 0.003
    names = [str(number) for number in range(500)]
    few, many = drawn(names, 20, 5, str), drawn(names, 200, 5, str)
    assert set(few) < set(many)
    assert (len(few), few) == (20, sorted(few, key=int))
    assert drawn(names, 500, 5, str) == names
