"""Train a retriever from a backbone, in one run: open the data, build the encoder, train, write the folder.

DRAMA trains in one stage (arXiv 2502.18460, section 3); DRAGON's progressive iterations are stretches of one run that
begin anew but for the weights (arXiv 2302.07452, section 4).
"""

from __future__ import annotations

import json
import shutil
from bisect import bisect_left
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from drama_models import checkpoints
from drama_models.errors import TrainingError
from drama_models.folders import atomic_folder
from drama_models.layout import find_folders
from drama_models.model_folder import read_json
from drama_models.profile import DOCUMENT, EXAMPLES
from drama_models.provenance import read_provenance, write_provenance
from training.data.datasets import open_datasets
from training.data.sampling import BatchPlan
from training.encoders import backbones, build_encoder, merge_lora
from training.published import published_encoder
from training.start import add_special_tokens, check_backbone, write_start_folder
from training.step_data import StepData
from training.step_loss import StepLoss
from training.trainer import RetrieverTrainer, ran_out_of_patience, training_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

    from training.recipe import TrainRecipe


def train(recipe: TrainRecipe) -> dict[str, Any]:
    """Train a retriever and write it as a new folder that sentence-transformers loads.

    Goes on at the last checkpoint of an interrupted run with the same `out`. Under torchrun every process calls this
    and the main one writes.

    Returns:
        The provenance record of the made folder.

    Raises:
        ModelFolderError: a backbone is not a complete folder, cannot be found on the hub, has a damaged record of how
            it was made, or cannot attend in the direction that is asked for.
        LengthError: texts may get longer than a backbone has position embeddings for.
        CollectionError: malformed data, unknown ids, or fewer queries than a batch.
        TrainingError: the loss became non-finite, dims beyond the embedding, an interrupted run had other settings or
            left a damaged checkpoint, or another run is making the same folder.
    """
    source = as_found(recipe)
    recipe = as_published(source) if recipe.continue_retriever else recipe
    check_backbones(recipe)
    read_provenance(source.backbone)  # it goes into the made folder's own; a damaged one is told before training
    arguments = training_arguments(recipe)
    with arguments.main_process_first(local=False):  # caches are built once
        plan = open_plan(recipe, arguments)
    recipe = replace(recipe, steps=steps_of(recipe, plan), epochs=None)
    with checkpoints.claim(recipe.out):
        return _train(source, recipe, plan)


def _train(source: TrainRecipe, recipe: TrainRecipe, plan: BatchPlan) -> dict[str, Any]:
    """Train by a recipe whose steps are counted and whose encoders are known; `source` names their folders."""
    arguments = training_arguments(recipe)
    with arguments.main_process_first(local=False):
        if arguments.should_save:
            checkpoints.begin(recipe.out, recipe)
            _write_starts(recipe)
    torch.manual_seed(recipe.seed)  # of LoRA's first weights
    model = build(recipe)
    loss = StepLoss(
        model,
        recipe.objective.build(),
        chunk_tokens=recipe.chunk_tokens,
        cross_device_negatives=recipe.cross_device_negatives,
    )
    starts = iteration_starts(plan, recipe) if recipe.restart_iterations else [0]
    checkpoint = checkpoints.last_checkpoint(recipe.out)
    stopped = ran_out_of_patience(checkpoint, recipe) if checkpoint else None
    if stopped is not None:  # all that is missing is the folder
        recipe = replace(recipe, steps=stopped)
        arguments = training_arguments(recipe)
    trainer = RetrieverTrainer(recipe, arguments, model, StepData(plan, model, recipe), loss, starts)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if arguments.should_save:
        _write_folder(source, recipe, model, trainer, plan)
    trainer.accelerator.wait_for_everyone()
    return read_provenance(recipe.out) or {}


def as_found(recipe: TrainRecipe) -> TrainRecipe:
    """The recipe with the folders of a retriever that it names as on the hub, or by one of two encoders.

    Raises:
        ModelFolderError: one of them cannot be found.
    """
    if not recipe.continue_retriever:
        return recipe
    query, document = find_folders(recipe.backbone, recipe.document_backbone, None)
    return replace(recipe, backbone=query, document_backbone=document)


def as_published(recipe: TrainRecipe) -> TrainRecipe:
    """The recipe with the backbone's own encoders instead of its `encoder`.

    Raises:
        ModelFolderError: the backbone is not a retriever's folder.
    """
    own, folders = published_encoder(recipe.backbone, recipe.document_backbone)
    given = recipe.encoder
    kept = ("dropout", "lora", "gradient_checkpointing", "packed")
    encoder = replace(own, **{name: getattr(given, name) for name in kept})
    document_backbone = folders[1] if own.two_encoders else None
    return replace(recipe, encoder=encoder, backbone=folders[0], document_backbone=document_backbone)


def check_backbones(recipe: TrainRecipe) -> None:
    """Whether every backbone is complete, and can read texts so long in the direction that is asked for.

    Raises:
        ModelFolderError, LengthError: as `check_backbone`.
    """
    for folder in filter(None, (recipe.backbone, recipe.document_backbone)):
        check_backbone(folder, bidirectional=recipe.encoder.bidirectional, lengths=recipe.lengths)


def open_plan(recipe: TrainRecipe, arguments: SentenceTransformerTrainingArguments) -> BatchPlan:
    """The run's batches: datasets opened, caches built where they are missing.

    Raises:
        CollectionError: as `open_datasets`.
        RecipeError: as `open_datasets` and `BatchPlan`.
    """
    datasets = open_datasets(
        recipe.datasets,
        batch_size=recipe.batch_size,
        negatives=recipe.negatives,
        cache=recipe.cache,
        lists=recipe.objective.needs_lists,
        title_separator=recipe.encoder.title_separator,
    )
    return BatchPlan(datasets, seed=recipe.seed, world_size=arguments.world_size, rank=arguments.process_index)


def steps_of(recipe: TrainRecipe, plan: BatchPlan) -> int:
    """Optimiser steps of the run, whether the recipe counts steps or epochs."""
    if recipe.epochs is None:
        return recipe.steps
    return max(1, round(recipe.epochs * plan.steps_per_epoch / recipe.gradient_accumulation))


def iteration_starts(plan: BatchPlan, recipe: TrainRecipe) -> list[int]:
    """Optimiser steps at which an iteration of progressive supervision begins; [0] where there is one only."""

    def iteration(step: int) -> int:
        return plan.iteration(step * recipe.gradient_accumulation)

    last = iteration(recipe.steps - 1)
    return [bisect_left(range(recipe.steps), number, key=iteration) for number in range(1, last + 1)]


def build(recipe: TrainRecipe) -> SentenceTransformer:
    """The model to train, from the run's start folders.

    Raises:
        TrainingError: Matryoshka sizes beyond the embedding.
    """
    work = checkpoints.checkpoint_folder(recipe.out)
    document_start = work / "document_start" if recipe.document_backbone else None
    settings = recipe.in_context
    encoder = replace(recipe.encoder, max_length=settings.document_max_length) if settings else recipe.encoder
    model = build_encoder(work / "start", encoder, document_start=document_start, device=recipe.device)
    dims = recipe.objective.dims
    check_dims(dims, model.get_embedding_dimension() or 0)
    for backbone in backbones(model):
        backbone.config.matryoshka_dimensions = sorted(dims, reverse=True)
    if settings:  # what precedes a query depends on its task: one of the datasets, or another in words
        told = [row for row in recipe.datasets if row.instruction and row.name != DOCUMENT]
        model.prompts = {**recipe.encoder.prompts}
        model.prompts |= {row.name: settings.tags.before(row.instruction) for row in told}
    return model


def check_dims(dims: Sequence[int], hidden_size: int) -> None:
    """Whether all Matryoshka sizes can be cut from an embedding.

    Raises:
        TrainingError: one is beyond it.
    """
    if dims and max(dims) > hidden_size:
        raise TrainingError(f"dims={tuple(dims)} go beyond the backbone's {hidden_size}; use sizes up to that.")


def _write_starts(recipe: TrainRecipe) -> None:
    work = checkpoints.checkpoint_folder(recipe.out)
    for backbone, name in ((recipe.backbone, "start"), (recipe.document_backbone, "document_start")):
        if backbone is not None and not (work / name).is_dir():
            with atomic_folder(work / name, scratch=True) as partial:
                write_start_folder(backbone, partial, bidirectional=recipe.encoder.bidirectional)
                if recipe.in_context:
                    add_special_tokens(partial, recipe.in_context.tags.tokens, seed=recipe.seed)


def _write_folder(
    source: TrainRecipe, recipe: TrainRecipe, model: SentenceTransformer, trainer: RetrieverTrainer, plan: BatchPlan
) -> None:
    figures: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "examples": sum(len(dataset) for dataset in plan.datasets),
        "epochs": round(trainer.state.global_step * recipe.gradient_accumulation / plan.steps_per_epoch, 3),
    }
    if trainer.state.best_metric is not None:
        figures |= {"best_ndcg@10": trainer.state.best_metric, "best_step": trainer.state.best_global_step}
    merge_lora(model)
    with atomic_folder(recipe.out) as partial:
        model.save_pretrained(str(partial), create_model_card=False)
        _write_profile(source, recipe, partial)
        checkpoints.keep_log(recipe.out, partial)
        write_provenance(
            partial,
            stage="training.train",
            recipe=recipe,
            inputs=_inputs(source),
            figures=figures,
            parent=source.backbone,
        )
    checkpoints.remove_checkpoints(recipe.out)


def _write_profile(source: TrainRecipe, recipe: TrainRecipe, folder: Path) -> None:
    """What sentence-transformers' files have no word for: tags, stored examples, what stands behind a title."""
    path = folder / "config_sentence_transformers.json"
    stored = read_json(path)
    if recipe.in_context:
        stored["instruct_format"] = asdict(recipe.in_context.tags)
    if recipe.encoder.title_separator != " ":
        stored["title_separator"] = recipe.encoder.title_separator
    path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    if source.continue_retriever and (source.backbone / EXAMPLES).is_file():
        shutil.copy(source.backbone / EXAMPLES, folder / EXAMPLES)


def _inputs(recipe: TrainRecipe) -> dict[str, Path]:
    inputs = {"backbone": recipe.backbone}
    if recipe.document_backbone:
        inputs["document_backbone"] = recipe.document_backbone
    for dataset in recipe.datasets:
        inputs[f"collection of {dataset.name}"] = dataset.collection
        if dataset.examples:
            inputs[f"examples of {dataset.name}"] = dataset.examples
        inputs |= {f"{teacher.name} of {dataset.name}": teacher.run for teacher in dataset.teachers}
    return inputs
