"""How much each gate matters to the loss, measured before masks are learned, and gates that start from it.

A unit's importance is the Fisher information of its gate: with all gates open, the mean over sequences of the squared
gradient of the loss with respect to the gate's value (Kwon et al., 2022, section 4.1, https://arxiv.org/abs/2204.00656).
That gradient is the sum of weight times gradient over all weights which the gate scales, so it is also the first-order
Taylor criterion of Molchanov et al., 2019 (https://arxiv.org/abs/1906.10771), over whole units.

A layer is too much for one gradient at an open gate. There are few of them, so each is left out, and the rise of the
loss is its importance (SLEB, https://arxiv.org/abs/2402.09025; `pruning.drop_layers` does this one layer at a time).

Beyond Sheared-LLaMA, whose gates all start open and equal; no preset does it by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from drama_models.errors import TrainingError
from pruning.drop_layers import losses_without, mean_loss
from pruning.hard_concrete import LOG_ALPHA_LIMIT, expected_score
from pruning.masks import mask_shapes
from pruning.mixture import MixedSequences

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from pruning.corpus import Corpus
    from pruning.masked_model import MaskedCausalLM
    from pruning.shape import BackboneShape

SMALLEST = 1e-12  # of an importance, so that it has a logarithm; a layer can even lower the loss by going


@dataclass(frozen=True, kw_only=True)
class ImportanceSettings:
    """What gates are judged on, and how far apart they start."""

    sequences: int = 256
    """Training sequences, one gradient each; from all domains by size."""
    layer_sequences: int = 64
    """How many of them are also read without each layer, where layers are to go."""
    sequence_length: int = 1024
    """Tokens in a sequence."""
    spread: float = 2.0
    """Standard deviation of a row's log_alphas at the start; from a run with steps enough to judge anew, less."""

    def __post_init__(self) -> None:
        if not 0 < self.layer_sequences <= self.sequences or self.sequence_length < 2 or self.spread <= 0:
            raise ValueError(
                f"layer_sequences={self.layer_sequences} must be from 1 to sequences={self.sequences}, "
                f"sequence_length={self.sequence_length} at least 2, and spread={self.spread} above 0."
            )

    def tokens(self, source: BackboneShape, target: BackboneShape) -> int:
        """Tokens that are read: every sequence once, and where layers go some again, whole and without each layer."""
        again = source.num_layers + 1 if target.num_layers < source.num_layers else 0
        return (self.sequences + self.layer_sequences * again) * self.sequence_length


def start_from_importance(model: MaskedCausalLM, corpus: Corpus, settings: ImportanceSettings, seed: int) -> None:
    """Measure every gate and set its log_alpha, so that each row expects its target size and the important lead.

    Args:
        model: with gates of any value; it is left as it was, but for them.
        corpus: tokenised text, of which training sequences are read.
        settings: how many.
        seed: of the draw of sequences.

    Raises:
        TrainingError: a loss that is not a finite number.
    """
    device = next(model.parameters()).device
    data = MixedSequences(corpus, {}, settings.sequence_length, settings.sequences, seed)
    batches = [{name: row[None].to(device) for name, row in data[number].items()} for number in range(len(data))]
    importance = gate_importance(model, batches)
    if "layer" in importance:
        importance["layer"] = layer_importance(model, batches[: settings.layer_sequences])
    for name, values in importance.items():
        if not values.isfinite().all():
            raise TrainingError(
                f"The measured importance of {name} is not finite: the source model's loss is not a number on some of "
                "the text. Look at both; a float16 model that overflows has to be converted first."
            )
    wanted = mask_shapes(model.masks.target)
    with torch.no_grad():
        for name, log_alpha in model.masks.log_alpha.items():
            log_alpha.copy_(starting_log_alpha(importance[name], wanted[name][-1], settings.spread))


def gate_importance(model: MaskedCausalLM, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over batches, usually one sequence each, of the squared gradient of the loss at open gates.

    Args:
        model: any mode; it reads in evaluation mode.
        batches: `input_ids` and `labels`, (B, T), int64, on the model's device.

    Returns:
        By dimension that has gates, shapes as in `pruning.masks`, float32.
    """
    was_training, count = model.training, 0
    model.eval()
    gates = {name: torch.ones_like(values, requires_grad=True) for name, values in model.masks.log_alpha.items()}
    squares = {name: torch.zeros_like(gate, requires_grad=False) for name, gate in gates.items()}
    for batch in batches:
        loss = model.call_with(gates, **batch, use_cache=False).loss
        for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            squares[name] += gradient.square()
        count += 1
    model.train(was_training)
    return {name: square / count for name, square in squares.items()}


def layer_importance(model: MaskedCausalLM, batches: list[dict[str, Tensor]]) -> Tensor:
    """Rise of the loss without each layer, nats a token, (L,)."""
    was_training, stock = model.training, model.model
    model.eval()
    layers = range(model.masks.source.num_layers)
    without = losses_without(stock, layers, batches)
    rise = torch.tensor([without[layer] for layer in layers]) - mean_loss(stock, batches)
    model.train(was_training)
    return rise


def starting_log_alpha(importance: Tensor, keep: int, spread: float) -> Tensor:
    """Logits in the order of importance, whose expected size is the target in every row.

    Logarithms of importances, standardised row by row, are scaled to `spread` and shifted together until P(gate > 0)
    sums to `keep`.

    Args:
        importance: (units,) or (rows, ..., units), at least 0.
        keep: units of each row that stay, from 1 to all but one.
        spread: standard deviation of the logits, before they are clamped to the range of gates.

    Returns:
        Same shape, float32.
    """
    logs = importance.float().clamp_min(SMALLEST).log()
    deviation = logs.std(dim=-1, keepdim=True).clamp_min(SMALLEST)
    logits = (logs - logs.mean(dim=-1, keepdim=True)) / deviation * spread
    reach = 2 * LOG_ALPHA_LIMIT + logits.abs().amax(dim=-1, keepdim=True)
    low, high = -reach, reach
    for _ in range(60):  # halving: more than float32 can tell apart
        middle = (low + high) / 2
        size = expected_score(_clamped(logits + middle)).sum(dim=-1, keepdim=True)
        low, high = torch.where(size < keep, middle, low), torch.where(size < keep, high, middle)
    return _clamped(logits + high)


def _clamped(logits: Tensor) -> Tensor:
    return logits.clamp(-LOG_ALPHA_LIMIT, LOG_ALPHA_LIMIT)
