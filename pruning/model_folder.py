"""Reading and carrying over the files of a Llama folder, weights one tensor at a time and never from pickle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from drama_models.errors import ModelFolderError
from drama_models.provenance import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NOT_CARRIED = re.compile(r"\.safetensors$|\.index\.json$|\.jsonl$|\.bin$|^masks\.json$|^config\.json$|^\.")


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
                for name in file.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                    yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelFolderError(f"{path} cannot be read as safetensors ({error}); fetch it again.") from None


def copy_other_files(source: Path, out: Path) -> None:
    """Tokenizer and generation settings; weights, configuration, logs and provenance are written anew."""
    for path in source.iterdir():
        if path.is_file() and not NOT_CARRIED.search(path.name) and path.name not in (FILE_NAME, "README.md"):
            shutil.copy(path, out / path.name)
