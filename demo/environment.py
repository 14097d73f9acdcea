"""The installed packages that the demo reads: where their files are, and which version. Nothing is imported."""

from __future__ import annotations

import importlib.util
import platform
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

STANDARD_LIBRARY = "python"
PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "networkx": "networkx",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
"""Import name to distribution name."""


@dataclass(frozen=True)
class Package:
    """One package, or the standard library under the name `python`."""

    name: str
    version: str
    root: Path

    @property
    def prefix(self) -> str:
        """Start of its qualified names; empty for the standard library, whose modules are all top-level."""
        return "" if self.name == STANDARD_LIBRARY else self.name


def installed_packages() -> list[Package]:
    """Those of the read packages that this environment has, the standard library last."""
    found = []
    for name, distribution in PACKAGES.items():
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            root = Path(spec.submodule_search_locations[0])
            found.append(Package(name, metadata.version(distribution), root))
    library = Path(sysconfig.get_paths()["stdlib"])
    return [*found, Package(STANDARD_LIBRARY, platform.python_version(), library)]
