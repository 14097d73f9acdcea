"""What mask learning looked like: every dimension's expected size on its way to the target."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PLOT = "expected_sizes.svg"


def plot_expected_sizes(log: Path, targets: Mapping[str, float], out: Path) -> None:
    """Draw one panel a dimension: expected size by step, its target as a dashed line.

    Args:
        log: JSON lines with `step` and a figure for each dimension.
        targets: size to end on, by dimension.
        out: SVG file to make.
    """
    from matplotlib.figure import Figure  # not pyplot, which would keep state and look for a display

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(3.2 * max(len(targets), 1), 2.8), layout="constrained")
    panels = figure.subplots(1, max(len(targets), 1), squeeze=False)[0]
    for panel, (name, target) in zip(panels, targets.items(), strict=False):
        panel.plot([line["step"] for line in lines], [line[name] for line in lines])
        panel.axhline(target, color="black", linestyle="--", linewidth=1)
        panel.set(title=f"{name}, target {target:g}", xlabel="step", ylim=(0, None))
    figure.savefig(out, metadata={"Date": None})
