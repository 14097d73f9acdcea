"""Effectiveness of a ranking: nDCG@10, Recall@100, MRR@10 and MAP through ir-measures, and TREC run files.

Metrics are trec_eval's, averaged over all judged queries, one without hits counting 0 (trec_eval -c).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import CollectionError, MissingExtraError
from drama_models.folders import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

Run = dict[str, dict[str, float]]
"""Query id to document id to score."""
Qrels = dict[str, dict[str, int]]
"""Query id to document id to grade."""
METRICS = {"ndcg@10": "nDCG@10", "recall@100": "R@100", "mrr@10": "RR@10", "map": "AP"}


def evaluate(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    metrics: Sequence[str] = tuple(METRICS),
    *,
    drop_identical_ids: bool = False,
) -> dict[str, float]:
    """Mean of each metric over the judged queries.

    Args:
        run: scores by query and document; ties go to the larger document id, as in trec_eval.
        qrels: grades by query and document; 0 is not relevant.
        metrics: names such as "ndcg@10", or any measure of ir-measures.
        drop_identical_ids: leave out hits whose id is the query's own (ArguAna, Quora).

    Returns:
        Value by metric name, in [0, 1].

    Raises:
        MissingExtraError: ir-measures is not installed.
        CollectionError: there are no judged queries.
        ValueError: a metric is unknown.
    """
    per_query = evaluate_per_query(run, qrels, metrics, drop_identical_ids=drop_identical_ids)
    return {name: sum(values.values()) / len(values) for name, values in per_query.items()}


def evaluate_per_query(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    metrics: Sequence[str] = tuple(METRICS),
    *,
    drop_identical_ids: bool = False,
) -> dict[str, dict[str, float]]:
    """Value of each metric for each judged query; arguments and errors as of `evaluate`."""
    measures = _measures(metrics)
    judged = {query: graded for query, graded in qrels.items() if graded}
    if not judged:
        raise CollectionError("There are no judged queries to evaluate on; pass qrels with at least one judgement.")
    if drop_identical_ids:
        run = without_identical_ids(run)
    values = {name: dict.fromkeys(judged, 0.0) for name in measures}
    names = {str(measure): name for name, measure in measures.items()}
    import ir_measures

    kept = {query: dict(run[query]) for query in judged if run.get(query)}
    for value in ir_measures.iter_calc(list(measures.values()), judged, kept):
        values[names[str(value.measure)]][value.query_id] = value.value
    return values


def without_identical_ids(run: Mapping[str, Mapping[str, float]]) -> Run:
    """The run without hits whose document id is the query id."""
    return {query: {key: score for key, score in hits.items() if key != query} for query, hits in run.items()}


def pool_metrics(scores: NDArray[np.floating[Any]], positive: NDArray[np.integer[Any]], k: int) -> dict[str, float]:
    """How high each query's positive stands in a pool of documents: DRAGON's validation, whose MRR picks checkpoints.

    Args:
        scores: (number of queries, number of documents), any float dtype.
        positive: (number of queries,), column of each query's positive.
        k: for the accuracy.

    Returns:
        average_rank (1 is best), mrr (without a cut-off), accuracy_at_k; a tie counts against the positive.

    Raises:
        ValueError: there are no queries, or the shapes do not fit.
    """
    scores, positive = np.asarray(scores), np.asarray(positive)
    if scores.ndim != 2 or positive.shape != scores.shape[:1] or not len(positive):
        raise ValueError(f"Expected scores (n, documents) and positive (n,), found {scores.shape}, {positive.shape}.")
    own = scores[np.arange(len(positive)), positive]
    ranks = (scores >= own[:, None]).sum(axis=1)
    return {
        "average_rank": float(ranks.mean()),
        "mrr": float((1 / ranks).mean()),
        "accuracy_at_k": float((ranks <= k).mean()),
    }


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], name: str = "drama") -> None:
    """Write a TREC run file: `query Q0 document rank score name`, best first.

    Raises:
        CollectionError: an id holds white space, which the format cannot carry.
    """
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for query, hits in run.items():
            for document in hits:
                if len(f"{query} {document}".split()) != 2:
                    raise CollectionError(
                        f"Id {query!r} or {document!r} holds white space; ids in a TREC run must not."
                    )
            file.writelines(run_lines(query, sorted(hits.items(), key=lambda hit: -hit[1]), name))


def run_lines(query: str, hits: Iterable[tuple[str, float]], name: str) -> Iterator[str]:
    """Lines of a TREC run for one query, hits in the order given."""
    return (f"{query} Q0 {key} {rank} {score:.9g} {name}\n" for rank, (key, score) in enumerate(hits, start=1))


def read_run(path: str | Path) -> Run:
    """Read a TREC run file; any system's output will do.

    Raises:
        CollectionError: as `run_rows`.
    """
    run: Run = {}
    for number, query, document, score in run_rows(path):
        add_hit(run.setdefault(query, {}), query, document, score, place=(path, number))
    return run


def run_rows(path: str | Path) -> Iterator[tuple[int, str, str, float]]:
    """Number, query, document and score of each line of a TREC run file.

    Raises:
        CollectionError: a malformed line, or a score that is not finite, named by file and number.
    """
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                query, _, document, _, score, *_ = line.decode().split()
                value = float(score)
            except ValueError:
                found = line[:80].decode("utf-8", "replace").strip()
                raise CollectionError(
                    f"{path}, line {number}: expected `query Q0 document rank score name` in UTF-8, found {found!r}."
                ) from None
            if not math.isfinite(value):
                raise CollectionError(
                    f"{path}, line {number}: the score of document {document!r} is {score}; it must be finite."
                )
            yield number, query, document, value


def add_hit(hits: dict[str, float], query: str, document: str, score: float, *, place: tuple[str | Path, int]) -> None:
    """Add a document to the hits of a query.

    Args:
        hits: scores by document, changed in place.
        query: id.
        document: id.
        score: of the document.
        place: file and line that say so.

    Raises:
        CollectionError: the document is there already.
    """
    if document in hits:
        raise CollectionError(
            f"{place[0]}, line {place[1]}: document {document!r} occurs twice in the list of query {query!r}; leave "
            "one of them out."
        )
    hits[document] = score


def _measures(metrics: Sequence[str]) -> dict[str, Any]:
    try:
        import ir_measures
    except ImportError:
        raise MissingExtraError("Evaluation", "evaluate") from None
    parsed = {}
    for name in metrics:
        try:
            parsed[name] = ir_measures.parse_measure(METRICS.get(name.lower(), name))
        except (ValueError, NameError, SyntaxError):
            raise ValueError(
                f"Unknown metric {name!r}; use one of {', '.join(METRICS)}, or ir-measures' names."
            ) from None
    return parsed
