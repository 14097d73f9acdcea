"""What a teacher ranks for each query: the lists that positives and hard negatives are drawn from.

A teacher is BM25, any encoder folder, or a run file from elsewhere. An encoder encodes the corpus once, to shards on
disk; every part of the queries is then searched shard by shard, so memory holds one shard and one part of the run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from drama_models.bm25 import BM25
from drama_models.bulk import encode_shards, read_shards
from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.errors import CollectionError
from drama_models.evaluation import run_lines
from drama_models.folders import atomic_file, sha256_of_file
from drama_models.ray_workers import Engine
from training.augment.runs import read_queries, stream_run, write_in_parts, write_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from training.augment.runs import Hits, Query
    from training.data.examples import TrainingExample

    Search = Callable[[list[Query]], Iterator[tuple[str, Hits]]]

BM25_NAME = "bm25"
QUERIES_PER_TASK = 128


@dataclass(frozen=True, kw_only=True)
class MineRecipe:
    """Settings of mining."""

    collection: Path
    """Collection of passages (BEIR folder)."""
    out: Path
    """TREC run file to make."""
    examples: Path | None = None
    """Training examples whose queries are searched; the collection's own queries by default."""
    teacher: str = BM25_NAME
    """bm25, a model folder (or hub name), or a TREC run file from elsewhere, which is checked and cut to k."""
    k: int = 50
    """Documents of each list."""
    language: str = "en"
    """Two-letter code, for BM25."""
    dim: int | None = None
    """Coordinates that an encoder keeps; all by default."""
    vectors: Path | None = None
    """Folder of an encoder's document vectors, kept for another time; OUT.vectors beside the run by default."""
    engine: Engine = "local"
    """ray encodes the documents in several processes, of this machine or of a Ray cluster."""
    workers: int = 0
    """Processes for BM25, and of engine ray; 0 takes one for each core."""

    def __post_init__(self) -> None:
        if self.k < 1 or self.workers < 0:
            raise ValueError(f"k={self.k} must be positive and workers={self.workers} not negative; try k=50.")


class Teacher(Protocol):
    """Anything that ranks documents for queries, such as `drama_models.bm25.BM25`."""

    def search(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Document ids and scores of each query, best first."""
        ...


def mine(recipe: MineRecipe) -> int:
    """Write what the teacher finds for each query; returns the number of queries. A killed call goes on.

    Raises:
        CollectionError: a malformed collection, no queries, or a run that names unknown ids.
        ModelFolderError: the encoder's folder is incomplete.
        MissingExtraError: Ray is not installed.
        ClusterError: its cluster is not there, or a worker keeps dying.
    """
    if Path(recipe.teacher).is_file():
        count = _copy_run(recipe)
    elif recipe.teacher == BM25_NAME:
        count = _mine_bm25(recipe)
    else:
        count = _mine_encoder(recipe)
    write_record(recipe.out, "training.mine", recipe, {"queries": count})
    return count


def _mine_bm25(recipe: MineRecipe) -> int:
    queries = read_queries(recipe.collection, recipe.examples)
    teacher = BM25(_documents(recipe), recipe.language)
    with _in_processes(teacher, recipe.k, recipe.workers or os.cpu_count() or 1) as search:
        job = _job(recipe) | {"language": recipe.language}
        return write_in_parts(recipe.out, queries, search, job, name=BM25_NAME)


def _mine_encoder(recipe: MineRecipe) -> int:
    queries = read_queries(recipe.collection, recipe.examples)
    encoder = Encoder.from_pretrained(recipe.teacher, dim=recipe.dim)
    shards = recipe.vectors or recipe.out.parent / f"{recipe.out.name}.vectors"
    total = Collection(recipe.collection).count()
    workers = recipe.workers or os.cpu_count() or 1
    documents = ((document.id, encoder.content_of(document)) for document in Collection(recipe.collection).documents())
    encode_shards(encoder, documents, shards, total=total, show_progress=True, engine=recipe.engine, workers=workers)

    def search(queries: list[Query]) -> list[tuple[str, Hits]]:
        found = search_shards(encoder, shards, [text for _, text in queries], recipe.k)
        return [(key, hits) for (key, _), hits in zip(queries, found, strict=True)]

    job = _job(recipe) | {"model": encoder.fingerprint(), "dim": encoder.dim}
    return write_in_parts(recipe.out, queries, search, job, name=Path(recipe.teacher).name)


def _documents(recipe: MineRecipe) -> Iterator[tuple[str, str]]:
    return ((document.id, document.content) for document in Collection(recipe.collection).documents())


def _job(recipe: MineRecipe) -> dict[str, Any]:
    return {"corpus": sha256_of_file(Collection(recipe.collection).corpus_file), "k": recipe.k}


def _copy_run(recipe: MineRecipe) -> int:
    """A run from elsewhere, checked and cut to k."""
    queries = dict(read_queries(recipe.collection, recipe.examples))
    known = {key for key, _ in _documents(recipe)}
    count = 0
    with atomic_file(recipe.out) as partial, partial.open("w", encoding="utf-8") as file:
        for query, hits in _known_lists(Path(recipe.teacher), queries, known, recipe.k):
            file.writelines(run_lines(query, hits, Path(recipe.teacher).stem))
            count += 1
    return count


_TEACHER: list[Teacher] = []  # of a worker process, inherited from the one that made it


@contextmanager
def _in_processes(teacher: Teacher, k: int, workers: int) -> Iterator[Search]:
    """A teacher in several processes that share its memory."""
    _TEACHER[:] = [teacher]
    context = multiprocessing.get_context("fork")  # the index is shared, not copied
    try:
        with ProcessPoolExecutor(workers, context, initializer=_follow_parent) as pool:

            def search(queries: list[Query]) -> Iterator[tuple[str, Hits]]:
                starts = range(0, len(queries), QUERIES_PER_TASK)
                tasks = [queries[start : start + QUERIES_PER_TASK] for start in starts]
                return chain.from_iterable(pool.map(_search_here, tasks, repeat(k)))

            try:
                yield search
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # an interrupted run waits for no more than is under way
                raise
    finally:
        _TEACHER.clear()


def _follow_parent() -> None:
    """Let a worker end with its parent: quietly where that is interrupted, and where it was killed too.

    It would wait for work for ever, and hold the index in memory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all processes; the parent ends its workers
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _search_here(queries: list[Query], k: int) -> list[tuple[str, Hits]]:
    found = _TEACHER[0].search([text for _, text in queries], k)
    return [(key, hits) for (key, _), hits in zip(queries, found, strict=True)]


def search_shards(encoder: Encoder, shards: Path, queries: list[str], k: int) -> list[Hits]:
    """Exact search of vectors on disk, one shard in memory at a time.

    Args:
        encoder: for the queries.
        shards: folder that `drama_models.bulk.encode_shards` filled.
        queries: texts.
        k: documents of each list, fewer where there are fewer.

    Raises:
        CollectionError: the folder is not finished or not as it was written.
    """
    return search_vectors(encoder.encode_queries(queries), read_shards(shards), k)


def search_vectors(
    queries: NDArray[np.float32], shards: Iterable[tuple[list[str], NDArray[np.float32]]], k: int
) -> list[Hits]:
    """Exact search by inner product, one shard in memory at a time.

    Args:
        queries: (Q, D).
        shards: ids and vectors (M, D) of some documents at a time.
        k: documents of each list, fewer where there are fewer.
    """
    import faiss

    best = faiss.ResultHeap(len(queries), k, keep_max=True)
    ids: list[str] = []
    for names, rows in shards:
        scores, places = faiss.knn(queries, np.ascontiguousarray(rows), min(k, len(names)), faiss.METRIC_INNER_PRODUCT)
        best.add_result(scores, places + len(ids))
        ids += names
    best.finalize()
    return [
        [(ids[place], float(score)) for place, score in zip(*found, strict=True) if place >= 0]
        for found in zip(best.I, best.D, strict=True)
    ]


def _known_lists(run: Path, queries: dict[str, str], known: set[str], k: int) -> Iterator[tuple[str, Hits]]:
    for query, hits in stream_run(run):
        if query not in queries:
            raise CollectionError(
                f"{run}: query {query!r} is not among the queries; pass the examples it was made for."
            )
        unknown = next((document for document, _ in hits if document not in known), None)
        if unknown is not None:
            raise CollectionError(
                f"{run}: document {unknown!r} is not in the collection; pass the one it was made for."
            )
        yield query, hits[:k]


def mine_negatives(
    examples: Iterable[TrainingExample],
    teacher: Teacher,
    *,
    name: str,
    first_rank: int,
    last_rank: int,
    show_progress: bool = False,
) -> Iterator[TrainingExample]:
    """Give each example the documents at the teacher's ranks `first_rank` to `last_rank` as hard negatives.

    Args:
        examples: with positives; their own negatives are replaced.
        teacher: ranks the documents.
        name: recorded as the example's teacher.
        first_rank: counted from 1, positives not counted. Above 1, since the very top often answers the query too.
        last_rank: inclusive.
        show_progress: a progress bar on the terminal.

    Raises:
        ValueError: the ranks do not form a window.
    """
    if not 1 <= first_rank <= last_rank:
        raise ValueError(f"Ranks {first_rank} to {last_rank} are no window; set 1 <= first_rank <= last_rank.")
    for example in tqdm(examples, desc="mine", unit=" queries", disable=None if show_progress else True):
        (hits,) = teacher.search([example.query], last_rank + len(example.positive_ids))
        others = [document for document, _ in hits if document not in example.positive_ids]
        yield replace(example, negative_ids=others[first_rank - 1 : last_rank], teacher=name)
