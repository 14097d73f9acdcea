"""Replay the reference implementations' numbers against our code: `python -m tests.replay FOLDER`.

A fixture's kind is its file name. One line for each case that differs, one `not covered: NAME` for each kind that no
code answers yet, and a last line `N passed, N failed`; the exit code is 1 if a case differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

import tests.replays
from tests.replays.compare import Tolerance

if TYPE_CHECKING:
    from collections.abc import Iterator

Check = Callable[[dict[str, Any], dict[str, Any], Tolerance], None]
MODULES = (import_module(f"tests.replays.{found.name}") for found in iter_modules(tests.replays.__path__))
KINDS: dict[str, Check] = {kind: check for module in MODULES for kind, check in getattr(module, "KINDS", {}).items()}
"""What answers each kind: every file of `tests/replays` has its own."""


def replay(path: Path) -> Iterator[tuple[str, str | None]]:
    """Name of each case of a fixture file, and what differs; None where nothing does.

    Raises:
        KeyError: a kind that no code answers.
    """
    check = KINDS[path.stem]
    data = json.loads(path.read_text(encoding="utf-8"))
    for number, case in enumerate(data["cases"]):
        name = f"{path.stem}[{number}] {case.get('name', case.get('kind', ''))}".rstrip()
        try:
            check(case, data, Tolerance(data["tolerance"]))
        except Exception as error:
            yield name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            yield name, None


def main(folder: Path) -> int:
    """Replay every fixture of a folder and print the result; returns the exit code."""
    passed = failed = 0
    for path in sorted(folder.glob("*.json")):
        if path.stem not in KINDS:
            print(f"not covered: {path.stem}")  # noqa: T201
            continue
        for name, difference in replay(path):
            passed += difference is None
            failed += difference is not None
            if difference:
                print(f"{name}: {difference}")  # noqa: T201
    print(f"{passed} passed, {failed} failed")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
