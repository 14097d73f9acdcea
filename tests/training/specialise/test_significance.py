"""The paired test and the interval, against an enumeration of every sign, a normal approximation, and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from training.specialise.significance import compare


def test_p_is_that_of_all_sign_flips() -> None:
    differences = [0.3, -0.1, 0.25, 0.4, 0.05, -0.2, 0.15, 0.35]
    before = {f"q{number}": 0.5 for number in range(8)}
    after = {f"q{number}": 0.5 + difference for number, difference in enumerate(differences)}
    observed = abs(sum(differences))
    sums = [abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
            for signs in product((1, -1), repeat=8)]  # fmt: skip
    exact = sum(value >= observed - 1e-12 for value in sums) / 2**8
    change = compare("ndcg@10", before, after)
    assert change.p == pytest.approx(exact, abs=1e-12)
    assert change.difference == pytest.approx(0.15)
    assert change.before == pytest.approx(0.5)
    assert change.metric == "ndcg@10"


def test_the_interval_is_that_of_the_normal_approximation_where_there_are_many() -> None:
    generator = np.random.default_rng(1)
    drawn = generator.normal(0.02, 0.1, size=2000)
    change = compare(
        "map", dict.fromkeys(map(str, range(2000)), 0.0), dict(zip(map(str, range(2000)), drawn, strict=True))
    )
    error = 1.96 * drawn.std() / np.sqrt(2000)
    assert change.low == pytest.approx(drawn.mean() - error, abs=0.1 * error)  # a tenth: 9,999 resamples
    assert change.high == pytest.approx(drawn.mean() + error, abs=0.1 * error)
    assert change.significant


def test_queries_of_one_document_count_as_one() -> None:
    values = np.random.default_rng(3).normal(0.05, 0.1, size=12)
    queries = [f"{document}-{copy}" for document in range(12) for copy in range(50)]
    after = {query: float(values[int(query.partition("-")[0])]) for query in queries}
    before = dict.fromkeys(queries, 0.0)
    once = compare("map", {f"{n}": 0.0 for n in range(12)}, {f"{n}": float(value) for n, value in enumerate(values)})
    grouped = compare("map", before, after, {query: f"{int(query.partition('-')[0]):02}" for query in queries})
    assert grouped.p == pytest.approx(once.p, abs=0.01)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.05)
    alone = compare("map", before, after)
    assert alone.high - alone.low < 0.3 * (once.high - once.low)


def test_no_difference_is_found_about_as_often_as_the_level_says() -> None:
    generator = np.random.default_rng(5)
    found = 0
    for _ in range(60):
        drawn = generator.normal(0, 0.2, size=10)
        names = [str(number) for number in range(10)]
        found += compare("map", dict.fromkeys(names, 0.0), dict(zip(names, drawn.tolist(), strict=True))).significant
    assert found <= 8  # 3 expected; more than 8 happens once in 200 times


def test_nothing_to_draw_is_not_significant() -> None:
    same = compare("map", {"a": 0.5, "b": 1.0}, {"a": 0.5, "b": 1.0})
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)
    one = compare("map", {"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 0.75}, {"a": "doc", "b": "doc"})
    assert (one.p, one.low, one.high) == (1.0, 0.375, 0.375)
    with pytest.raises(ValueError, match="2 queries before and 1 after"):
        compare("map", {"a": 0.5, "b": 0.5}, {"a": 1.0})
