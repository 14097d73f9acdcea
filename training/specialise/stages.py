"""Stages that are done once: each is known by a hash of its settings and of what it reads.

A record of every finished stage lies in `.stages`: the hash of its job, and the hashes of what it made. The next run
of the same job finds the record, and its outputs as they were written, and goes on behind it. A stage whose inputs have
changed is made anew; what it reuses of the last time is its own affair.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drama_models.folders import atomic_file, sha256_of_file, sha256_of_folder
from drama_models.progress import format_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

RECORDS = ".stages"


@dataclass
class Stages:
    """The stages of one run.

    Args:
        folder: of the run.
    """

    folder: Path
    times: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage took when it was made."""

    def run(
        self,
        name: str,
        job: Mapping[str, Any],
        outputs: list[Path],
        make: Callable[[], dict[str, Any] | None],
        *,
        start_over: Callable[[], None] | None = None,
        complete: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> dict[str, Any]:
        """Make a stage's outputs, unless they are there already.

        Args:
            name: of the stage, a file's name.
            job: settings and hashes of inputs, JSON values.
            outputs: files and folders that it makes, below the run's folder.
            make: makes them; returns figures, JSON values.
            start_over: called before `make` where an interrupted attempt had another job.
            complete: by the figures, whether nothing is missing; else the next run makes the stage again.

        Returns:
            The figures.
        """
        path = self.folder / RECORDS / f"{name}.json"
        key = hashlib.sha256(json.dumps(dict(job), sort_keys=True).encode()).hexdigest()
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        made = record.get("outputs")
        if record.get("job") == key and made is not None and made == self._hashes(outputs):
            self.times[name] = record["seconds"]
            self._say(f"{name}: done before")
            return dict(record["figures"])
        if start_over is not None and record.get("job") != key:
            start_over()
        self._say(f"{name} …")
        self._write(path, {"job": key})
        began_s = time.perf_counter()
        figures = make() or {}
        seconds = round(time.perf_counter() - began_s, 2)
        if complete(figures):
            self._write(path, {"job": key, "figures": figures, "seconds": seconds, "outputs": self._hashes(outputs)})
        self.times[name] = seconds
        self._say(f"{name}: {format_seconds(seconds)}")
        return figures

    def _hashes(self, outputs: list[Path]) -> dict[str, str | None]:
        return {path.relative_to(self.folder).as_posix(): content_hash(path) for path in outputs}

    @staticmethod
    def _write(path: Path, record: dict[str, Any]) -> None:
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def _say(words: str) -> None:
        print(f"specialise | {words}", file=sys.stderr, flush=True)  # noqa: T201


def content_hash(path: Path) -> str | None:
    """SHA-256 of a file or of a folder's files; None where there is neither."""
    if path.is_file():
        return sha256_of_file(path)
    return sha256_of_folder(path) if path.is_dir() else None
