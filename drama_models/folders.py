"""Folders that are complete or absent: everything this project makes is written under a temporary name, then renamed.

A process killed while writing leaves the old folder or file as it was and a `.NAME.partial-PID-HOST` sibling, which the
next writer of the same name on that machine removes. What a living process is writing is left alone, so that several
may write the same name: the last one stays. Who opens several files of a folder that may be replaced meanwhile, and
must not mix two, reads them through `read_whole`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from drama_models.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from drama_models.errors import DramaError

Value = TypeVar("Value")

HASH_BLOCK_BYTES = 1 << 20
PRIVATE = 0o600
READS = 10  # of a folder that is replaced each time
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux' renameat2
CACHE_VARIABLE = "DRAMA_CACHE"
MARKS = ("provenance.json", "manifest.json", "bm25.json", "examples.jsonl", "corpus.jsonl")
"""Files of which every folder that a user lets us make holds one; it replaces none that lacks its first."""


@contextmanager
def atomic_folder(target: str | Path, *, scratch: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name and put it in place of `target` when the block ends without an error.

    Args:
        target: folder to make or to replace as a whole; what a link leads to, where it is one.
        scratch: the name is our own, so that whatever it holds may go.

    Yields:
        An empty folder beside `target` to write into.

    Raises:
        OutputError: there is a file, or a folder that this project did not make and that holds something.
    """
    target = Path(target)
    target = target.resolve() if target.is_symlink() else target
    if not scratch:
        check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(target)
    partial = _sibling(target, "partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process of the same number, before a restart
    partial.mkdir()
    try:
        yield partial
        _share_files(partial)
        mark = next((mark for mark in MARKS if (partial / mark).exists()), None)
        if not scratch and mark is not None:
            check_replaceable(target, (mark,))
        _replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name and rename it to `target` when the block ends without an error."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(target)
    partial = _sibling(target, "partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_whole(folders: Sequence[Path], read: Callable[[], Value], failure: type[DramaError]) -> Value:
    """What `read` makes of folders, never of an older and a newer one: again where one was replaced meanwhile.

    Args:
        folders: whose files are read; another process may put others in their place.
        read: opens the files by their paths, perhaps some of them twice.
        failure: raised where a folder was replaced every time.
    """
    for _ in range(READS):
        before = [_state(folder) for folder in folders]
        try:
            value = read()
        except Exception:  # whatever comes of files that do not belong together
            if before == [_state(folder) for folder in folders]:
                raise
            continue
        if before == [_state(folder) for folder in folders]:
            return value
    names = " or ".join(map(str, folders))
    raise failure(f"{names} was replaced each of the {READS} times that it was opened; open it when nothing writes it.")


def _state(folder: Path) -> tuple[int, int, int] | None:
    """Which folder is in a place now; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns  # the number of a removed folder may be given again


def cache_folder() -> Path:
    """What can be made again is kept here: DRAMA_CACHE, else `drama-models` in the user's cache.

    For a user without a home it is a place that can be neither read nor written, as any cache may be.
    """
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drama-models"
    except RuntimeError:
        return Path(os.devnull) / "drama-models"


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
            digest.update(os.fsencode(name.as_posix()) + f"\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


def disk_is_full(error: Exception) -> bool:
    """Whether an error says that there is no room for a file: as such, or in the words of safetensors or torch."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    text = str(error)
    codes = (f"(os error {code})" for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    words = ("PytorchStreamWriter failed", "unexpected pos", " requested and ")  # of torch twice, and of NumPy
    return any(code in text for code in (*codes, *words))


def may_not_write(error: Exception) -> bool:
    """Whether an error says that a place cannot be written to: no permission, a read-only disk, no folder possible."""
    refused = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
    return isinstance(error, OSError) and error.errno in refused


def inside(folder: str | Path, name: str) -> Path:
    """A path below `folder` for a name that came from input.

    Links are not followed: those of the hub's cache lead out of a model's folder, and are trusted.

    Raises:
        ValueError: the name leads out of the folder.
        TypeError: it is no text.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} leads out of {folder}; use a name inside that folder.")
    return Path(folder) / name


def check_replaceable(target: Path, marks: Sequence[str] = MARKS) -> None:
    """Refuse to take the place of what somebody else keeps there.

    Args:
        target: folder to make.
        marks: files of which an older one holds at least one.

    Raises:
        OutputError: a file, or a folder that holds something and none of these.
    """
    try:
        empty = not any(target.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise OutputError(f"{target} is a file where a folder is to be made; choose another name.") from None
    if not empty and target.exists() and not any((target / mark).exists() for mark in marks):
        raise OutputError(
            f"{target} holds something else, which would be replaced as a whole; choose another name, or remove it "
            "first."
        )


def check_apart(out: Path, source: Path) -> None:
    """Refuse to put what is made in the place of what it is made from.

    Raises:
        OutputError: `out` is `source`, or one of the folders that it lies in.
    """
    if source.resolve().is_relative_to(out.resolve()):
        raise OutputError(f"{out} would replace {source}, which it is made from; choose another name.")


def _share_files(folder: Path) -> None:
    """Let others read what libraries wrote for their owner alone, as safetensors does, as far as the folder's mode."""
    mode = folder.stat().st_mode & 0o666  # what the process' umask leaves of it
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == PRIVATE:
            path.chmod(mode)


def _sibling(target: Path, kind: str, process: int | None = None) -> Path:
    """Hidden name beside a target that is a process's own (this one's), also among machines that share a disk."""
    return target.parent / f".{target.name}.{kind}-{process or os.getpid()}-{platform.node()}"


def _clear_leftovers(target: Path) -> None:
    """Remove what processes of this machine that live no more left of a target; put back what they had set aside."""
    # two dots: of a folder that was written atomically inside this one, `..NAME.partial-PID-HOST.partial-PID-HOST`
    beginnings = tuple(f"{dots}{target.name}.{kind}-" for dots in (".", "..") for kind in ("partial", "replaced"))
    for name in [name for name in os.listdir(target.parent) if name.startswith(beginnings)]:  # noqa: PTH208 (for speed)
        match = re.search(rf"\.(partial|replaced)-(\d+)-{re.escape(platform.node())}$", name)
        if match is None or _is_alive(int(match[2])):
            continue
        path = target.parent / name
        if path == _sibling(target, "replaced", int(match[2])) and not target.exists():
            with suppress(OSError):  # another process has put it back
                path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether there is a process of this number; where it cannot be asked for without harm, there may be one."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _replace_folder(new: Path, target: Path) -> None:
    """In one step where the system can, `new` then being the old one, for the caller to remove; else in two renames."""
    if target.is_dir() and _exchange(new, target):
        return
    old = _sibling(target, "replaced")
    while True:  # a rename cannot replace a folder that holds something, as another process may put there in between
        try:
            new.rename(target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            target.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders so that nobody ever finds none in either place; False where the system or the disk cannot."""
    try:
        swap = ctypes.CDLL(None).renameat2
    except (OSError, TypeError, AttributeError):  # not Linux, or an old C library
        return False
    return bool(swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)
