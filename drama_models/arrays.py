"""NumPy arrays on disk, written so that a full disk is an error.

`numpy.save` hands a file to the C library and does not hear of it when the last part did not fit: the file is cut and
nothing is said. So bytes are written through Python's own file here, whose closing fails.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class _Written:
    """A file by its `write` alone, which NumPy calls for block after block."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file; no objects.

    Raises:
        OSError: it did not fit, or the place cannot be written to.
    """
    with path.open("wb") as file:
        np.lib.format.write_array(cast("Any", _Written(file)), array, allow_pickle=False)


def check_arrays(folder: Path) -> None:
    """Make sure that `.npy` files which somebody else wrote are whole.

    Raises:
        OSError: one is cut, as on a full disk.
    """
    for path in sorted(folder.glob("*.npy")):
        try:
            np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
