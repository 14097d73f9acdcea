"""A user's own queries with judgements: a BEIR folder, or JSON lines of a query and the documents that answer it.

Judgements are of documents, as a user knows them: by the path below the folder of documents, by the file's name without
its ending, by the `_id` of a JSON line; the id of a passage stands for its document. What a name could mean of two
documents is asked about, never guessed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from drama_models.collection import Collection
from drama_models.errors import CollectionError
from drama_models.surrogates import storable_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class JudgedQueries:
    """Queries with the grades of documents, under the ids that the documents have here."""

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    unknown: list[str]
    """Names of judged documents that are none of these documents; their judgements do not count."""


def read_judged(path: Path, split: str, document_of: Mapping[str, str]) -> JudgedQueries:
    """Read judged queries.

    Args:
        path: BEIR folder or file of JSON lines.
        split: which judgements of a folder.
        document_of: the document of each passage.

    Raises:
        CollectionError: nothing there, a malformed line, an ambiguous name, or no query with a relevant document.
    """
    queries, named = _read_folder(path, split) if path.is_dir() else _read_lines(path)
    names = _names(document_of)
    qrels: dict[str, dict[str, int]] = {}
    unknown: list[str] = []
    for query, grades in named.items():
        for name, grade in grades.items():
            meant = names.get(name, set())
            if len(meant) > 1:
                first, second, *_ = sorted(meant)
                raise CollectionError(f"{path}: {name!r} may mean {first!r} or {second!r}; write the whole path.")
            if not meant:
                unknown.append(name)
            for document in meant:
                known = qrels.setdefault(query, {})
                known[document] = max(grade, known.get(document, grade))
    qrels = {query: grades for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())}
    if not qrels:
        example = next(iter(document_of.values()), "")
        raise CollectionError(
            f"{path} judges none of these documents relevant (it names {', '.join(map(repr, unknown[:3])) or 'none'}); "
            f"name documents by their path, such as {example!r}."
        )
    return JudgedQueries({query: queries[query] for query in qrels}, qrels, unknown)


def _read_folder(path: Path, split: str) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    collection = Collection(path, elsewhere=True)
    return collection.queries(), collection.qrels(split)


def _read_lines(path: Path) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    if not path.is_file():
        raise CollectionError(f"There are no judged queries at {path}; pass a BEIR folder or a file of JSON lines.")
    queries: dict[str, str] = {}
    named: dict[str, dict[str, int]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        record = _parsed(line)
        query, documents = (record or {}).get("query"), (record or {}).get("documents")
        if (
            not isinstance(query, str)
            or not query.strip()
            or not isinstance(documents, list)
            or not all(isinstance(d, str) for d in documents)
        ):
            raise CollectionError(
                f'{path}, line {number}: expected {{"query": "a question", "documents": ["guide/install.md"]}}, found '
                f"{line[:80].decode('utf-8', 'replace')!r}."
            )
        given = (record or {}).get("_id")
        key = f"line-{number}" if given is None else str(given)
        if key in queries:
            raise CollectionError(f"{path}, line {number}: id {key!r} is used twice; ids must be unique.")
        queries[key], named[key] = query, dict.fromkeys(documents, 1)
    return queries, named


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = storable_json(json.loads(line))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _names(document_of: Mapping[str, str]) -> dict[str, set[str]]:
    """What each document may be called; a whole id is never another one's short name."""
    documents = dict.fromkeys(document_of.values())
    names: dict[str, set[str]] = defaultdict(set)
    for document in documents:
        for name in _short_names(document):
            names[name].add(document)
    names |= {passage: {document} for passage, document in document_of.items()}
    names |= {unquote(document): {document} for document in documents}
    names |= {document: {document} for document in documents}
    return names


def _short_names(document: str) -> Iterable[str]:
    plain = unquote(document)
    file, _, record = plain.partition("#")
    if record:
        return (record,)
    return (PurePosixPath(file).name, PurePosixPath(file).stem, str(PurePosixPath(file).with_suffix("")))
