"""Warnings that point at the line of the user's that caused them, not at a line in here."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

HERE = f"{Path(__file__).parent}{os.sep}"


def warn_caller(message: str | Warning) -> None:
    """Warn at the first line outside this package that led here, so that callers can filter by their own modules.

    Args:
        message: text, for a `UserWarning`, or a warning.
    """
    frame, level = sys._getframe(1), 2  # the level of `warnings.warn` counts from here
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HERE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
