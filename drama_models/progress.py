"""What a long run shows: one steady line for people, the same numbers as JSON lines for plots.

step 1200/20000 | loss 0.412 | sparsity 0.61 | 2,310 tokens/s | 1h04m left
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def hide_loading_bars() -> None:
    """Turn off transformers' bars for reading and writing weights, which would break the steady lines of a stage."""
    from transformers.utils import logging

    logging.disable_progress_bar()


class ProgressLog:
    """Prints and keeps the figures of a run.

    Args:
        path: JSON-lines file to append to, made if absent; None keeps nothing.
        total: number of steps in the whole run.
        start: step the run goes on from; rates and the time left count from there, and lines after it are taken away.
        targets: of figures, shown as `figure/target`.
    """

    def __init__(
        self, path: Path | None, total: int, start: int = 0, targets: Mapping[str, float] | None = None
    ) -> None:
        self.path, self.total, self.start, self.targets = path, total, start, targets or {}
        self.began_s = time.perf_counter()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            kept = [line for line in text.splitlines(keepends=True) if _is_before(line, start)]
            path.write_text("".join(kept), encoding="utf-8")

    def record(self, step: int, **figures: float) -> None:
        """Report a step; values are printed in the order given, with four significant digits."""
        elapsed_s = time.perf_counter() - self.began_s
        left_s = elapsed_s / max(step - self.start, 1) * (self.total - step)
        shown = (
            f"{name} {value:.4g}" + (f"/{self.targets[name]:.4g}" if name in self.targets else "")
            for name, value in figures.items()
        )
        words = [f"step {step}/{self.total}", *shown]
        print(" | ".join([*words, f"{format_seconds(left_s)} left"]), file=sys.stderr, flush=True)  # noqa: T201
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "elapsed_s": round(elapsed_s, 2), **figures}) + "\n")


def _is_before(line: str, start: int) -> bool:
    """Whether a line of a log holds figures of a step up to `start`; one that a power cut left unreadable does not."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= start
    except (ValueError, KeyError, TypeError):
        return False


def format_seconds(seconds: float) -> str:
    """Duration as `1h04m`, `3m20s` or `12s`."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest_s:02d}s" if minutes else f"{rest_s}s"
