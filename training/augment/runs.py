"""TREC runs of any length: written part by part, resumable after a kill, and read one query at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from drama_models.batching import windows
from drama_models.collection import Collection
from drama_models.errors import CollectionError
from drama_models.evaluation import add_hit, run_rows, write_run
from drama_models.folders import atomic_file, sha256_of_file
from drama_models.provenance import installed_versions, plain_settings
from training.data.examples import read_examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Item = TypeVar("Item")
PART_QUERIES = 2048

Query = tuple[str, str]
"""Id and text."""
Hits = list[tuple[str, float]]
"""Document id and score, best first."""


def read_queries(collection: Path, examples: Path | None) -> Iterator[Query]:
    """The queries of training examples, or of the collection where there are none.

    Raises:
        CollectionError: a malformed file, or a query id that was there before.
    """
    pairs: Iterable[Query]
    if examples is None:
        pairs = Collection(collection).queries().items()
    else:
        pairs = ((example.query_id, example.query) for example in read_examples(examples))
    seen: set[str] = set()
    for key, text in pairs:
        if key in seen:
            raise CollectionError(f"{examples}: query id {key!r} is used twice; ids must be unique.")
        seen.add(key)
        yield key, text


def write_in_parts(
    out: Path,
    queries: Iterable[Item],
    search: Callable[[list[Item]], Iterable[tuple[str, Hits]]],
    job: Mapping[str, Any],
    *,
    name: str,
    part_queries: int = PART_QUERIES,
) -> int:
    """Write the hits of all queries as one run; parts that an earlier, killed call finished are kept.

    Args:
        out: run file, there when it is complete.
        queries: tuples of JSON values, in an order that does not change between calls.
        search: query ids and hits of some queries, in their order.
        job: what the hits depend on beside the queries; parts of another job are not used.
        name: of the system, the last column.
        part_queries: queries in a part.

    Returns:
        Number of queries.

    Raises:
        CollectionError: there are no queries, or an id holds white space.
    """
    parts = out.parent / f".{out.name}.parts"
    parts.mkdir(parents=True, exist_ok=True)
    count = 0
    paths: list[Path] = []
    with tqdm(desc=f"search with {name}", unit=" queries", disable=None) as bar:
        for block in windows(queries, part_queries):
            digest = hashlib.sha256(json.dumps([dict(job), name, block], sort_keys=True).encode()).hexdigest()
            path = parts / f"{len(paths):06}-{digest[:20]}.run"
            if not path.is_file():
                write_run(path, {key: dict(hits) for key, hits in search(block)}, name)
            paths.append(path)
            count += len(block)
            bar.update(len(block))
    if not paths:
        shutil.rmtree(parts)
        raise CollectionError("There are no queries; pass --examples, or a collection with queries.jsonl.")
    with atomic_file(out) as partial, partial.open("wb") as whole:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole)
    shutil.rmtree(parts)
    return count


def write_record(out: Path, stage: str, recipe: object, figures: dict[str, Any]) -> None:
    """Write how a file was made beside it, as OUT.provenance.json: stage, recipe, versions, figures."""
    record = {
        "stage": stage,
        "recipe": plain_settings(recipe),
        "versions": installed_versions(),
        "sha256": sha256_of_file(out),
        "figures": figures,
    }
    with atomic_file(out.parent / f"{out.name}.provenance.json") as partial:
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def stream_run(path: str | Path) -> Iterator[tuple[str, Hits]]:
    """Each query of a TREC run with its hits by falling score, ties as in the file; one query is held at a time.

    Raises:
        CollectionError: no such file, a malformed line, a score that is not finite, a document twice in one list, or a
            query whose lines are not together.
    """
    path = Path(path)
    if not path.is_file():
        raise CollectionError(f"There is no run at {path}; pass a TREC run file, such as `mine` makes.")
    seen: set[str] = set()
    query, hits = "", dict[str, float]()
    for number, key, document, score in run_rows(path):
        if key != query:
            if hits:
                yield query, _by_score(hits)
            if key in seen:
                raise CollectionError(
                    f"{path}, line {number}: lines of query {key!r} must stand together; sort the file by query."
                )
            seen.add(key)
            query, hits = key, {}
        add_hit(hits, query, document, score, place=(path, number))
    if hits:
        yield query, _by_score(hits)


def _by_score(hits: dict[str, float]) -> Hits:
    return sorted(hits.items(), key=lambda hit: -hit[1])
