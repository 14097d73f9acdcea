"""Text for the small source model: docstrings, comments and code of the installed packages, one text domain each.

Files are read as text. One file in fifty is held out as a whole, so that no held-out sentence stands in a file that was
trained on; equal texts are kept once, so none is on both sides.
"""

from __future__ import annotations

import ast
import hashlib
import json
import warnings
from typing import TYPE_CHECKING

from demo.environment import installed_packages
from demo.public_names import SKIPPED_FOLDERS, public_entries, read_package
from drama_models.folders import atomic_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOMAINS = ("docstrings", "comments", "code")
HELD_OUT_SHARE = 50  # one file in this many
CODE_SHARE = 4  # one file in this many gives its code: there is far more code than a small model can read
MIN_COMMENT_WORDS = 8
MAX_CODE_BYTES = 200_000  # longer files are generated tables
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def write_source_text(out: Path) -> dict[str, int]:
    """Write `out/{docstrings,comments,code}/{train,held_out}.jsonl`.

    Returns:
        Bytes of text by domain, both splits together.
    """
    written = dict.fromkeys(DOMAINS, 0)
    seen: set[bytes] = set()
    with atomic_folder(out, scratch=True) as partial:
        for domain in DOMAINS:
            (partial / domain).mkdir()
        for module, path, public_name in source_files():
            split = "held_out" if _bucket(module, HELD_OUT_SHARE) == 0 else "train"
            for domain, text in _texts(module, path, public_name):
                key = hashlib.blake2b(" ".join(text.partition(" ")[2].split()).encode(), digest_size=12).digest()
                if key not in seen:
                    seen.add(key)
                    written[domain] += len(text.encode())
                    with (partial / domain / f"{split}.jsonl").open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return written


def source_files() -> Iterator[tuple[str, Path, dict[str, str]]]:
    """Module name, path, and the public names of what each place of definition holds."""
    for package in installed_packages():
        entries = public_entries(read_package(package.root, package.prefix))
        public_name = {entry.place: entry.name for entry in entries}
        for path in sorted(package.root.rglob("*.py")):
            parts = path.relative_to(package.root).with_suffix("").parts
            if not SKIPPED_FOLDERS & set(parts[:-1]):
                head = (package.prefix,) if package.prefix else ()
                yield ".".join(part for part in (*head, *parts) if part != "__init__"), path, public_name


def _texts(module: str, path: Path, public_name: dict[str, str]) -> Iterator[tuple[str, str]]:
    source = path.read_text(encoding="utf-8", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return
    for place, docstring in _docstrings(tree, module):
        yield "docstrings", f"{public_name.get(place, place)} {docstring}"
    for comment in comments(source):
        yield "comments", comment
    if _bucket(f"code {module}", CODE_SHARE) == 0 and len(source) < MAX_CODE_BYTES:
        yield "code", source


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, DOCUMENTED):
        docstring = ast.get_docstring(node)
        if docstring:
            yield name, docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try):
            yield from _docstrings(child, name)


def comments(source: str) -> Iterator[str]:
    """Blocks of whole-line comments, joined, if they say more than a few words."""
    block: list[str] = []
    for line in [*source.splitlines(), ""]:
        stripped = line.strip()
        if stripped.startswith("#"):
            block.append(stripped.lstrip("#").strip())
        elif block:
            if len(" ".join(block).split()) >= MIN_COMMENT_WORDS:
                yield " ".join(block)
            block = []


def _bucket(name: str, buckets: int) -> int:
    """A stable pseudo-random number below `buckets`; Python's own hash changes from run to run."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little") % buckets
