"""The collection of this environment, read once for all tests of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from demo.collect import collect


class Collected(NamedTuple):
    """The folder, and what `collect` counted."""

    folder: Path
    counts: dict[str, Any]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    """Half a minute of parsing."""
    folder = tmp_path_factory.mktemp("environment") / "collection"
    return Collected(folder, collect(folder))
