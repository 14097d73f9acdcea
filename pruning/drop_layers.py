"""Drop whole layers before masks are learned: one after another, each time the one whose absence raises the loss least.

Gates of layers are few and heavy, and a run of a few hundred steps opens and closes them by luck (docs/pruning.md).
Leaving a layer out and reading some text takes one forward pass. What is left of the target is then learned as ever:
where no more layers are to go, there is no mask for them.

Song et al., 2024, "SLEB", https://arxiv.org/abs/2402.09025. Beyond Sheared-LLaMA, so no preset does it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path  # noqa: F401 (inherited fields are of this type, which the command line looks up here)
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from drama_models.errors import ShapeError
from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance
from drama_models.recipe import check_least
from pruning.corpus import Corpus
from pruning.language_modelling import StageFolders
from pruning.masks import mask_shapes
from pruning.mixture import MixedSequences
from pruning.model_folder import load_causal_model, read_config
from pruning.shape import BackboneShape
from pruning.slicing import write_sliced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DropLayersSettings:
    """What the layers are judged on."""

    sequences: int = 64
    """Training sequences that the model reads without each layer."""
    sequence_length: int = 1024
    """Tokens in a sequence."""
    batch_size: int = 8
    """Sequences read at a time."""
    seed: int = 0
    """Of the draw of sequences, from all domains by size."""

    def __post_init__(self) -> None:
        check_least(self, {"sequences": 1, "sequence_length": 2, "batch_size": 1, "seed": 0})

    def tokens(self, num_layers: int, wanted: int) -> int:
        """Tokens that are read until so many layers are left: all sequences, once for each layer that might go."""
        return sum(range(wanted + 1, num_layers + 1)) * self.sequences * self.sequence_length


@dataclass(frozen=True, kw_only=True)
class DropLayersRecipe(DropLayersSettings, StageFolders):
    """The same with folders, and how many layers are to stay."""

    num_layers: int
    """Layers of the model to make."""


def drop_layers(recipe: DropLayersRecipe) -> dict[str, Any]:
    """Write the model without the layers that it misses least.

    Returns:
        The provenance record of the made folder; its figures are the kept layers, the tokens read, and `losses`: for
        each layer that was dropped, nats a token without it and without each of those that could have gone instead.

    Raises:
        ShapeError: a number of layers that the model cannot be cut to.
        CorpusError: corpus and model do not fit.
        ModelFolderError: the model is not whole.
    """
    corpus, shape = Corpus.open(recipe.corpus), BackboneShape.of(read_config(recipe.model))
    corpus.check_tokenizer(recipe.model)
    if not 0 < recipe.num_layers < shape.num_layers:
        raise ShapeError(
            f"{recipe.model} has {shape.num_layers} layers and cannot be cut to {recipe.num_layers}; set num_layers to "
            f"1 to {shape.num_layers - 1}."
        )
    data = MixedSequences(corpus, {}, recipe.sequence_length, recipe.sequences, recipe.seed)
    model = load_causal_model(recipe.model).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    batches = list(DataLoader(data, recipe.batch_size))
    kept = list(range(shape.num_layers))
    losses: list[dict[str, Any]] = []
    while len(kept) > recipe.num_layers:
        without = losses_without(model, kept, batches)
        least = min(without, key=lambda layer: without[layer])
        kept.remove(least)
        losses.append({"dropped": least, "loss": {str(layer): round(loss, 5) for layer, loss in without.items()}})
        words = f"{len(kept)} layers left, {recipe.num_layers} wanted | layer {least} gone, loss {without[least]:.4f}"
        print(f"drop-layers | {words}", file=sys.stderr, flush=True)  # noqa: T201
    del model
    measured = {"tokens": recipe.tokens(shape.num_layers, recipe.num_layers), "losses": losses}
    with atomic_folder(recipe.out) as partial:
        _, figures = write_sliced(partial, recipe.model, _masks(shape, kept))
        return write_provenance(
            partial,
            stage="pruning.drop_layers",
            recipe=recipe,
            inputs={"model": recipe.model, "corpus": recipe.corpus},
            figures=figures | measured,
            parent=recipe.model,
        )


def losses_without(model: Any, kept: Sequence[int], batches: Sequence[Mapping[str, Tensor]]) -> dict[int, float]:
    """Nats a token of a model cut to some of its layers, without each of these in turn.

    Args:
        model: a Llama-shaped causal language model in eval mode; left as it was.
        kept: numbers of the layers that are still there.
        batches: `input_ids` and `labels`, (B, T), int64.

    Returns:
        By number of the layer that was left out.
    """
    stack, losses = model.model.layers, {}
    try:
        for layer in kept:
            model.model.layers = torch.nn.ModuleList([stack[number] for number in kept if number != layer])
            losses[layer] = mean_loss(model, batches)
    finally:
        model.model.layers = stack
    return losses


@torch.no_grad()
def mean_loss(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Nats a token of a causal language model over batches of equally long sequences, `input_ids` and `labels`."""
    total, rows, device = 0.0, 0, next(model.parameters()).device
    for batch in batches:
        given = {name: values.to(device) for name, values in batch.items()}
        total += model(**given, use_cache=False).loss.item() * len(given["input_ids"])
        rows += len(given["input_ids"])
    return total / rows


def _masks(shape: BackboneShape, kept: Sequence[int]) -> dict[str, Tensor]:
    """Masks of ones, but for the layers that go."""
    values = {name: torch.ones(size) for name, size in mask_shapes(shape).items()}
    values["layer"] = torch.zeros_like(values["layer"]).index_fill(0, torch.tensor(kept), 1.0)
    return values
