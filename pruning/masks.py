"""The mask set of a model: one gate for each hidden coordinate, layer, KV group and intermediate unit that may go.

    hidden        (D,)       a coordinate of the residual stream, everywhere
    layer         (L,)       a block: its attention and its MLP
    head          (L, G)     a KV group with its query heads (a single head where attention is multi-head)
    intermediate  (L, I)     a unit of the MLP
    query_head    (L, G, g)  a query head inside a KV group; every group keeps equally many

A dimension whose target equals its source gets no mask: a constraint of zero sparsity is never met exactly and its
multipliers would climb for ever. What masks do to weights is in `pruning.masked_weights`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning.hard_concrete import (
    MARGIN,
    clamp_,
    deterministic_mask,
    expected_score,
    initial_log_alpha,
    sample,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pruning.shape import BackboneShape

DIMENSIONS = ("hidden", "layer", "head", "intermediate", "query_head")


def mask_shapes(source: BackboneShape) -> dict[str, tuple[int, ...]]:
    """Shape of the log_alpha of every dimension."""
    layers = source.num_layers
    return {
        "hidden": (source.hidden_size,),
        "layer": (layers,),
        "head": (layers, source.num_kv_heads),
        "intermediate": (layers, source.intermediate_size),
        "query_head": (layers, source.num_kv_heads, source.heads_per_group),
    }


class Masks(nn.Module):
    """Learned gates between a source and a target shape.

    Args:
        source: shape of the model.
        target: shape to end on; dimensions that do not change get no mask.
        seed: of the initial logits and of every draw; the state of the generator is a buffer, so checkpoints carry it.
    """

    generator_state: Tensor

    def __init__(self, source: BackboneShape, target: BackboneShape, seed: int = 0) -> None:
        super().__init__()
        self.source, self.target = source, target
        generator = torch.Generator().manual_seed(seed)
        wanted = mask_shapes(target)
        self.log_alpha = nn.ParameterDict(
            {
                name: nn.Parameter(initial_log_alpha(torch.randn(shape, generator=generator)))
                for name, shape in mask_shapes(source).items()
                if shape[-1] != wanted[name][-1]
            }
        )
        self.register_buffer("generator_state", generator.get_state())

    def clamp(self) -> None:
        """Bring all logits into their range; the first thing every forward pass does."""
        for log_alpha in self.log_alpha.values():
            clamp_(log_alpha.data)

    def draw(self) -> dict[str, Tensor]:
        """One random value for each gate, drawn from the masks' own generator on the CPU."""
        generator = torch.Generator()
        generator.set_state(self.generator_state.cpu())
        values = {}
        for name, log_alpha in self.log_alpha.items():
            uniform = torch.empty(log_alpha.shape).uniform_(MARGIN, 1 - MARGIN, generator=generator)
            values[name] = sample(log_alpha, uniform.to(log_alpha.device))
        self.generator_state.copy_(generator.get_state())
        return values

    def deterministic(self, *, at_target: bool) -> dict[str, Tensor]:
        """Mask values without noise: cut to the target sizes, or to the sizes the gates expect at present."""
        keep = {name: shape[-1] for name, shape in mask_shapes(self.target).items()} if at_target else {}
        return {name: deterministic_mask(values.detach(), keep.get(name)) for name, values in self.log_alpha.items()}

    def scores(self) -> dict[str, Tensor]:
        """P(gate > 0) for every gate."""
        return {name: expected_score(log_alpha) for name, log_alpha in self.log_alpha.items()}

    def expected_sizes(self) -> dict[str, tuple[float, int]]:
        """Expected and target size of every masked dimension, the mean over layers where each layer has its own."""
        wanted = mask_shapes(self.target)
        return {
            name: (score.detach().sum(dim=-1).mean().item(), wanted[name][-1]) for name, score in self.scores().items()
        }


def expected_parameters(scores: Mapping[str, Tensor], source: BackboneShape) -> Tensor:
    """Expected number of prunable weights, spec section 4 (grouped-query: section 7).

    Args:
        scores: P(gate > 0) by dimension; one that is missing keeps all its units. Beside DIMENSIONS the reference's
            `head_layer` (L,) and `mlp` (L,) are understood, which split a layer's gate in two.
        source: shape of the unpruned model.

    Returns:
        A scalar, differentiable in the scores.
    """
    shape = mask_shapes(source)
    ones = {name: torch.ones(size) for name, size in shape.items()}
    hidden, layer, head, intermediate, query_head = (scores.get(name, ones[name]) for name in DIMENSIONS)
    attention_layer, mlp_layer = scores.get("head_layer", layer), scores.get("mlp", layer)
    in_group = 2 * source.head_dim * (query_head.sum(dim=-1) + 1)  # a column of q and o for each query head, k and v
    attention = (attention_layer[:, None] * head * in_group).sum()
    mlp = 3 * (mlp_layer[:, None] * intermediate).sum()
    return hidden.sum() * (attention + mlp)
