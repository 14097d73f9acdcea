"""Training: the student's embedding of a text is pulled to the teacher's of the same text, and nothing else.

Batches hold texts of like length, so that little is computed for padding. Weights, Adam's averages and the step are
kept together in one file, so that a killed run goes on where it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from drama_models.folders import atomic_file
from training.objectives.embedding_distillation import embedding_distillation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import BertModel

    from demo.make_nano.recipe import NanoRecipe

SORTED_BATCHES = 16  # so many are drawn at once and sorted by length
ENCODED_AT_ONCE = 32
KEEP_EVERY = 64  # steps between checkpoints
WARM_UP = 0.05  # share of the steps
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Taught:
    """Texts as token ids, ends included, and the teacher's embeddings, (n, D)."""

    ids: list[NDArray[np.int64]]
    teacher: NDArray[np.float16]


def batches_of(lengths: Sequence[int], recipe: NanoRecipe) -> list[NDArray[np.int64]]:
    """Every text once an epoch, as rows; a function of the seed."""
    generator = np.random.default_rng(recipe.seed)
    batches: list[NDArray[np.int64]] = []
    for _ in range(recipe.epochs):
        order = generator.permutation(len(lengths))
        for start in range(0, len(order), recipe.batch_size * SORTED_BATCHES):
            group = order[start : start + recipe.batch_size * SORTED_BATCHES]
            group = group[np.argsort([lengths[row] for row in group], kind="stable")]
            parts = [group[at : at + recipe.batch_size] for at in range(0, len(group), recipe.batch_size)]
            batches += [parts[number] for number in generator.permutation(len(parts))]
    return batches


def embed(model: BertModel, ids: Sequence[NDArray[np.int64]]) -> Tensor:
    """Mean of the last hidden states over each text's tokens, (n, D)."""
    rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in ids], batch_first=True)
    lengths = torch.tensor([[len(row)] for row in ids])
    mask = (torch.arange(rows.shape[1]) < lengths).long()  # (n, T)
    states = model(input_ids=rows, attention_mask=mask).last_hidden_state  # (n, T, D)
    return (states * mask[..., None]).sum(1) / lengths


def encode(model: BertModel, tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeddings of unit length, (n, D)."""
    ids = [np.array(found.ids) for found in tokenizer.encode_batch(list(texts))]
    out = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    for start in range(0, len(order), ENCODED_AT_ONCE):
        batch = order[start : start + ENCODED_AT_ONCE]
        with torch.inference_mode():
            pooled = embed(model, [ids[number] for number in batch])
        out[batch] = torch.nn.functional.normalize(pooled).numpy()
    return out


def distil(
    model: BertModel, taught: Taught, recipe: NanoRecipe, checkpoint: Path, measure: Callable[[int, float], None]
) -> None:
    """Train the model in place.

    Args:
        model: the student.
        taught: what it learns.
        recipe: epochs, rate, batch size.
        checkpoint: file to go on from, and to keep the run in.
        measure: called with step and mean loss since the last call, every `evaluate_every` steps and at the end.
    """
    parameters = dict(model.named_parameters())
    optimiser = torch.optim.Adam(parameters.values(), lr=recipe.learning_rate)
    batches = batches_of([len(row) for row in taught.ids], recipe)
    done = _restore(checkpoint, parameters, optimiser) if checkpoint.is_file() else 0
    losses = []
    for step, loss in _steps(model, taught, recipe, optimiser, batches, done):
        losses.append(loss)
        last = step == len(batches)
        if last or step % KEEP_EVERY == 0:
            _keep(checkpoint, parameters, optimiser, step)
        if last or step % recipe.evaluate_every == 0:
            measure(step, float(np.mean(losses)))
            losses.clear()


def rate_at(step: int, total: int) -> float:
    """Share of the learning rate at a step counted from 0: up linearly, then down linearly to zero."""
    warm = max(int(WARM_UP * total), 1)
    return min((step + 1) / warm, (total - step) / max(total - warm, 1))


def _steps(
    model: BertModel,
    taught: Taught,
    recipe: NanoRecipe,
    optimiser: torch.optim.Optimizer,
    batches: list[NDArray[np.int64]],
    done: int,
) -> Iterator[tuple[int, float]]:
    for number in range(done, len(batches)):
        rows = batches[number]
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * rate_at(number, len(batches))
        teacher = torch.from_numpy(taught.teacher[rows].astype(np.float32))
        loss = embedding_distillation(embed(model, [taught.ids[row] for row in rows]), teacher)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield number + 1, loss.item()


def _keep(path: Path, parameters: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer, step: int) -> None:
    tensors = {name: value.detach() for name, value in parameters.items()}
    for name, value in parameters.items():
        tensors |= {f"{name}/{moment}": optimiser.state[value][moment] for moment in MOMENTS}
    with atomic_file(path) as partial:
        save_file(tensors, partial, metadata={"step": json.dumps(step)})


def _restore(path: Path, parameters: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
    """Read what `_keep` wrote; returns its step."""
    with safe_open(path, "pt") as file:
        step = int(json.loads(file.metadata()["step"]))
    tensors = load_file(path)
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[name])
            moments = {moment: tensors[f"{name}/{moment}"] for moment in MOMENTS}
            optimiser.state[value] = {"step": torch.tensor(float(step)), **moments}
    return step
