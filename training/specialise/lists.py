"""Lists for the made queries: what the model and its teachers find, candidates of all, and the labels to learn.

Candidates are the first of all lists fused by reciprocal rank, as in the specialisation paper's scripts. Labels come
from a cross-encoder, or from a large model that puts each list in order, or without either from the teachers that found
the candidates: BM25 and encoders, the mean of their scores, each put on 0 to 1 within its own list. Without any
encoder beside it, BM25 is joined by the model itself: together they rank better than each.

Every ranker's nDCG@10 on the dev queries is measured, since a teacher that ranks worse than its pupil does harm (where
it did in https://arxiv.org/abs/2502.19712, section 6, training hurt).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.evaluation import evaluate, run_lines
from drama_models.folders import atomic_file, sha256_of_file
from drama_models.fusion import ranks, reciprocal_rank_fusion
from training.augment.cross_encoder import cross_encoder_identity
from training.augment.mine import BM25_NAME, MineRecipe, mine, search_vectors
from training.augment.rerank import Listwise, RerankRecipe, rerank
from training.augment.runs import read_queries, stream_run, write_in_parts
from training.data.score_fusion import normalise_scores
from training.specialise.findings import RankerQuality
from training.specialise.stages import content_hash
from training.specialise.vectors import PassageVectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from training.augment.runs import Hits, Query
    from training.specialise.layout import RunFolder
    from training.specialise.settings import SpecialiseRecipe
    from training.specialise.stages import Stages

DEPTH = 100  # documents of each ranker's list
MODEL, CANDIDATES, LABELS = "model", "candidates", "labels"
METRIC = "ndcg@10"
END: tuple[str, Hits] = ("", [])  # behind the last query of a run


@dataclass(frozen=True)
class Rankers:
    """Who ranked the made queries."""

    encoders: dict[str, Encoder]
    """By name; the model to specialise is the first."""

    @property
    def names(self) -> list[str]:
        """Of all runs whose lists give candidates."""
        return [MODEL, BM25_NAME, *(name for name in self.encoders if name != MODEL)]

    @property
    def teachers(self) -> list[str]:
        """Whose scores are labels, where neither a cross-encoder nor a large model gives them."""
        given = [name for name in self.encoders if name != MODEL]
        return [BM25_NAME, *(given or [MODEL])]


def labellers(recipe: SpecialiseRecipe, rankers: Rankers) -> str:
    """Who gives the labels, in words: a cross-encoder, a large model, or the teachers."""
    if recipe.reranker is not None:
        return f"the cross-encoder {recipe.reranker}"
    if recipe.endpoint is not None:
        return f"the large model {recipe.llm_model}"
    return f"the mean of {' and '.join(rankers.teachers)}"


def load_rankers(recipe: SpecialiseRecipe) -> Rankers:
    """Load the model and the teachers.

    Raises:
        ModelFolderError: a folder is missing or incomplete.
    """
    encoders = {MODEL: Encoder.from_pretrained(recipe.model)}
    for teacher in recipe.teachers:
        encoders[_free_name(Path(teacher).name, encoders)] = Encoder.from_pretrained(teacher)
    return Rankers(encoders)


def make_lists(
    recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages, rankers: Rankers
) -> tuple[list[RankerQuality], dict[str, Any]]:
    """Search with all rankers, fuse, label; returns how well each ranks the dev queries, and the labels' figures."""
    texts, queries = sha256_of_file(Collection(folder.found).corpus_file), sha256_of_file(folder.queries)
    job = {"texts": texts, "queries": queries, "k": DEPTH}
    bm25 = MineRecipe(
        collection=folder.found, examples=folder.queries, out=folder.run(BM25_NAME), k=DEPTH, language=recipe.language,
        workers=recipe.workers,
    )  # fmt: skip
    stages.run("mine-bm25", job | {"language": recipe.language}, [bm25.out], lambda: {"queries": mine(bm25)})
    for name, encoder in rankers.encoders.items():
        mined = job | {"model": encoder.fingerprint()}
        stages.run(f"mine-{name}", mined, [folder.run(name)], lambda: {"queries": mine_encoder(encoder, name, folder)})  # noqa: B023
    runs = [folder.run(name) for name in rankers.names]
    fused = {"runs": [sha256_of_file(run) for run in runs], "count": recipe.candidates}
    stages.run(CANDIDATES, fused, [folder.run(CANDIDATES)], lambda: write_candidates(folder, runs, recipe.candidates))
    figures = _label(recipe, folder, stages, rankers)
    return _quality(recipe, folder, stages, rankers), figures


def mine_encoder(encoder: Encoder, name: str, folder: RunFolder) -> int:
    """Write what an encoder finds for the made queries; passages that have vectors are not encoded again."""
    vectors = PassageVectors(encoder, folder.vectors, folder.found)
    vectors.encode()

    def search(block: list[Query]) -> list[tuple[str, Hits]]:
        found = search_vectors(encoder.encode_queries([text for _, text in block]), vectors.read(), DEPTH)
        return [(key, hits) for (key, _), hits in zip(block, found, strict=True)]

    job = {"texts": sha256_of_file(Collection(folder.found).corpus_file), "model": encoder.fingerprint(), "k": DEPTH}
    return write_in_parts(folder.run(name), read_queries(folder.found, folder.queries), search, job, name=name)


def write_candidates(folder: RunFolder, runs: Sequence[Path], count: int) -> dict[str, int]:
    """Write the first passages of all lists, fused by reciprocal rank."""
    queries = 0
    with atomic_file(folder.run(CANDIDATES)) as partial, partial.open("w", encoding="utf-8") as file:
        for key, lists in lists_of(folder.queries, runs):
            fused = reciprocal_rank_fusion(ranks(hits) for hits in lists)[:count]
            file.writelines(run_lines(key, fused, CANDIDATES))
            queries += 1
    return {"queries": queries}


def write_teachers_labels(folder: RunFolder, teachers: Sequence[Path]) -> dict[str, int]:
    """Write the candidates in the order of their mean score by the teachers."""
    queries = 0
    with atomic_file(folder.run(LABELS)) as partial, partial.open("w", encoding="utf-8") as file:
        for key, (candidates, *lists) in lists_of(folder.queries, [folder.run(CANDIDATES), *teachers]):
            file.writelines(run_lines(key, mean_scores(candidates, lists), LABELS))
            queries += 1
    return {"queries": queries}


def mean_scores(candidates: Hits, lists: Sequence[Hits]) -> Hits:
    """The candidates by the mean of the teachers' scores, best first; ties stay in the candidates' order.

    Each list is put on 0 to 1; a passage that it does not hold has 0 there. A teacher without a list does not count.
    """
    scaled = []
    for hits in filter(None, lists):
        values = normalise_scores(np.array([score for _, score in hits], dtype=np.float64), "min-max").tolist()
        scaled.append(dict(zip((document for document, _ in hits), values, strict=True)))
    scored = [(document, sum(each.get(document, 0.0) for each in scaled) / max(len(scaled), 1))
              for document, _ in candidates]  # fmt: skip
    return sorted(scored, key=lambda hit: -hit[1])


def lists_of(queries: Path, runs: Sequence[Path]) -> Iterator[tuple[str, list[Hits]]]:
    """Each query's list in every run, an empty one where a run has none; the runs are in the queries' order."""
    streams = [chain(stream_run(run), [END]) for run in runs]
    heads = [next(stream) for stream in streams]
    for key, _ in read_queries(queries, queries):
        lists = []
        for place, stream in enumerate(streams):
            found, hits = heads[place]
            lists.append(hits if found == key else [])
            if found == key:
                heads[place] = next(stream)
        if any(lists):
            yield key, lists


def _label(recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages, rankers: Rankers) -> dict[str, Any]:
    """The labels' run; returns the figures of a reranker."""
    job: dict[str, Any] = {"candidates": sha256_of_file(folder.run(CANDIDATES)), "count": recipe.candidates}
    out = [folder.run(LABELS)]
    if recipe.reranker is None and recipe.endpoint is None:
        runs = [folder.run(name) for name in rankers.teachers]
        job |= {"teachers": [sha256_of_file(run) for run in runs]}
        return stages.run(LABELS, job, out, lambda: write_teachers_labels(folder, runs))
    asking = RerankRecipe(
        collection=folder.found, run=folder.run(CANDIDATES), out=folder.run(LABELS), examples=folder.queries,
        k=recipe.candidates, cross_encoder=recipe.reranker, llm=None if recipe.reranker else recipe.endpoint,
        device=recipe.device, cache=folder.scores if recipe.reranker else folder.answers,
        listwise=Listwise(prompts=recipe.prompts),
    )  # fmt: skip
    if recipe.reranker:
        job |= {"reranker": cross_encoder_identity(recipe.reranker)}
    else:
        job |= {"reranker": recipe.llm_model, "prompts": content_hash(recipe.prompts) if recipe.prompts else None}
    return stages.run(LABELS, job, out, lambda: asdict(rerank(asking)), complete=lambda made: not made["unanswered"])


def _quality(recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages, rankers: Rankers) -> list[RankerQuality]:
    """nDCG@10 of each ranker on the dev queries; on those with labels, where a large model did not answer for all."""
    labelled_here = recipe.reranker is None and recipe.endpoint is None
    roles = {name: "teacher" if labelled_here and name in rankers.teachers else "retriever" for name in rankers.names}
    roles |= {MODEL: MODEL, LABELS: LABELS}
    qrels = Collection(folder.collection).qrels("dev")
    labelled = _dev_lists(folder.run(LABELS), qrels)
    qrels = {key: grades for key, grades in qrels.items() if key in labelled} or qrels

    def measure() -> dict[str, float]:
        return {name: evaluate(_dev_lists(folder.run(name), qrels), qrels, [METRIC])[METRIC] for name in roles}

    job = {"runs": {name: sha256_of_file(folder.run(name)) for name in roles}, "qrels": qrels}
    values = stages.run("rankers", job, [], measure)
    return [
        RankerQuality(name=name, role=role, queries=len(qrels), ndcg_at_10=values[name])  # type: ignore[arg-type]
        for name, role in roles.items()
    ]


def _dev_lists(run: Path, qrels: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    """The lists of the dev queries, which are the first of a run."""
    found: dict[str, dict[str, float]] = {}
    for key, hits in stream_run(run):
        if key not in qrels:
            break
        found[key] = dict(hits)
    return found


def _free_name(name: str, taken: dict[str, Encoder]) -> str:
    """The name, with a number behind it where it stands for something else already."""
    reserved = {*taken, MODEL, BM25_NAME, CANDIDATES, LABELS}
    return next(each for each in (name, *(f"{name}-{number}" for number in range(2, 99))) if each not in reserved)
