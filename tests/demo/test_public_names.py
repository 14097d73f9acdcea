"""Public names found in files, against what Python itself says after importing the same packages."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from demo.public_names import public_entries, read_package


def write_package(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(dedent(text), encoding="utf-8")
    return root


def test_the_shortest_public_name_is_the_name_and_the_others_are_aliases(tmp_path: Path) -> None:
    package = write_package(
        tmp_path / "pack",
        {
            "__init__.py": "from pack._core import stack, hidden_alias as _secret\nfrom pack import shapes",
            "_core.py": 'def stack():\n    """Join along an axis."""\ndef hidden_alias():\n    """Not for users."""',
            "shapes.py": "from pack._core import stack\n__all__ = ['stack']",
        },
    )
    entries = public_entries(read_package(package, "pack"))
    assert [(entry.name, entry.aliases, entry.docstring) for entry in entries] == [
        ("pack.stack", ["pack.shapes.stack"], "Join along an axis.")
    ]
    assert entries[0].place == "pack._core.stack"


def test_methods_of_hidden_bases_are_named_after_the_public_class(tmp_path: Path) -> None:
    package = write_package(
        tmp_path / "pack",
        {
            "__init__.py": "from pack.frame import Frame",
            "frame.py": """
                from pack._base import NDFrame
                class Frame(NDFrame):
                    '''A table.'''
            """,
            "_base.py": "class NDFrame:\n    def fillna(self):\n        '''Replace what is missing.'''",
        },
    )
    names = [entry.name for entry in public_entries(read_package(package, "pack"))]
    assert names == ["pack.Frame", "pack.Frame.fillna"]


def test_tests_and_broken_files_are_left_out(tmp_path: Path) -> None:
    package = write_package(
        tmp_path / "pack",
        {
            "__init__.py": '"""Kept."""',
            "tests/test_a.py": '"""A test."""',
            "conftest.py": '"""Fixtures."""',
            "broken.py": "def (",
        },
    )
    assert [entry.name for entry in public_entries(read_package(package, "pack"))] == ["pack"]


def test_import_cycles_end(tmp_path: Path) -> None:
    package = write_package(
        tmp_path / "pack",
        {"__init__.py": "from pack.a import *", "a.py": "from pack.b import *", "b.py": "from pack.a import *\nx = y"},
    )
    assert public_entries(read_package(package, "pack")) == []


def imported(name: str) -> Any:
    """The object behind a dotted name, by importing as far as modules go."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


@pytest.mark.parametrize("name", ["networkx", "json", "statistics", "sklearn.metrics"])
def test_names_and_docstrings_are_those_that_python_sees(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    file = Path(module.__file__)
    root = file.parent if file.name == "__init__.py" else file
    entries = public_entries(read_package(root, name))
    assert len(entries) > 5
    differing = []
    for entry in entries:
        try:
            seen = inspect.getdoc(imported(entry.name)) or ""
        except (ImportError, AttributeError):
            differing.append(entry.name)
            continue
        # decorators may add to a docstring at import (networkx appends its backends), never take away
        if inspect.cleandoc(entry.docstring).split()[:30] != seen.split()[: min(30, len(entry.docstring.split()))]:
            differing.append(entry.name)
    assert len(differing) <= 0.01 * len(entries), differing


def test_no_function_of_a_package_is_missed() -> None:
    import networkx

    names = {entry.name for entry in public_entries(read_package(Path(networkx.__file__).parent, "networkx"))}
    offered = {name for name, value in vars(networkx).items() if inspect.isclass(value) and value.__doc__}
    functions = {name for name, value in vars(networkx).items() if callable(value) and value.__doc__}
    public = {f"networkx.{name}" for name in offered | functions if not name.startswith("_")}
    assert len(public) > 500
    assert len(public - names) <= 0.02 * len(public), sorted(public - names)
