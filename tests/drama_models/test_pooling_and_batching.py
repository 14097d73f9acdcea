"""Pooling and normalising against torch, batching against its own promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drama_models.batching import budget_batches, windows
from drama_models.pooling import Pooling, cosines, finish, pool, pool_rows
from drama_models.runtimes.padding import pad

HIDDEN = np.random.default_rng(0).normal(size=(3, 5, 4))
RIGHT = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


@pytest.mark.parametrize("mask", [RIGHT, RIGHT[:, ::-1]], ids=["right padding", "left padding"])
def test_pooling_matches_plain_selection(mask: np.ndarray) -> None:
    real = [HIDDEN[row][mask[row] == 1] for row in range(3)]
    np.testing.assert_allclose(pool(HIDDEN, mask, "mean"), [states.mean(axis=0) for states in real])
    np.testing.assert_allclose(pool(HIDDEN, mask, "last"), [states[-1] for states in real])
    np.testing.assert_allclose(pool(HIDDEN, mask, "cls"), [states[0] for states in real])


def test_cosines_are_those_of_torch() -> None:
    found, expected = HIDDEN[0], HIDDEN[1]
    wanted = torch.nn.functional.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected))
    np.testing.assert_allclose(cosines(found, expected), wanted)


@pytest.mark.parametrize("dim", [None, 3, 1])
def test_cut_before_normalising_matches_torch(dim: int | None) -> None:
    expected = torch.nn.functional.normalize(torch.tensor(HIDDEN[:, 0, :dim]), dim=-1)
    np.testing.assert_allclose(finish(HIDDEN[:, 0], dim, normalise=True), expected)
    np.testing.assert_array_equal(finish(HIDDEN[:, 0], dim, normalise=False), HIDDEN[:, 0, :dim])


def test_a_zero_vector_stays_finite() -> None:
    assert (finish(np.zeros((1, 4)), None, normalise=True) == 0).all()


@given(lengths=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(1, 200))
def test_batches_hold_every_position_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(budget_batches(lengths, budget))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[position] for position in batch)
        assert padded <= budget or len(batch) == 1
        assert lengths[batch[0]] == max(lengths[position] for position in batch)


@given(lengths=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(1, 200))
def test_packed_batches_count_their_own_tokens_only(lengths: list[int], budget: int) -> None:
    batches = list(budget_batches(lengths, budget, packed=True))
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(lengths)))
    totals = [sum(lengths[position] for position in batch) for batch in batches]
    assert all(total <= budget or len(batch) == 1 for total, batch in zip(totals, batches, strict=True))
    for batch, following in itertools.pairwise(batches):  # none is cut short
        assert sum(lengths[position] for position in [*batch, following[0]]) > budget


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    pooling=st.sampled_from(["mean", "last", "cls"]),
)
def test_pooling_a_row_matches_pooling_a_padded_batch(lengths: list[int], pooling: Pooling) -> None:
    texts = [np.random.default_rng(length).normal(size=(length, 3)).astype(np.float32) for length in lengths]
    padded, mask = np.zeros((len(texts), max(lengths), 3), dtype=np.float32), np.zeros((len(texts), max(lengths)), int)
    for number, text in enumerate(texts):
        padded[number, : len(text)], mask[number, : len(text)] = text, 1
    found = pool_rows(np.concatenate(texts), lengths, pooling)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pool(padded, mask, pooling), atol=1e-6)


def test_windows_read_no_further_than_asked() -> None:
    source = iter(range(10))
    stream = windows(source, 4)
    assert next(stream) == [0, 1, 2, 3]
    assert next(source) == 4
    assert list(stream) == [[5, 6, 7, 8], [9]]
    assert list(windows([], 3)) == []


def test_padding_keeps_every_token() -> None:
    rows = [np.array([5, 6, 7]), np.array([8]), np.array([9, 1])]
    ids, mask = pad(rows)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 1, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert ids.dtype == mask.dtype == np.int64
