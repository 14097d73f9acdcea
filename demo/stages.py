"""The chain in miniature: each stage takes folders under `demo/out` and makes one.

Text of the environment -> masks -> slice -> recovery -> contrastive training -> release -> index. The same training is
run once more from random initialisation of the same shape, to see what the pruned start is worth.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from demo.collect import collect
from demo.train_queries import write_training_data
from drama_models.cli import main as drama
from drama_models.collection import Collection
from drama_models.errors import DramaError
from drama_models.folders import atomic_folder
from drama_models.recipe import load_recipe
from export.release import ReleaseRecipe, release
from pruning.corpus import tokenise
from pruning.learn_masks import Gates, LearnMasksRecipe, learn_masks, load_masks
from pruning.recover import RecoverRecipe, recover
from pruning.slicing import slice_folder
from training.recipe import TrainRecipe
from training.start import write_start_folder
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
RECIPES = HERE / "recipes"
SOURCE = HERE / "source"
TRAIN_EXAMPLES = 6144  # what 48 steps of 128 read
GATES: Gates = "hard"  # few steps leave kept gates well below 1
HELD_OUT_SHARE = 100  # one document in this many


def make_collection(out: Path) -> None:
    """The documentation of this environment, as a BEIR folder."""
    counts = collect(out)
    print(json.dumps(counts))  # noqa: T201


def make_corpus(out: Path) -> None:
    """The same documents as plain text, tokenised for the source model."""
    text = out.parent / "text" / "documentation"
    shutil.rmtree(text, ignore_errors=True)
    text.mkdir(parents=True)
    with (
        (text / "train.jsonl").open("w", encoding="utf-8") as train_file,
        (text / "held_out.jsonl").open("w", encoding="utf-8") as held_out_file,
    ):
        for number, document in enumerate(Collection(out.parent / "collection").documents()):
            file = train_file if number % HELD_OUT_SHARE else held_out_file
            file.write(json.dumps({"text": document.content}, ensure_ascii=False) + "\n")
    tokenise(text.parent, SOURCE, out)


def make_masks(out: Path) -> None:
    """Learned masks on the source model."""
    learn_masks(load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml", out=out))


def make_sliced(out: Path) -> None:
    """The source model, cut to its masks."""
    masks = out.parent / "masks"
    slice_folder(masks, load_masks(masks, gates=GATES), out, {"gates": GATES})


def make_backbone(out: Path) -> None:
    """The sliced model after recovery."""
    recover(load_recipe(RecoverRecipe, RECIPES / "recover.yaml", out=out))


def make_train_data(out: Path) -> None:
    """Training examples from the documents, with BM25 hard negatives."""
    recipe = load_recipe(TrainRecipe, RECIPES / "train.yaml")
    with atomic_folder(out, scratch=True) as partial:
        counts = write_training_data(out.parent / "collection", partial, count=TRAIN_EXAMPLES, seed=recipe.seed)
    print(json.dumps(counts))  # noqa: T201


def make_retriever(out: Path) -> None:
    """The retriever, trained from the pruned and recovered backbone."""
    train(load_recipe(TrainRecipe, RECIPES / "train.yaml", out=out))


def make_untrained(out: Path) -> None:
    """The backbone as an encoder that has seen no training example."""
    with atomic_folder(out, scratch=True) as partial:
        write_start_folder(out.parent / "backbone", partial / "model", bidirectional=True)


def make_random_backbone(out: Path) -> None:
    """Random weights in the shape of the backbone."""
    backbone = out.parent / "backbone"
    recipe = load_recipe(TrainRecipe, RECIPES / "train.yaml")
    torch.manual_seed(recipe.seed)
    with atomic_folder(out, scratch=True) as partial:
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(backbone)).save_pretrained(partial)
        AutoTokenizer.from_pretrained(backbone).save_pretrained(partial)


def make_random_retriever(out: Path) -> None:
    """The retriever, trained just as long from random weights."""
    backbone = out.parent / "random_backbone"
    train(load_recipe(TrainRecipe, RECIPES / "train.yaml", out=out, backbone=backbone))


def make_release(out: Path) -> None:
    """The release folder, loaded by every installed client before it counts as made."""
    for client in release(load_recipe(ReleaseRecipe, RECIPES / "release.yaml", out=out)):
        print(f"{client.client} {client.version}: smallest cosine {client.smallest_cosine:.6f}")  # noqa: T201


def make_index(out: Path) -> None:
    """The index of the whole collection, as `drama index` builds it."""
    words = ["index", str(out.parent / "collection"), str(out), "--model", str(out.parent / "release")]
    if drama(words):
        raise DramaError("`drama index` failed; see the message above.")


STAGES: dict[str, Callable[[Path], None]] = {
    "collection": make_collection,
    "corpus": make_corpus,
    "masks": make_masks,
    "sliced": make_sliced,
    "backbone": make_backbone,
    "train_data": make_train_data,
    "retriever": make_retriever,
    "untrained": make_untrained,
    "random_backbone": make_random_backbone,
    "random_retriever": make_random_retriever,
    "release": make_release,
    "index": make_index,
}
"""Folder under `demo/out` to what makes it, in order."""
