"""Folders that are complete or absent: everything this project makes is written under a temporary name, then renamed.

A process killed while writing leaves the old folder as it was and a `.NAME.partial-*` sibling, which the next writer
of the same folder removes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HASH_BLOCK_BYTES = 1 << 20
CACHE_VARIABLE = "DRAMA_CACHE"


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Fill a folder under a temporary name and put it in place of `target` when the block ends without an error.

    Args:
        target: folder to make or to replace as a whole.

    Yields:
        An empty folder beside `target` to write into.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    inner = f"..{target.name}.partial-*.partial-*"  # of a folder that was written atomically inside this one
    for stale in (*target.parent.glob(f".{target.name}.partial-*"), *target.parent.glob(inner)):
        shutil.rmtree(stale, ignore_errors=True)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        _replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name and rename it to `target` when the block ends without an error."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def cache_folder() -> Path:
    """What can be made again is kept here: DRAMA_CACHE, else `drama-models` in the user's cache."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drama-models"


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_folder(folder: str | Path) -> str:
    """SHA-256 over relative path and hash of every file below a folder, in sorted order; hidden files left out."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


def disk_is_full(error: Exception) -> bool:
    """Whether an error says that there is no room for a file: as such, or in the words of safetensors or torch."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    text = str(error)
    codes = (f"(os error {code})" for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return any(code in text for code in codes) or "PytorchStreamWriter failed" in text or "unexpected pos" in text


def inside(folder: str | Path, name: str) -> Path:
    """A path below `folder` for a name that came from input.

    Raises:
        ValueError: the name leads out of the folder.
    """
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{name!r} leads out of {folder}; use a name inside that folder.")
    return path


def _replace_folder(new: Path, target: Path) -> None:
    """Two renames, since a rename cannot replace a folder that holds something."""
    if not target.exists():
        new.rename(target)
        return
    old = target.parent / f".{target.name}.partial-old-{os.getpid()}"
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old)
