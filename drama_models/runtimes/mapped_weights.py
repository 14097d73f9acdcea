"""Weights of a model folder as NumPy arrays over the memory-mapped safetensors: nothing is read before it is used.

Float32 tensors are views of the file. NumPy has no bfloat16, so those (and float16) are widened to float32 when they
are asked for, which is exact; rows of an embedding table are widened row by row and the table itself never is.
"""

from __future__ import annotations

import json
import mmap
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from drama_models.errors import ModelFolderError
from drama_models.model_folder import tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

STORED: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I8": np.int8,
    "U8": np.uint8,
    "I64": np.int64,  # position numbers, which older BERTs keep beside their weights
}


LET_GO_EVERY_S = 0.005  # while weights are packed, some tens of MiB pass in that time


class _Tensor(NamedTuple):
    data: NDArray[np.generic]  # as stored; bfloat16 as its bits
    bfloat16: bool


class MappedWeights(Mapping[str, "NDArray[Any]"]):
    """Tensors of a folder by LlamaModel's parameter names, without the prefix `model.`.

    Args:
        files: safetensors, as of `weight_files`.

    Raises:
        ModelFolderError: a damaged header, or a number format other than those of `STORED`.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._tensors: dict[str, _Tensor] = {}
        self._maps: list[mmap.mmap] = []
        for path in files:
            self._tensors.update(self._map(path))

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A tensor in float32, or whole numbers where it holds those; what needs no widening is a view of the file."""
        return _widened(self._tensors[name])

    def _map(self, path: Path) -> dict[str, _Tensor]:
        shapes = tensor_shapes(path)  # checks the header and the size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
            self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        content = np.frombuffer(self._maps[-1], dtype=np.uint8)[8 + header_bytes :]
        found = {}
        for name, shape in shapes.items():
            kind, (begin, end) = header[name]["dtype"], header[name]["data_offsets"]
            if kind not in STORED:
                raise ModelFolderError(f"{path}: tensor {name!r} is {kind}; supported are {', '.join(STORED)}.")
            stored = np.dtype(STORED[kind])
            if end - begin != stored.itemsize * int(np.prod(shape, dtype=np.int64)):
                raise ModelFolderError(f"{path} has a damaged safetensors header at {name!r}; fetch it again.")
            data = content[begin:end].view(stored).reshape(shape)
            found[name.removeprefix("model.")] = _Tensor(data, kind == "BF16")
        return found

    @contextmanager
    def passing_through(self) -> Iterator[None]:
        """Give pages back all the while that somebody copies weights into memory of their own, and afterwards.

        Without it a process would for a moment hold all weights twice. Pages that are read again come from the file.
        """
        done = threading.Event()

        def let_go_until_done() -> None:
            while not done.wait(LET_GO_EVERY_S):
                self._let_go()

        helper = threading.Thread(target=let_go_until_done, daemon=True)
        helper.start()
        try:
            yield
        finally:
            done.set()
            helper.join()
            self._let_go()

    def _let_go(self) -> None:
        for mapped in self._maps:
            if hasattr(mapped, "madvise"):  # not on Windows
                mapped.madvise(mmap.MADV_DONTNEED)

    def rows(self, name: str, numbers: NDArray[np.integer]) -> NDArray[np.float32]:
        """Rows of a matrix in float32, (len(numbers), columns); only their pages are read."""
        stored = self._tensors[name]
        return _widened(_Tensor(stored.data[numbers], stored.bfloat16))


def _widened(tensor: _Tensor) -> NDArray[Any]:
    if tensor.bfloat16:  # the upper half of a float32
        return (tensor.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    whole = np.issubdtype(tensor.data.dtype, np.integer)
    return np.require(tensor.data, dtype=None if whole else np.float32, requirements=["C", "A"])
