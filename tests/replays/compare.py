"""Comparing our numbers with a fixture's, within the tolerance that the fixture states."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

ABSOLUTE = 1e-5  # where a file gives none


class Tolerance:
    """Absolute and relative tolerance of one fixture file.

    Args:
        stated: its `tolerance`: "exact", a number t meaning |a - b| <= t * max(1, |b|), or a mapping with abs and rel.
    """

    def __init__(self, stated: Any) -> None:
        self.absolute = self.relative = 0.0
        if isinstance(stated, int | float):
            self.absolute = self.relative = float(stated)
        elif isinstance(stated, dict):
            self.absolute = float(stated.get("abs", ABSOLUTE))
            self.relative = float(stated.get("rel", 0.0))
        elif stated != "exact":
            self.absolute = self.relative = ABSOLUTE

    def close(self, ours: Any, theirs: Any, what: str) -> None:
        """Numbers, nested lists of numbers, or tensors."""
        actual = np.asarray(ours.detach().cpu() if isinstance(ours, torch.Tensor) else ours, dtype=np.float64)
        np.testing.assert_allclose(
            actual, np.asarray(theirs, dtype=np.float64), rtol=self.relative, atol=self.absolute, err_msg=what
        )


def equal(ours: object, theirs: object, what: str) -> None:
    """Exactly the same value."""
    if ours != theirs:
        raise AssertionError(f"{what}: ours {ours!r}, fixture {theirs!r}")
