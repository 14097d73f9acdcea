"""What a command line says at its end: its result, or one sentence about a mistake or what the disk would not do."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from drama_models.errors import DramaError
from drama_models.folders import disk_is_full

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EIO,
)  # fmt: skip


def run(command: Callable[[], str | None], *, interrupted: str) -> int:
    """Run a command and print what it returns, if anything.

    Args:
        command: of no arguments.
        interrupted: what is said after Ctrl-C, such as "the same command goes on where it stopped".

    Returns:
        Exit code: 2 with one sentence for a user's mistake or the disk's trouble, 130 when interrupted.
    """
    try:
        said = command()
        if said is not None:
            say(said)
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)  # noqa: T201
        return 130
    except (DramaError, OSError, RuntimeError, SafetensorError) as error:
        sentence = str(error) if isinstance(error, DramaError) else disk_trouble(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def say(text: str) -> None:
    """Print; whoever reads may have seen enough, as in `| head`."""
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes once more as it ends


def disk_trouble(error: Exception) -> str | None:
    """One sentence about a disk that is full or a place that cannot be read or written; None for any other error."""
    if disk_is_full(error):
        done = "what was finished is kept. Make room and give the same command again"
        return f"there is no room left on the disk; {done} ({error})."
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename is not None:
        path = error.filename2 or error.filename
        return f"{path} cannot be used ({error.strerror}); check that it is the path you mean, and its permissions."
    return None
