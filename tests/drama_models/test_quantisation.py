"""Codes of embeddings against sentence-transformers' own function, and the way back within half a step."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from drama_models.quantisation import PRECISIONS, EmbeddingPrecision, dequantise, quantise, value_ranges

VECTORS = np.random.default_rng(0).normal(size=(40, 21)).astype(np.float32)
VECTORS[:, 3] = 0.5  # a column that never changes
RANGES = value_ranges(VECTORS[:20])  # of a sample, so that some values lie beyond


@pytest.mark.parametrize("ranges", [None, RANGES])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_are_those_of_sentence_transformers(precision: EmbeddingPrecision, ranges: np.ndarray | None) -> None:
    expected = np.asarray(quantize_embeddings(VECTORS, precision, ranges=ranges))
    found = quantise(VECTORS, precision, ranges)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    empty = quantise(VECTORS[:0], precision, ranges)
    assert (len(empty), empty.shape[1], empty.dtype) == (0, found.shape[1], found.dtype)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_eight_bits_come_back_within_half_a_step(precision: EmbeddingPrecision) -> None:
    ranges = value_ranges(VECTORS)
    back = dequantise(quantise(VECTORS, precision, ranges), precision, ranges=ranges)
    steps = (ranges[1] - ranges[0]) / 255
    assert (np.abs(back - VECTORS) <= 0.5001 * steps).all()  # so exactly where a column never changes
    assert back.dtype == np.float32


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_one_bit_comes_back_as_signs_of_length_one(precision: EmbeddingPrecision) -> None:
    back = dequantise(quantise(VECTORS, precision), precision, dim=21)
    assert back.shape == (40, 21)  # without the three bits that fill up the last byte
    np.testing.assert_array_equal(back > 0, VECTORS > 0)
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, rtol=1e-6)


def test_what_cannot_be_quantised_is_said() -> None:
    with pytest.raises(ValueError, match="precision='int4' must be one of float32, int8"):
        quantise(VECTORS, "int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="codes are not quantised again"):
        quantise(quantise(VECTORS, "int8"), "int8")
    with pytest.raises(ValueError, match="at least two vectors"):
        quantise(VECTORS[:1], "int8")
    with pytest.raises(ValueError, match=r"ranges of shape \(2, 21\), found \(2, 5\)"):
        quantise(VECTORS, "int8", RANGES[:, :5])
    with pytest.raises(ValueError, match="pass ranges="):
        dequantise(quantise(VECTORS, "int8"), "int8")
