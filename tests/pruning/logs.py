"""The training log that a stage leaves in its folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from drama_models.checkpoints import LOG

if TYPE_CHECKING:
    from pathlib import Path


def read_log(folder: Path) -> list[dict[str, float]]:
    """Its lines."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
