"""What a command line says at its end: its result, or one sentence about what the disk would not do."""

from __future__ import annotations

import errno
import os
import sys

from drama_models.folders import disk_is_full

REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EIO,
)  # fmt: skip


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
