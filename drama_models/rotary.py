"""Rotary position frequencies of a Llama-shaped model, from its config.json; NumPy alone.

Su et al., 2021, https://arxiv.org/abs/2104.09864, with the frequency bands of Llama 3.1 where they are asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import ModelFolderError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

ROTARY_KINDS = ("default", "llama3")


def rotary_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings of a config.json of transformers 4 or 5; `rope_type` and `rope_theta` are always there."""
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    settings.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    return settings | {"rope_type": settings.get("rope_type", settings.get("type", "default"))}


def inverse_frequencies(config: Mapping[str, Any], head_dim: int) -> NDArray[np.float32]:
    """Angle per position of each pair of coordinates, (head_dim / 2,).

    Raises:
        ModelFolderError: a kind of scaling other than those of `ROTARY_KINDS`.
    """
    settings = rotary_settings(config)
    frequencies = 1.0 / settings["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if settings["rope_type"] == "default":
        return frequencies.astype(np.float32)
    if settings["rope_type"] != "llama3":
        supported = " and ".join(ROTARY_KINDS)
        raise ModelFolderError(
            f"Rotary scaling {settings['rope_type']!r} is not built here; supported are {supported}."
        )
    low, high, original = (
        settings[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    turns = original * frequencies / (2 * math.pi)  # rotations within the original length
    share = np.clip((turns - low) / (high - low), 0, 1)  # 0: slowed by the factor, 1: left alone
    return ((1 - share) * frequencies / settings["factor"] + share * frequencies).astype(np.float32)
