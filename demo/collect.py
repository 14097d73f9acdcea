"""The demo's collection: the documentation of the packages in this Python environment, as a BEIR folder.

    python -m demo.collect OUT

A document is one docstring; its id and title are the qualified name (`numpy.stack`), its other names stand in
`metadata.aliases`. Questions are ours (`demo/questions/*.jsonl`): a question whose answers are not installed, or are
documented otherwise in the installed version, is skipped and counted.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.environment import PACKAGES, STANDARD_LIBRARY, Package, installed_packages
from demo.public_names import Entry, public_entries, read_package
from drama_models.collection import Collection

if TYPE_CHECKING:
    from collections.abc import Iterable

QUESTIONS = Path(__file__).parent / "questions"
TEST_PACKAGES = ("networkx", "pandas", "sklearn")
"""Their documents give no training query; the test questions are about them, the dev questions about the others."""
MIN_WORDS = 4  # shorter docstrings ("See above.") say nothing that could be searched for


def collect(out: Path) -> dict[str, Any]:
    """Read the environment and write the collection.

    Returns:
        Counts: documents and words by package, questions kept and skipped by split.
    """
    packages = installed_packages()
    entries = _distinct_entries(packages)
    name_of = {name: entry.name for entry in entries for name in (*entry.aliases, entry.name)}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {}
    skipped: Counter[str] = Counter()
    for split in ("dev", "test"):
        qrels[split] = {}
        for question in read_questions(split):
            answers = sorted({name_of[name] for name in question["answers"] if name in name_of})
            if answers:
                queries[question["_id"]] = question["text"]
                qrels[split][question["_id"]] = dict.fromkeys(answers, 1)
            else:
                skipped[split] += 1
    Collection.write(out, map(_document, entries), queries, qrels)
    return {
        "versions": {package.name: package.version for package in packages},
        "documents": dict(Counter(package_of(entry.name) for entry in entries)),
        "words": sum(len(entry.docstring.split()) for entry in entries),
        "questions": {split: len(judged) for split, judged in qrels.items()},
        "skipped_questions": dict(skipped),
    }


def read_questions(split: str) -> list[dict[str, Any]]:
    """The hand-written questions of a split: `_id`, `text`, and every name in `answers` that answers it."""
    lines = (QUESTIONS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def package_of(name: str) -> str:
    """Package that a qualified name belongs to; `python` for the standard library."""
    root = name.partition(".")[0]
    return root if root in PACKAGES else STANDARD_LIBRARY


def _distinct_entries(packages: Iterable[Package]) -> list[Entry]:
    """Entries of all packages, sorted by name; of equal names in two packages the first package's."""
    entries: dict[str, Entry] = {}
    # parsing is pure Python: one process a core; started afresh, since a fork would copy locks that threads may hold
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for found in pool.map(_entries_of, packages):
            for entry in found:
                entries.setdefault(entry.name, entry)
    return [entries[name] for name in sorted(entries)]


def _entries_of(package: Package) -> list[Entry]:
    entries = public_entries(read_package(package.root, package.prefix))
    return [entry for entry in entries if len(entry.docstring.split()) >= MIN_WORDS]


def _document(entry: Entry) -> dict[str, Any]:
    return {"_id": entry.name, "title": entry.name, "text": entry.docstring, "metadata": {"aliases": entry.aliases}}


if __name__ == "__main__":
    print(json.dumps(collect(Path(sys.argv[1])), indent=2))  # noqa: T201
