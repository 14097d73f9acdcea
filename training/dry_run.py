"""What a training run will be, before anything is trained: data, tokens, steps and an estimate of memory.

Datasets and the collection of the evaluation are opened, so that caches are built and mistakes found; of the backbone
configuration and tokenizer are read, and of its weights names and sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModel

from drama_models.hardware import train_in_bf16
from drama_models.prompts import token_ids
from training.evaluation import CollectionEvaluator
from training.lora import check_targets, is_target
from training.prompts import in_context_documents, in_context_queries
from training.start import encoder_tokenizer
from training.train import as_published, check_backbones, check_dims, open_plan, steps_of
from training.trainer import training_arguments

if TYPE_CHECKING:
    from training.data.sampling import BatchPlan
    from training.lora import Lora
    from training.recipe import TrainRecipe

SAMPLED_STEPS = 4
TRAINED_BYTES, FROZEN_BYTES = 16, 4  # of a parameter: float32 weight, gradient and Adam's two moments; weight alone
STATES_PER_LAYER = 8  # of the hidden size kept for the way back: norms, projections, attention, residuals
WIDENED_PER_LAYER = 4  # of the intermediate size: gate, activation, up, product
GIB = 1 << 30


@dataclass(frozen=True)
class Forecast:
    """Figures of a run that has not begun."""

    queries: dict[str, int]
    """Of each dataset."""
    batches_per_epoch: dict[str, int]
    """Of each dataset, at its weight in the mixture."""
    steps: int
    epochs: float
    texts_per_step: float
    """Queries and documents, absent ones not counted."""
    tokens_per_step: float
    """Mean of the first steps, on one device."""
    parameters: int
    """Of all encoders, embeddings included."""
    trained_parameters: int
    """Fewer under LoRA."""
    weights_gib: float
    """Weights, gradients and the optimiser's moments."""
    activations_gib: float
    """Of the tokens that are encoded at a time."""

    def __str__(self) -> str:
        rows = [
            f"{name}: {count:,} queries, {self.batches_per_epoch[name]:,} batches an epoch"
            for name, count in self.queries.items()
        ]
        rows += [
            f"steps: {self.steps:,}, {self.epochs:.3g} epochs, of {self.texts_per_step:,.0f} texts and "
            f"{self.tokens_per_step:,.0f} tokens on a device: {self.tokens_per_step * self.steps:,.0f} tokens",
            f"parameters: {self.parameters:,}, of which {self.trained_parameters:,} are trained",
            f"memory, roughly: {self.weights_gib:.2f} GiB for weights and optimiser, {self.activations_gib:.2f} GiB "
            "for the tokens encoded at a time (chunk_tokens and gradient_checkpointing lower it)",
        ]
        return "\n".join(rows)


def forecast(recipe: TrainRecipe) -> Forecast:
    """Look ahead at a run.

    Raises:
        CollectionError: malformed data, unknown ids, or fewer queries than a batch; no judged query to evaluate on.
        ModelFolderError: a backbone is not a complete folder, or cannot attend in the direction that is asked for.
        LengthError: texts may get longer than a backbone has position embeddings for.
        RecipeError: settings of the datasets that do not fit together.
        TrainingError: Matryoshka sizes beyond the embedding, or LoRA targets that the backbone does not have.
    """
    recipe = as_published(recipe) if recipe.continue_retriever else recipe
    check_backbones(recipe)
    if recipe.evaluation:
        CollectionEvaluator(recipe.evaluation)
    plan = open_plan(recipe, training_arguments(recipe))
    steps = steps_of(recipe, plan)
    texts, tokens = _sampled(recipe, plan)
    config = AutoConfig.from_pretrained(recipe.backbone)
    check_dims(recipe.objective.dims, config.hidden_size)
    with torch.device("meta"):
        backbone = AutoModel.from_config(config)
    encoders = 2 if recipe.encoder.two_encoders else 1
    parameters = encoders * sum(weight.numel() for weight in backbone.parameters())
    if recipe.encoder.lora:
        check_targets(backbone, recipe.encoder.lora)
    trained = encoders * lora_parameters(backbone, recipe.encoder.lora) if recipe.encoder.lora else parameters
    at_once = min(tokens, recipe.chunk_tokens or tokens)
    frozen = parameters if recipe.encoder.lora else 0
    return Forecast(
        queries={dataset.name: len(dataset) for dataset in plan.datasets},
        batches_per_epoch=dict(zip((dataset.name for dataset in plan.datasets), plan.batches_per_epoch, strict=True)),
        steps=steps,
        epochs=steps * recipe.gradient_accumulation / plan.steps_per_epoch,
        texts_per_step=texts,
        tokens_per_step=tokens,
        parameters=parameters,
        trained_parameters=trained,
        weights_gib=(trained * TRAINED_BYTES + frozen * FROZEN_BYTES) / GIB,
        activations_gib=at_once * _activation_bytes(recipe, config) / GIB,
    )


def lora_parameters(backbone: torch.nn.Module, lora: Lora) -> int:
    """Parameters of the low-rank updates: rank * (in + out) for each linear layer that has one."""
    return sum(
        lora.rank * (module.in_features + module.out_features)
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("pooler") and is_target(name, lora.targets)
    )


def _sampled(recipe: TrainRecipe, plan: BatchPlan) -> tuple[float, float]:
    """Texts and tokens of a step, the mean over the first ones."""
    settings, encoder = recipe.in_context, recipe.encoder
    tokenizer = encoder_tokenizer(recipe.backbone, settings.tags.tokens if settings else ())
    count = min(SAMPLED_STEPS, plan.steps_per_epoch)
    texts = tokens = 0
    for step in range(count):
        batch = plan.batch(step)
        if settings:
            queries = in_context_queries(batch, tokenizer, settings, seed=recipe.seed, step=step)
            documents = in_context_documents(batch, tokenizer, settings)
        else:
            prompted = [encoder.query_prompt + text for text in batch.queries]
            queries = token_ids(prompted, recipe.query_length or encoder.max_length, tokenizer)
            prompted = [encoder.document_prompt + text for text in batch.documents]
            documents = token_ids(prompted, encoder.max_length, tokenizer)
        present = [ids for ids, absent in zip(documents, batch.absent, strict=True) if not absent]
        texts += len(queries) + len(present)
        tokens += sum(map(len, (*queries, *present)))
    share = recipe.gradient_accumulation / count
    return texts * share, tokens * share


def _activation_bytes(recipe: TrainRecipe, config: object) -> int:
    """Of one token: what every layer keeps for its way back, or one layer and every layer's input."""
    hidden, layers = getattr(config, "hidden_size", 0), getattr(config, "num_hidden_layers", 0)
    inside = STATES_PER_LAYER * hidden + WIDENED_PER_LAYER * (getattr(config, "intermediate_size", None) or 4 * hidden)
    kept = layers * hidden + inside if recipe.encoder.gradient_checkpointing else layers * inside
    return kept * (2 if train_in_bf16(recipe.precision) else 4)
