"""From trained weights to `demo/nano`: the files of a sentence-transformers folder, weights in half precision (15 MB).

Three clients have loaded the folder and agreed before it counts as made: this package with torch, this package with
ONNX Runtime straight from the safetensors, and stock sentence-transformers.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from drama_models.encoder import Encoder
from drama_models.errors import ModelFolderError
from drama_models.folders import atomic_folder
from drama_models.model_folder import WEIGHTS, read_json
from drama_models.profile import Profile
from drama_models.provenance import write_provenance
from drama_models.runtimes.bert_shape import BertShape
from drama_models.sample_texts import SAMPLE_TEXTS
from export.client_files import sentence_transformers_files

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import BertModel

    from demo.make_nano.recipe import NanoRecipe

MIN_COSINE = 0.9999
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",  # BERT's own class would build its normaliser anew
    "clean_up_tokenization_spaces": False,
    "padding_side": "right",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}


def write_folder(
    start: Path, model: BertModel, recipe: NanoRecipe, *, inputs: dict[str, Path], figures: dict[str, Any], log: Path
) -> None:
    """Write the model folder.

    Args:
        start: folder with its configuration and tokenizer.
        model: the trained student.
        recipe: recorded as it is.
        inputs: what went in, for the provenance.
        figures: what was measured on the way.
        log: curve of the training run, copied into the folder.

    Raises:
        ModelFolderError: a client cannot load the folder, or disagrees with the others.
    """
    config = read_json(start / "config.json")
    profile = replace(Profile.from_folder(recipe.teacher), max_length=recipe.max_length)
    state = {name: model.state_dict()[name] for name in BertShape.from_config(config).weight_shapes()}
    files: dict[str, Any] = sentence_transformers_files(profile) | {"config.json": config}
    files["tokenizer_config.json"] = TOKENIZER | {"model_max_length": recipe.max_length}
    files["special_tokens_map.json"] = {key: value for key, value in TOKENIZER.items() if key.endswith("_token")}
    with atomic_folder(recipe.out) as partial:
        halves = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in state.items()}
        save_file(halves, partial / WEIGHTS, metadata={"format": "pt"})
        tokenizer = json.loads((start / "tokenizer.json").read_text(encoding="utf-8"))
        (partial / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
        shutil.copy(log, partial / "training_log.jsonl")
        for name, content in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        figures = figures | {"parameters": sum(tensor.numel() for tensor in state.values()), "parity": parity(partial)}
        write_provenance(partial, stage="demo.make_nano", recipe=recipe, inputs=inputs, figures=figures)


def parity(folder: Path) -> dict[str, float]:
    """Smallest cosine of each other client's embedding to that of this package with torch, over sample texts.

    Raises:
        ModelFolderError: one is below 0.9999.
    """
    texts = list(SAMPLE_TEXTS)
    ours = Encoder.from_pretrained(folder, runtime="torch").encode_documents(texts)
    others = {
        "onnx": Encoder.from_pretrained(folder, runtime="onnx").encode_documents(texts),
        "sentence_transformers": np.asarray(SentenceTransformer(str(folder), device="cpu").encode(texts)),
    }
    found = {name: float((ours * theirs).sum(axis=1).min()) for name, theirs in others.items()}
    for name, cosine in found.items():
        if not cosine >= MIN_COSINE:
            raise ModelFolderError(f"{name} disagrees on {folder.name}: smallest cosine {cosine:.6f}.")
    return found
