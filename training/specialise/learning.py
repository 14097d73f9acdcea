"""Training on the labelled lists: listwise distillation with a small contrastive term, at all trained sizes.

The objective is that of https://arxiv.org/abs/2502.19712, section 3. The checkpoint with the best nDCG@10 on the dev
queries is kept: they are searched in the passages that any ranker found for them and a draw of others, so that an
evaluation does not take longer than the training.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from drama_models.checkpoints import checkpoint_folder
from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.folders import sha256_of_file
from training.data.datasets import DatasetRecipe
from training.data.examples import read_examples
from training.encoders import EncoderRecipe
from training.evaluation import EvaluationRecipe
from training.recipe import ObjectiveRecipe, TrainRecipe
from training.specialise.lists import lists_of
from training.specialise.splitting import drawn
from training.specialise.stages import content_hash
from training.train import train

if TYPE_CHECKING:
    from training.specialise.layout import RunFolder
    from training.specialise.lists import Rankers
    from training.specialise.settings import SpecialiseRecipe
    from training.specialise.stages import Stages

DEV_PASSAGES = 5000
EVALUATIONS = 10
FEWEST_STEPS, FEWEST_QUERIES = 8, 8  # of an epoch, and of a step: few examples make smaller batches, not fewer steps
LOG_EVERY = 10
QUERY_TOKENS = 64
CHUNK_TOKENS = 16384
WARMUP_SHARE = 0.1


def learn(recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages, rankers: Rankers) -> dict[str, Any]:
    """Train the retriever; returns the figures of the training."""
    runs = [folder.run(name) for name in rankers.names]
    job: dict[str, Any] = {
        "collection": content_hash(folder.collection), "runs": [sha256_of_file(run) for run in runs],
        "seed": recipe.seed, "passages": DEV_PASSAGES,
    }  # fmt: skip
    stages.run("dev", job, [folder.dev], lambda: _write_dev(recipe, folder, rankers))
    model = next(iter(rankers.encoders.values()))
    training = train_recipe(recipe, folder, model, sum(1 for _ in read_examples(folder.examples / "examples.jsonl")))
    job = {
        "model": model.fingerprint(), "dev": content_hash(folder.dev), "epochs": recipe.epochs,
        "collection": sha256_of_file(Collection(folder.collection).corpus_file),
        "examples": sha256_of_file(folder.examples / "examples.jsonl"), "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate, "patience": recipe.patience, "precision": recipe.precision,
        "seed": recipe.seed, "candidates": recipe.candidates,
    }  # fmt: skip

    def start_over() -> None:
        """What an interrupted training on other examples left cannot be gone on with."""
        shutil.rmtree(checkpoint_folder(folder.retriever), ignore_errors=True)

    figures = stages.run(
        "train", job, [folder.retriever], lambda: dict(train(training)["figures"]), start_over=start_over
    )
    return {**figures, "batch_size": training.batch_size, "learning_rate": training.learning_rate}


def train_recipe(recipe: SpecialiseRecipe, folder: RunFolder, model: Encoder, examples: int) -> TrainRecipe:
    """What the trainer is told.

    Args:
        recipe: settings of the run.
        folder: of the run.
        model: the retriever to specialise.
        examples: number of training examples.
    """
    batch = max(min(FEWEST_QUERIES, examples), min(recipe.batch_size, examples // FEWEST_STEPS))
    steps = max(1, round(recipe.epochs * (examples // batch)))
    return TrainRecipe(
        backbone=recipe.model,
        out=folder.retriever,
        continue_retriever=True,
        encoder=EncoderRecipe(dropout=0.0),
        query_length=min(QUERY_TOKENS, model.profile.max_length),
        objective=ObjectiveRecipe.specialisation(
            similarity="cosine" if model.profile.normalise else "dot", dims=model.profile.dims
        ),
        steps=steps,
        batch_size=batch,
        negatives=recipe.candidates - 1,
        chunk_tokens=CHUNK_TOKENS,
        learning_rate=recipe.learning_rate,
        learning_rate_floor=0.1,
        warmup_steps=max(1, round(WARMUP_SHARE * steps)),
        weight_decay=0.01,
        max_grad_norm=1.0,
        precision=recipe.precision,
        seed=recipe.seed,
        device=recipe.device,
        cache=folder.work / "cache",
        log_every=max(1, min(LOG_EVERY, steps // (2 * EVALUATIONS))),
        evaluation=EvaluationRecipe(
            collection=folder.dev, split="dev", every=max(1, steps // EVALUATIONS), patience=recipe.patience
        ),
        datasets=[
            DatasetRecipe(
                name="specialise",
                task="retrieval",
                collection=folder.collection,
                examples=folder.examples / "examples.jsonl",
                shared_documents=True,
            )
        ],
    )


def _write_dev(recipe: SpecialiseRecipe, folder: RunFolder, rankers: Rankers) -> dict[str, int]:
    """Write the dev queries with the passages they are searched in."""
    collection = Collection(folder.collection)
    qrels, queries = collection.qrels("dev"), collection.queries()
    kept = {key for grades in qrels.values() for key in grades}
    for key, lists in lists_of(folder.queries, [folder.run(name) for name in rankers.names]):
        if key not in qrels:
            break
        kept |= {document for hits in lists for document, _ in hits}
    others = [record["_id"] for record in collection.records() if record["_id"] not in kept]
    kept |= set(drawn(others, max(DEV_PASSAGES - len(kept), 0), recipe.seed, str))
    records = (record for record in collection.records() if record["_id"] in kept)
    Collection.write(folder.dev, records, {key: queries[key] for key in qrels}, {"dev": qrels})
    return {"queries": len(qrels), "passages": len(kept)}
