"""Shapes of Llama backbones: the source's, the one to cut to, and how many parameters each has.

L layers, D hidden, H query heads in G KV groups of `head_dim`, I intermediate. What `pruning.masks` learns to reach and
`pruning.slicing` cuts to. Counts as in spec section 9 (Llama layout).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from drama_models.errors import ShapeError
from pruning.hard_concrete import MAX_SPARSITY

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True, kw_only=True)
class TargetShape:
    """Sizes after pruning; a size left out stays as in the source model."""

    hidden_size: int | None = None
    """Width of the residual stream."""
    num_layers: int | None = None
    """Transformer blocks."""
    num_heads: int | None = None
    """Query heads in each layer."""
    num_kv_heads: int | None = None
    """KV heads in each layer. Left out, KV groups are kept or dropped whole; else query heads go inside groups too."""
    intermediate_size: int | None = None
    """Width of each MLP."""


@dataclass(frozen=True, kw_only=True)
class BackboneShape:
    """All sizes of a Llama backbone."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def of(cls, config: LlamaConfig) -> BackboneShape:
        """Sizes from a transformers configuration."""
        return cls(
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            attention_bias=bool(config.attention_bias),
            mlp_bias=bool(config.mlp_bias),
        )

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one KV head; 1 for multi-head attention."""
        return self.num_heads // self.num_kv_heads

    def cut_to(self, target: TargetShape) -> BackboneShape:
        """The shape after pruning.

        Raises:
            ShapeError: a target above the source, below what gates can reach, heads that split a KV group, or a
                hidden size that transformers refuses beside them.
        """
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        for field in fields(target):
            wanted, source = getattr(target, field.name), sizes[field.name]
            if wanted is not None:
                _check_size(field.name, wanted, source)
                sizes[field.name] = wanted
        if target.num_kv_heads is None:
            sizes["num_kv_heads"] = _whole_groups(sizes["num_heads"], self.heads_per_group)
        else:
            fitting = [target.num_kv_heads * heads for heads in range(1, self.heads_per_group + 1)]
            if sizes["num_heads"] not in fitting:
                raise ShapeError(
                    f"Target num_heads={sizes['num_heads']} does not fit num_kv_heads={target.num_kv_heads}: a KV "
                    f"group of the source has {self.heads_per_group} query heads; set num_heads to one of {fitting}."
                )
        if sizes["hidden_size"] % sizes["num_heads"]:
            below = sizes["hidden_size"] // sizes["num_heads"] * sizes["num_heads"]
            raise ShapeError(
                f"Target hidden_size={sizes['hidden_size']} is not a multiple of num_heads={sizes['num_heads']}, which "
                f"transformers refuses in a Llama configuration; try hidden_size={below or sizes['num_heads']}."
            )
        return BackboneShape(**sizes)

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's q, k, v and o projections, without biases."""
        return self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)

    @property
    def mlp_parameters(self) -> int:
        """Weights of one layer's gate, up and down projections, without biases."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def norm_parameters(self) -> int:
        """Weights of all norms: two in each layer and the final one."""
        return self.hidden_size * (2 * self.num_layers + 1)

    @property
    def bias_parameters(self) -> int:
        """Biases of all projections, where the model has them."""
        attention = self.head_dim * (self.num_heads + 2 * self.num_kv_heads) + self.hidden_size
        mlp = 2 * self.intermediate_size + self.hidden_size
        return self.num_layers * (self.attention_bias * attention + self.mlp_bias * mlp)

    @property
    def prunable_parameters(self) -> int:
        """Weights that masks count: all attention and MLP projections."""
        return self.num_layers * (self.attention_parameters + self.mlp_parameters)

    @property
    def non_embedding_parameters(self) -> int:
        """Everything but the embedding matrix and the language-model head."""
        return self.prunable_parameters + self.norm_parameters + self.bias_parameters

    def total_parameters(self, vocabulary: int, *, tied: bool) -> int:
        """All weights, with one embedding matrix and, if it is not tied to it, the head's."""
        matrices = 1 if tied else 2
        return self.non_embedding_parameters + matrices * vocabulary * self.hidden_size


def check_smaller(source: BackboneShape, target: BackboneShape) -> None:
    """Refuse a target for which there would be no masks.

    Raises:
        ShapeError: nothing is cut.
    """
    if target == source:
        raise ShapeError(f"The target has all the sizes of the source ({source}), so nothing would be cut; lower some.")


def _check_size(name: str, wanted: int, source: int) -> None:
    least = max(1, int(source * (1 - MAX_SPARSITY)) + 1)
    if not least <= wanted <= source:
        raise ShapeError(
            f"Target {name}={wanted} cannot be cut from a source with {name}={source}; "
            f"choose between {least} and {source}."
        )


def _whole_groups(num_heads: int, group: int) -> int:
    """KV heads that stay with this many query heads, where groups are not cut inside."""
    if num_heads % group:
        below = num_heads // group * group
        raise ShapeError(
            f"Target num_heads={num_heads} splits a KV group of {group} query heads; try num_heads={below or group}, "
            "set num_kv_heads to cut inside groups, or expand the KV heads first (`python -m pruning expand-kv-heads`)."
        )
    return num_heads // group
