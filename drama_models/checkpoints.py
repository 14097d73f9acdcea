"""Checkpoints of a training run: complete or absent, the last two and the best kept, continued as they began.

They live in a hidden sibling of the folder that the run is to make, until that folder is made. A run whose settings
have changed does not go on with them, nor any run with a damaged one, and no two runs are at work on one folder.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from drama_models.errors import TrainingError
from drama_models.folders import atomic_file, check_replaceable, sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

KEPT = 2
WRITING = ".writing"  # what is being written, or taken away, has its folder in here
SETTINGS = "recipe.json"
LOG = "training_log.jsonl"
FILES = "files.json"  # of a checkpoint: SHA-256 of every other file in it
FREE_SETTINGS = ("out", "save_every", "trainer", "cache")  # these may change between a run and its continuation


def checkpoint_folder(out: Path) -> Path:
    """Where a run keeps its checkpoints until the folder `out` is made: a hidden sibling."""
    return out.parent / f".{out.name}.checkpoints"


def writing_folder(out: Path) -> Path:
    """Where a checkpoint is written before it is put in place."""
    return checkpoint_folder(out) / WRITING


def log_file(out: Path) -> Path:
    """Figures of a run, one JSON line at a time."""
    return checkpoint_folder(out) / LOG


def checkpoints(out: Path) -> list[Path]:
    """All checkpoints of a run, oldest first; each was written to its end."""
    steps = {folder: folder.name.rpartition("-")[2] for folder in checkpoint_folder(out).glob("checkpoint-*")}
    return sorted((folder for folder, step in steps.items() if step.isdecimal()), key=lambda folder: int(steps[folder]))


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint; None where a run has not come to its first."""
    return next(reversed(checkpoints(out)), None)


def place_checkpoint(out: Path, name: str, *, best: str | None = None) -> None:
    """Put a checkpoint that was written to its end in place, and let go of those beyond the last two.

    Args:
        out: folder that the run is to make.
        name: of the checkpoint, `checkpoint-STEP`.
        best: name of one that is kept however old it is.
    """
    written = writing_folder(out) / name
    files = [path for path in written.rglob("*") if path.is_file()]
    hashes = {path.relative_to(written).as_posix(): sha256_of_file(path) for path in sorted(files)}
    (written / FILES).write_text(json.dumps(hashes, indent=2), encoding="utf-8")
    os.sync()
    written.replace(checkpoint_folder(out) / name)
    for old in checkpoints(out)[:-KEPT]:
        if old.name == best:
            continue
        leaving = writing_folder(out) / f"old-{old.name}"
        old.rename(leaving)  # first, so that no half-deleted folder is ever called a checkpoint
        shutil.rmtree(leaving)


def check_checkpoint(checkpoint: Path) -> None:
    """Whether a checkpoint still is what was written: the stock trainer leaves out what is missing without a word.

    Raises:
        TrainingError: a file is missing or has changed; the message names it.
    """
    way_out = f"remove {checkpoint} to go on from the one before it, or {checkpoint.parent} to start over."
    for name, written in _read_json(checkpoint / FILES, way_out).items():
        path = checkpoint / name
        if not path.is_file() or sha256_of_file(path) != written:
            raise TrainingError(f"{path} is missing or damaged; {way_out}")


def keep_log(out: Path, made: Path) -> None:
    """Copy the log of a finished run into the folder it makes."""
    shutil.copy(log_file(out), made / LOG)


def remove_checkpoints(out: Path) -> None:
    """What a run needs no more once its folder is made."""
    shutil.rmtree(checkpoint_folder(out))


@contextmanager
def claim(out: Path) -> Iterator[None]:
    """Keep other runs off the folder `out` and its checkpoints, while this one is at work.

    Of several processes that train together the main one does. The system lets go of what a killed one held.

    Args:
        out: folder that the run is to make.

    Raises:
        TrainingError: another run is at work on it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    new = not out.parent.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f".{out.name}.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TrainingError(f"Another run is making {out}; wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        with suppress(OSError):  # where an open file cannot be removed, it stays
            path.unlink()  # while it is held: who has opened it already sees that it has no name any more
        lock.release()
        if new:
            with suppress(OSError):  # it holds something now
                out.parent.rmdir()


def begin(out: Path, recipe: Any) -> None:
    """Open the checkpoints of a run, new or interrupted.

    Args:
        out: folder that the run is to make.
        recipe: the run's settings, a dataclass.

    Raises:
        TrainingError: the checkpoints there belong to a run with other settings, or the newest is damaged.
        OutputError: at `out` is something that this project did not make.
    """
    check_replaceable(out)
    folder = checkpoint_folder(out)
    settings: dict[str, Any] = json.loads(json.dumps(asdict(recipe), default=str))
    checkpoint = last_checkpoint(out)
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        was = changed_settings(_read_json(folder / SETTINGS, f"remove {folder} to start over."), settings)
        if was:
            raise TrainingError(
                f"{folder} holds an interrupted run with other settings ({was}); "
                "set them back to go on with it, or remove that folder to start over."
            )
        check_checkpoint(checkpoint)
    shutil.rmtree(writing_folder(out), ignore_errors=True)
    with atomic_file(folder / SETTINGS) as partial:
        partial.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def changed_settings(
    before: Mapping[str, Any], settings: Mapping[str, Any], *, free: Iterable[str] = FREE_SETTINGS
) -> str:
    """Settings that a run began with and that are others now, as `name=value, …` of before; empty where none is.

    Args:
        before: of the run as it began; settings that did not exist then do not count.
        settings: of now.
        free: those that may change in between.
    """
    names = sorted((before.keys() & settings.keys()) - set(free))
    return ", ".join(f"{name}={before[name]}" for name in names if before[name] != settings[name])


def _read_json(path: Path, way_out: str) -> dict[str, Any]:
    """An object that a run has written, or what to do where it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise TrainingError(f"{path} is missing or damaged; {way_out}")
    return value
