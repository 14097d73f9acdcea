"""From trained weights to `demo/nano`: the files of a release, weights in half precision, no ONNX copy (15 MB in all).

Every installed client has loaded the folder and agreed with the others before it counts as made; the graph that ONNX
Runtime is asked with is left out afterwards, since `python -m export release` makes it from the folder at any time.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from drama_models.folders import atomic_folder
from drama_models.model_folder import read_json
from drama_models.profile import Profile
from drama_models.provenance import write_provenance
from drama_models.sample_texts import SAMPLE_TEXTS
from export.client_files import release_config, sentence_transformers_files, tokenizer_files
from export.release import MODEL_CODE
from export.to_onnx import write_onnx
from export.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from demo.make_nano.recipe import NanoRecipe

WEIGHTS = "model.safetensors"


def write_folder(
    start: Path,
    state: dict[str, torch.Tensor],
    recipe: NanoRecipe,
    *,
    inputs: dict[str, Path],
    figures: dict[str, Any],
    log: Path,
) -> None:
    """Write the model folder.

    Args:
        start: folder with its configuration and tokenizer.
        state: weights of a LlamaModel, float32.
        recipe: recorded as it is.
        inputs: what went in, for the provenance.
        figures: what was measured on the way.
        log: curve of the training run, copied into the folder.

    Raises:
        ModelFolderError: a client cannot load the folder, or disagrees with the others.
    """
    config = read_json(start / "config.json")
    profile = Profile.from_folder(start)
    settings = read_json(start / "tokenizer_config.json")
    files: dict[str, Any] = tokenizer_files(settings, recipe.max_length) | sentence_transformers_files(profile)
    files["config.json"] = release_config(config, profile, pad_token_id=config["pad_token_id"])
    with atomic_folder(recipe.out) as partial:
        halves = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in state.items()}
        save_file(halves, partial / WEIGHTS, metadata={"format": "pt"})
        tokenizer = json.loads((start / "tokenizer.json").read_text(encoding="utf-8"))
        (partial / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
        shutil.copy(MODEL_CODE, partial / MODEL_CODE.name)
        shutil.copy(log, partial / "training_log.jsonl")
        for name, content in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_onnx(partial)
        parity = [client.as_json() for client in verify(partial, SAMPLE_TEXTS)]
        shutil.rmtree(partial / "onnx")
        figures = figures | {"parameters": sum(tensor.numel() for tensor in state.values()), "parity": parity}
        write_provenance(partial, stage="demo.make_nano", recipe=recipe, inputs=inputs, figures=figures)
