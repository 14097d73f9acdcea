"""Reading and carrying over the files of a Llama folder, weights one tensor at a time and never from pickle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from drama_models.errors import ModelFolderError
from drama_models.model_folder import (
    check_llama_weights,
    llama_tensor_shapes,
    read_json,
    tensor_shapes,
    weight_files,
)
from drama_models.provenance import FILE_NAME, read_provenance
from drama_models.setting_kinds import check_llama_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor
    from transformers import LlamaConfig

WEIGHTS = "model.safetensors"
HEADER_ROOM = 2**18  # bytes; the 147 tensors of Llama-3.2-1B need a sixteenth of it
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
IGNORED = ".rotary_emb.inv_freq"  # in checkpoints of old transformers: it follows from the configuration
NOT_CARRIED = re.compile(r"\.safetensors$|\.index\.json$|\.jsonl$|\.bin$|\.svg$|^masks\.json$|^config\.json$|^\.")


def read_config(folder: str | Path) -> LlamaConfig:
    """Configuration of a model folder that can be pruned.

    Raises:
        ModelFolderError: no configuration, a damaged one, or that of another kind of model.
    """
    config = _any_config(Path(folder))
    if config.model_type != "llama":
        raise ModelFolderError(
            f"{folder} holds a model of type {config.model_type!r}; only models of type 'llama' can be pruned."
        )
    return config


def _any_config(folder: Path) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelFolderError(f"{folder} has no config.json; pass the folder of a Llama-shaped model.")
    settings = read_json(path)
    if settings.get("model_type") == "llama":
        check_llama_settings(path, settings)
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # what transformers and the validators of its settings raise shares no base class
        raise ModelFolderError(
            f"{path} is not a configuration that transformers reads ({_in_short(error)}); fetch the folder again."
        ) from None


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def load_causal_model(folder: str | Path) -> Any:
    """A stock causal language model in float32, every weight of it from safetensors and finite.

    Raises:
        ModelFolderError: a damaged configuration or record, no safetensors, a truncated file, or a weight that is
            missing, of another shape, or not finite.
    """
    folder = Path(folder)
    read_provenance(folder)  # what is made of the model continues its record, and would miss it at the end of a run
    if _any_config(folder).model_type == "llama":
        _check_weights(folder)
    for path in weight_files(folder):
        tensor_shapes(path)
    stock: Any = AutoModelForCausalLM
    try:
        model, report = stock.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (ValueError, KeyError) as error:  # such as an activation that there is not
        raise ModelFolderError(f"No model can be made of {folder} ({_in_short(error)}); fetch it again.") from None
    absent = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    if absent:
        raise ModelFolderError(
            f"{folder} has no weight {absent[0]!r} of the shape that config.json asks for; use weights and config.json "
            "of one model."
        )
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ModelFolderError(
                f"{folder}: weight {name!r} is not finite everywhere; fetch or make the folder again."
            )
    return model


def _check_weights(folder: Path) -> None:
    config = read_json(folder / "config.json")
    check_llama_weights(folder, config)
    known = {"lm_head.weight", *llama_tensor_shapes(config)}
    for path in weight_files(folder):
        for name in tensor_shapes(path):
            if name.removeprefix("model.") not in known and not name.endswith(IGNORED):
                raise ModelFolderError(
                    f"{path}: tensor {name!r} is not part of a Llama with this config.json; only stock models can be "
                    "pruned."
                )


def load_stock_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a model folder as transformers reads it, to be written beside the weights that are made.

    Raises:
        ModelFolderError: transformers cannot read it.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the Rust library raises bare Exception, transformers whatever the settings lead to
        raise ModelFolderError(
            f"The tokenizer of {folder} is not one that transformers reads ({_in_short(error)}); fetch its tokenizer "
            "files again."
        ) from None


def read_weights(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight of a Llama folder, one at a time.

    Raises:
        ModelFolderError: no safetensors, a truncated file, or a weight that is missing, of another shape, or not a
            Llama's.
    """
    folder = Path(folder)
    _check_weights(folder)
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if not name.endswith(IGNORED)]  # noqa: SIM118 (no mapping)
            for name in names:
                with safe_open(path, framework="pt") as file:  # anew, so that the pages of the last one are let go
                    weight = file.get_tensor(name)
                yield name, weight
                del weight
        except (OSError, SafetensorError) as error:
            raise ModelFolderError(f"{path} cannot be read as safetensors ({error}); fetch it again.") from None


def write_weights(path: Path, weights: Iterable[tuple[str, Tensor]]) -> int:
    """Write a safetensors file one tensor at a time; `safetensors.torch.save_file` holds all of them, and a copy.

    The header stands before the data and is known only after it: room is kept for it, and what is left is filled with
    blanks, as the format allows.

    Args:
        path: file to make.
        weights: name and contiguous tensor, float32, float16 or bfloat16.

    Returns:
        Number of parameters written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = parameters = 0
    with path.open("wb") as file:
        file.seek(8 + HEADER_ROOM)
        for name, weight in weights:
            data = weight.reshape(-1).view(torch.uint8).numpy()
            file.write(data.data)
            ends = [offset, offset + data.nbytes]
            header[name] = {"dtype": DTYPES[weight.dtype], "shape": list(weight.shape), "data_offsets": ends}
            offset, parameters = ends[1], parameters + weight.numel()
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > HEADER_ROOM:
            raise ModelFolderError(f"{len(header) - 1} tensors are more than one file can name; prune a smaller model.")
        file.seek(0)
        file.write(HEADER_ROOM.to_bytes(8, "little") + text.ljust(HEADER_ROOM))
    return parameters


def copy_other_files(source: Path, out: Path) -> None:
    """Tokenizer and generation settings; weights, configuration, logs and provenance are written anew."""
    for path in source.iterdir():
        if path.is_file() and not NOT_CARRIED.search(path.name) and path.name not in (FILE_NAME, "README.md"):
            shutil.copy(path, out / path.name)
