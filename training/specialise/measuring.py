"""Before and after: both models search the same passages for the same queries, exactly, at every trained size.

Held-out queries are searched in the collection that training used, from documents that it did not. The user's own
queries are searched in the passages as they are indexed, titles and all, and a document counts as its best passage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.evaluation import evaluate_per_query, read_run, write_run
from drama_models.folders import sha256_of_file
from drama_models.pooling import finish
from training.augment.filter import SHOWN_CHARACTERS
from training.augment.mine import search_vectors
from training.specialise.findings import (
    WORST,
    DimChange,
    Evaluation,
    KindChange,
    QueryScore,
    ShownPassage,
    WorstQuery,
)
from training.specialise.significance import compare
from training.specialise.vectors import PassageVectors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from drama_models.evaluation import Qrels, Run
    from training.specialise.layout import RunFolder
    from training.specialise.stages import Stages

NDCG, RECALL = "ndcg@10", "recall@100"
DEPTH = 100
PASSAGES_OF_A_DOCUMENT = 10  # so many times DEPTH passages are searched where a document counts as its best one
SHOWN = 3
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, kw_only=True)
class QuerySet:
    """Queries to measure on."""

    name: str
    """held-out or yours: of the runs' files."""
    title: Any
    """As `Evaluation.name`."""
    collection: Path
    """Of the passages that are searched."""
    queries: dict[str, str]
    qrels: Qrels
    kinds: dict[str, str]
    groups: dict[str, str] | None
    """The document of each query; None where each query stands for itself."""
    document_of: dict[str, str] | None
    """The document of each passage, where documents are judged; None where passages are."""


def measure(test: QuerySet, models: Mapping[str, Path], folder: RunFolder, stages: Stages) -> Evaluation:
    """Search with the model before and after, and compare.

    Args:
        test: queries with judgements.
        models: folder of the model `before` and `after`.
        folder: of the run; gets the runs of both.
        stages: of the run.
    """
    values: dict[str, dict[str, float]] = {}
    for which, model in models.items():
        encoder = Encoder.from_pretrained(model)
        out = folder.evaluation(test.name, which)
        job = {
            "model": encoder.fingerprint(), "queries": test.queries, "qrels": test.qrels,
            "passages": sha256_of_file(Collection(test.collection).corpus_file),
        }  # fmt: skip
        values[which] = stages.run(
            f"evaluate-{test.name}-{which}",
            job,
            [out],
            lambda: _by_dim(test, encoder, folder, out),  # noqa: B023
        )
    runs = {which: read_run(folder.evaluation(test.name, which)) for which in models}
    scores = {which: evaluate_per_query(run, test.qrels, [NDCG, RECALL]) for which, run in runs.items()}
    rows = [
        QueryScore(
            query_id=key, query=text, kind=test.kinds[key], before=scores[BEFORE][NDCG][key],
            after=scores[AFTER][NDCG][key],
        )
        for key, text in test.queries.items()
    ]  # fmt: skip
    return Evaluation(
        name=test.title,
        queries=len(rows),
        groups=len(set(test.groups.values())) if test.groups else len(rows),
        changes=[
            compare(metric, scores[BEFORE][metric], scores[AFTER][metric], test.groups) for metric in (NDCG, RECALL)
        ],
        by_kind=_by_kind(rows),
        by_dim=[DimChange(dim=int(dim), before=values[BEFORE][dim], after=values[AFTER][dim])
                for dim in values[BEFORE] if dim in values[AFTER]],
        scores=rows,
        worst=_worst(rows, test, runs[AFTER]),
    )  # fmt: skip


def search(
    encoder: Encoder,
    vectors: PassageVectors,
    queries: Mapping[str, str],
    dim: int,
    document_of: Mapping[str, str] | None,
) -> Run:
    """The best passages, or documents by their best passage, of each query.

    Args:
        encoder: at its full size.
        vectors: its vectors of the passages.
        queries: texts by id.
        dim: coordinates that are compared.
        document_of: the document of each passage; None searches passages.
    """
    normalise = encoder.profile.normalise
    # a vector that was scaled before it is cut has the direction of one that is cut first
    asked = finish(encoder.encode_queries(list(queries.values())), dim, normalise=normalise)
    shards = ((ids, finish(rows, dim, normalise=normalise)) for ids, rows in vectors.read())
    depth = DEPTH if document_of is None else DEPTH * PASSAGES_OF_A_DOCUMENT
    found = search_vectors(asked, shards, depth)
    return {key: _documents(hits, document_of) for key, hits in zip(queries, found, strict=True)}


def _documents(hits: Iterable[tuple[str, float]], document_of: Mapping[str, str] | None) -> dict[str, float]:
    best: dict[str, float] = {}
    for passage, score in hits:
        key = passage if document_of is None else document_of[passage]
        if len(best) < DEPTH or key in best:
            best.setdefault(key, score)  # hits come best first
    return best


def _by_dim(test: QuerySet, encoder: Encoder, folder: RunFolder, out: Path) -> dict[str, float]:
    """nDCG@10 at each size; writes the run of the full one."""
    vectors = PassageVectors(encoder, folder.vectors, test.collection)
    vectors.encode()
    full = encoder.profile.hidden_size
    values = {}
    for dim in sorted({full, *encoder.profile.dims}, reverse=True):
        run = search(encoder, vectors, test.queries, dim, test.document_of)
        if dim == full:
            write_run(out, run)
            run = read_run(out)  # scores as they are kept
        per_query = evaluate_per_query(run, test.qrels, [NDCG])[NDCG]
        values[str(dim)] = sum(per_query.values()) / len(per_query)
    return values


def _by_kind(rows: list[QueryScore]) -> list[KindChange]:
    changes = []
    for kind in sorted({row.kind for row in rows}):
        of_kind = [row for row in rows if row.kind == kind]
        before, after = (sum(getattr(row, which) for row in of_kind) / len(of_kind) for which in (BEFORE, AFTER))
        changes.append(KindChange(kind=kind, queries=len(of_kind), before=before, after=after))
    return changes


def _worst(rows: list[QueryScore], test: QuerySet, after: Run) -> list[WorstQuery]:
    """The lowest after training, the largest losses first among equals; with the texts of what was found.

    Where nothing could be better, there is nothing to show.
    """
    imperfect = [row for row in rows if row.after < 1]
    worst = sorted(imperfect, key=lambda row: (row.after, row.after - row.before, row.query_id))[:WORST]
    found = {
        row.query_id: sorted(after.get(row.query_id, {}).items(), key=lambda hit: -hit[1])[:SHOWN] for row in worst
    }
    expected = {row.query_id: [key for key, grade in test.qrels[row.query_id].items() if grade > 0][:SHOWN]
                for row in worst}  # fmt: skip
    wanted = {key for keys in expected.values() for key in keys} | {key for hits in found.values() for key, _ in hits}
    texts = _texts(test, wanted)

    def shown(query: str, keys: Iterable[str]) -> list[ShownPassage]:
        grades = test.qrels[query]
        return [ShownPassage(id=key, text=texts.get(key, ""), relevant=grades.get(key, 0) > 0) for key in keys]

    return [
        WorstQuery(
            query_id=row.query_id, query=row.query, kind=row.kind, before=row.before, after=row.after,
            expected=shown(row.query_id, expected[row.query_id]),
            found=shown(row.query_id, [key for key, _ in found[row.query_id]]),
        )
        for row in worst
    ]  # fmt: skip


def _texts(test: QuerySet, wanted: set[str]) -> dict[str, str]:
    """First characters of passages, or of the first passage of documents."""
    texts: dict[str, str] = {}
    for passage in Collection(test.collection).documents():
        key = passage.id if test.document_of is None else test.document_of[passage.id]
        if key in wanted:
            texts.setdefault(key, passage.content[:SHOWN_CHARACTERS])
    return texts
