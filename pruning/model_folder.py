"""Reading and carrying over the files of a Llama folder, weights one tensor at a time and never from pickle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from drama_models.errors import ModelFolderError
from drama_models.provenance import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor
    from transformers import LlamaConfig

WEIGHTS = "model.safetensors"
HEADER_ROOM = 2**18  # bytes; the 147 tensors of Llama-3.2-1B need a sixteenth of it
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
INDEX = "model.safetensors.index.json"
NOT_CARRIED = re.compile(r"\.safetensors$|\.index\.json$|\.jsonl$|\.bin$|\.svg$|^masks\.json$|^config\.json$|^\.")


def read_config(folder: str | Path) -> LlamaConfig:
    """Configuration of a model folder that can be pruned.

    Raises:
        ModelFolderError: no configuration, or that of another kind of model.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ModelFolderError(f"{folder} has no config.json; pass the folder of a Llama-shaped model.")
    config: Any = AutoConfig.from_pretrained(folder)
    if config.model_type != "llama":
        raise ModelFolderError(
            f"{folder} holds a model of type {config.model_type!r}; only models of type 'llama' can be pruned."
        )
    return config


def read_weights(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight of a model folder, one at a time.

    Raises:
        ModelFolderError: no safetensors, or a truncated file.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({folder / Path(name).name for name in weight_map.values()})
    else:
        files = [folder / WEIGHTS]
    for path in files:
        if not path.is_file():
            raise ModelFolderError(f"{path} is missing; weights are read from safetensors only.")
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
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
