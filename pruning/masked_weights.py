"""What each mask does to each weight of a Llama: one table, used to train under masks and to slice.

A masked model is the stock model with other weights: values are multiplied by mask values here, and rows and columns
whose mask is zero are cut out by `pruning.slicing`. Only RMSNorm needs care: it must average over the kept
coordinates, so a full-width norm gets weight * sqrt(kept / full) and eps * kept / full, while a sliced norm needs
neither (spec section 6). The multiplications follow LLM-Shearing's rules with its two train/export mismatches mended
(spec section 10).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruning.masks import DIMENSIONS, mask_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pruning.shape import BackboneShape

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Axes:
    """Which mask selects a weight's rows and columns, and which values scale them; None keeps and scales nothing."""

    rows: str | None = None
    columns: str | None = None
    scale_rows: tuple[str, ...] = ()
    scale_columns: tuple[str, ...] = ()


RULES = {
    "self_attn.q_proj": Axes("query", "hidden"),
    "self_attn.k_proj": Axes("key_value", "hidden"),
    "self_attn.v_proj": Axes("key_value", "hidden", scale_rows=("key_value",)),
    "self_attn.o_proj": Axes("hidden", "query", scale_rows=("layer", "hidden"), scale_columns=("query_head",)),
    "mlp.gate_proj": Axes("intermediate", "hidden"),
    "mlp.up_proj": Axes("intermediate", "hidden", scale_rows=("intermediate",)),
    "mlp.down_proj": Axes("hidden", "intermediate", scale_rows=("layer", "hidden")),
    "input_layernorm": Axes("hidden", scale_rows=("hidden",)),
    "post_attention_layernorm": Axes("hidden", scale_rows=("hidden",)),
}
AXIS_OF = {"head": "key_value"}  # the axis that a dimension scales, where the names differ
EMBEDDING = Axes(columns="hidden", scale_columns=("hidden",))
HEAD = Axes(columns="hidden")  # an untied head reads the final norm, which is scaled already
FINAL_NORM = Axes("hidden", scale_rows=("hidden",))
FINAL_NORM_TIED = Axes("hidden")  # the tied head is scaled as an embedding


class MaskValues:
    """Mask values of one draw, spread out to the rows and columns they act on.

    Args:
        values: value of each gate by dimension, shapes as in `pruning.masks`; a missing dimension is all ones.
        source: shape of the model the weights belong to.
        tied: whether the head shares the embedding matrix.

    Raises:
        ValueError: a dimension that there is not.
    """

    def __init__(self, values: Mapping[str, Tensor], source: BackboneShape, *, tied: bool) -> None:
        full = {name: torch.ones(shape) for name, shape in mask_shapes(source).items()}
        device = next(iter(values.values())).device if values else torch.device("cpu")
        self.values = {name: values.get(name, ones.to(device)) for name, ones in full.items()}
        self.source, self.tied = source, tied
        self.masked = {AXIS_OF.get(name, name) for name in values}
        self.kept_hidden = int((self.values["hidden"] != 0).sum())
        unknown = sorted(set(values) - set(DIMENSIONS))
        if unknown:
            raise ValueError(f"No dimension is called {unknown[0]!r}; choose from: {', '.join(DIMENSIONS)}.")

    @property
    def norm_scale(self) -> float:
        """Factor for the weight of a full-width norm that must average over kept coordinates only."""
        return math.sqrt(self.norm_eps_scale)

    @property
    def norm_eps_scale(self) -> float:
        """Factor for its eps; where a draw keeps nothing, as for one coordinate, so that the norm gives zeros."""
        return max(self.kept_hidden, 1) / self.source.hidden_size

    def kept_layers(self) -> list[int]:
        """Blocks that stay, in order."""
        return [index for index, value in enumerate(self.values["layer"].tolist()) if value != 0]

    def along(self, axis: str, layer: int | None) -> Tensor:
        """Mask values along an axis of a weight: (D,), (I,), (H * head_dim,), (G * head_dim,) or a scalar.

        `query_head` is `query` without the factor of the KV group, which the group's values carry already.
        """
        if axis == "hidden":
            return self.values["hidden"]
        if layer is None:
            raise AssertionError(f"axis {axis!r} belongs to a layer")
        if axis == "layer":
            return self.values["layer"][layer]
        if axis == "intermediate":
            return self.values["intermediate"][layer]
        group, heads = self.values["head"][layer], self.values["query_head"][layer]
        by_head = {"key_value": group, "query_head": heads.flatten(), "query": (group[:, None] * heads).flatten()}
        return by_head[axis].repeat_interleave(self.source.head_dim)

    def rule(self, name: str) -> tuple[Axes, int | None]:
        """The rule for a parameter and the layer it is in.

        Raises:
            ValueError: a parameter that is not part of a Llama.
        """
        found = LAYER.search(name)
        if found:
            module, kind = found[2].rsplit(".", 1)
            if module in RULES and kind in ("weight", "bias"):
                return RULES[module], int(found[1])
        elif name.endswith("embed_tokens.weight"):
            return EMBEDDING, None
        elif name.endswith("lm_head.weight"):
            return HEAD, None
        elif name.endswith("norm.weight"):
            return (FINAL_NORM_TIED if self.tied else FINAL_NORM), None
        raise ValueError(f"{name} is not a parameter of a Llama; only Llama-shaped models can be pruned.")

    def scaled(self, name: str, weight: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """The weight multiplied by its mask values; the same tensor where nothing scales it.

        Args:
            name: the parameter's.
            weight: all of it, or only some of its rows and columns.
            rows: indices in the whole parameter of the rows given; None for all.
            columns: of the columns given; None for all.
        """
        axes, layer = self.rule(name)
        for axis in axes.scale_rows:
            if axis not in self.masked:
                continue
            values = self.along(axis, layer).to(weight.dtype)
            if rows is not None and values.ndim:
                values = values[rows]
            weight = weight * (values[:, None] if values.ndim and weight.ndim == 2 else values)
        for axis in axes.scale_columns:
            if axis not in self.masked or weight.ndim == 1:  # a bias has no columns
                continue
            values = self.along(axis, layer).to(weight.dtype)
            weight = weight * (values if columns is None else values[columns])
        return weight

    def kept(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Indices of the rows and columns that slicing keeps; None for all of them."""
        axes, layer = self.rule(name)
        rows, columns = (
            self.along(axis, layer).nonzero().flatten() if axis is not None else None
            for axis in (axes.rows, axes.columns)
        )
        return rows, columns


def masked_parameters(
    parameters: Mapping[str, Tensor], masks: MaskValues, eps: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights and norm eps that turn the stock forward pass into the masked one.

    Args:
        parameters: the stock model's, by name.
        masks: one draw.
        eps: the stock eps of every norm, by the name of its buffer, scalars.

    Returns:
        Only those tensors that differ from the stock ones, for `torch.func.functional_call`.
    """
    replaced = {}
    for name, weight in parameters.items():
        scaled = masks.scaled(name, weight)
        if name.endswith("norm.weight"):
            scaled = scaled * masks.norm_scale
        if scaled is not weight:
            replaced[name] = scaled
    return replaced | {name: value * masks.norm_eps_scale for name, value in eps.items()}
