"""Queries of all kinds from the passages, and their parts: trained on, choosing the checkpoint, held out.

A query that passages of several documents gave asks for none of them in particular and is left out; so is one that
the user's own judged queries hold, since those must not be trained on.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from drama_models.collection import Collection
from drama_models.errors import CollectionError
from drama_models.folders import atomic_file
from training.augment.crop import CropRecipe, crop
from training.augment.filter import SAMPLE, SHOWN_CHARACTERS
from training.augment.find_queries import FindRecipe, find_queries
from training.augment.generate import GenerateRecipe, generate
from training.data.examples import TrainingExample, read_examples, write_examples
from training.specialise.settings import FOUND
from training.specialise.splitting import drawn, split_documents
from training.specialise.stages import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from training.specialise.layout import RunFolder
    from training.specialise.settings import SpecialiseRecipe
    from training.specialise.splitting import Part
    from training.specialise.stages import Stages

SHARED = "queries that several documents give"
JUDGED = "queries that are among your own"
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class MadeQueries:
    """What came of making queries."""

    documents: dict[str, int]
    """Documents of train, dev and test."""
    counts: dict[str, dict[str, int]]
    """Queries of each kind, in each part."""
    sources: dict[str, str]
    """Where each kind came from: found or generate."""
    samples: dict[str, list[dict[str, str]]]
    """Some queries of each kind, with their passage."""
    left_out: list[dict[str, Any]]
    """What was left out before mining: name, kept, dropped, samples."""
    usage: dict[str, Any]
    """Of the large model."""


def make_queries(recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages, judged: set[str]) -> MadeQueries:
    """Find, crop and generate queries, and write them by parts.

    Args:
        recipe: settings of the run.
        folder: of the run, with its passages.
        stages: of the run.
        judged: the user's own queries in the form of `compared`.

    Raises:
        CollectionError: too few documents, or no queries for one of the parts.
        EndpointError: the large model does not answer.
    """
    passages = content_hash(folder.passages)
    find = FindRecipe(
        collection=folder.passages, out=folder.found, kinds=recipe.found or FOUND, language=recipe.language,
        max_documents=1,
    )  # fmt: skip
    job: dict[str, Any] = {
        "passages": passages, "kinds": find.kinds, "language": recipe.language, "max_documents": find.max_documents
    }  # fmt: skip
    stages.run("find", job, [folder.found], lambda: dict(find_queries(find)["figures"]))
    source = _asked(recipe, folder, stages)
    files, usage = _made(recipe, folder, stages, source)
    job = {
        "queries": [content_hash(path) for path in files], "texts": content_hash(folder.found), "seed": recipe.seed,
        "held_out": recipe.held_out, "dev": recipe.dev, "most": [recipe.test_queries, recipe.dev_queries],
        "judged": sorted(judged),
    }  # fmt: skip
    outputs = [folder.collection, folder.queries, folder.train, folder.left_out, folder.kinds]
    figures = stages.run("split", job, outputs, lambda: _split(recipe, folder, files, judged))
    left_out = json.loads(folder.left_out.read_text(encoding="utf-8"))
    return MadeQueries(**figures, left_out=left_out, usage=usage)


def compared(query: str) -> str:
    """The form in which queries are compared: no case, punctuation or spacing; digits count."""
    words = WORD.findall(unicodedata.normalize("NFKC", query).casefold())
    return " ".join(words) or query


def document_of_passage(collection: Path) -> dict[str, str]:
    """The document of each passage, in the passages' order."""
    return {record["_id"]: record.get("document") or record["_id"] for record in Collection(collection).records()}


def _asked(recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages) -> Path:
    """The passages that queries are made of: all, or a drawn part of them."""
    if Collection(folder.found).count() <= recipe.max_passages:
        return folder.found

    def write() -> None:
        records = drawn(
            Collection(folder.found).records(), recipe.max_passages, recipe.seed, lambda record: str(record["_id"])
        )
        Collection.write(folder.asked, records)

    job = {"passages": content_hash(folder.found), "count": recipe.max_passages, "seed": recipe.seed}
    stages.run("draw", job, [folder.asked], write)
    return folder.asked


def _made(
    recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages, source: Path
) -> tuple[list[Path], dict[str, Any]]:
    """Files of queries, and what a large model took for its own."""
    files = [folder.found / "examples.jsonl"] if recipe.found else []
    usage: dict[str, Any] = {}
    job = {"passages": content_hash(source), "language": recipe.language}
    if recipe.crops_per_passage:
        crops = CropRecipe(
            collection=source, out=folder.work / "crops.jsonl", per_passage=recipe.crops_per_passage,
            language=recipe.language, seed=recipe.seed,
        )  # fmt: skip
        cropped = job | {"per_passage": crops.per_passage, "seed": crops.seed}
        stages.run("crop", cropped, [crops.out], lambda: {"queries": crop(crops)})
        files.append(crops.out)
    if recipe.endpoint is not None and recipe.generated:
        asking = GenerateRecipe(
            collection=source, out=folder.work / "generated", llm=recipe.endpoint, kinds=recipe.generated,
            prompts=recipe.prompts, cache=folder.answers,
        )  # fmt: skip
        prompts = content_hash(recipe.prompts) if recipe.prompts else None
        asked = job | {"model": recipe.llm_model, "kinds": asking.kinds, "prompts": prompts}
        figures = stages.run(
            "generate", asked, [asking.out], lambda: dict(generate(asking)["figures"]),
            complete=lambda made: not made["usage"]["failed"],
        )  # fmt: skip
        usage = {"model": recipe.llm_model} | figures["usage"] | {"rejected": sum(figures["rejected"].values())}
        files.append(asking.out / "examples.jsonl")
    return files, usage


def _split(recipe: SpecialiseRecipe, folder: RunFolder, files: list[Path], judged: set[str]) -> dict[str, Any]:
    document_of = document_of_passage(folder.found)
    parts = split_documents(document_of.values(), held_out=recipe.held_out, dev=recipe.dev, seed=recipe.seed)
    asked = document_of_passage(folder.asked) if len(document_of) > recipe.max_passages else document_of
    examples = [_named(example) for path in files for example in read_examples(path)]
    examples = [example for example in examples if example.positive_ids[0] in asked]
    texts = _texts(folder.found, {example.positive_ids[0] for example in examples})
    kept, left_out = _leave_out(examples, document_of, judged)
    by_part: dict[Part, list[TrainingExample]] = {"train": [], "dev": [], "test": []}
    for example in kept:
        by_part[parts[document_of[example.positive_ids[0]]]].append(example)
    limits: tuple[tuple[Part, int], ...] = (("dev", recipe.dev_queries), ("test", recipe.test_queries))
    for part, most in limits:
        by_part[part] = drawn(by_part[part], most, recipe.seed, _id)
    for part, made in by_part.items():
        if not made:
            raise CollectionError(
                f"The {part} documents give no queries; add documents, or more kinds of queries (--crops 1)."
            )
    _write(folder, by_part)
    _keep(folder.kinds, {example.query_id: example.task for example in by_part["test"]})
    _keep(folder.left_out, [_record(*each, len(kept), texts) for each in left_out if each[1]])
    kinds = sorted({example.task for example in kept})
    return {
        "documents": {part: list(parts.values()).count(part) for part in by_part},
        "counts": {
            kind: {part: sum(example.task == kind for example in made) for part, made in by_part.items()}
            for kind in kinds
        },
        "sources": {example.task: "generate" if example.source == "generate" else "found" for example in kept},
        "samples": {kind: _samples(kept, kind, texts, recipe.seed) for kind in kinds},
    }


def _named(example: TrainingExample) -> TrainingExample:
    """With a kind that tells a title that was found from one that a large model wrote."""
    return replace(example, task=f"{example.task} (generated)") if example.source == "generate" else example


def _id(example: TrainingExample) -> str:
    return example.query_id


def _leave_out(
    examples: list[TrainingExample], document_of: Mapping[str, str], judged: set[str]
) -> tuple[list[TrainingExample], list[tuple[str, list[TrainingExample]]]]:
    """Examples that ask for one document, one for each text; and what was left out, by reason."""
    given: dict[str, list[TrainingExample]] = defaultdict(list)
    for example in examples:
        given[compared(example.query)].append(example)
    kept: list[TrainingExample] = []
    shared: list[TrainingExample] = []
    own: list[TrainingExample] = []
    for text, same in given.items():
        positives = list(dict.fromkeys(key for example in same for key in example.positive_ids))
        if text in judged:
            own += same
        elif len({document_of[key] for key in positives}) > 1:
            shared += same
        else:
            kept.append(replace(same[0], positive_ids=positives))
    return kept, [(SHARED, shared), (JUDGED, own)]


def _record(name: str, dropped: list[TrainingExample], kept: int, texts: Mapping[str, str]) -> dict[str, Any]:
    """As the filters report what they dropped."""
    samples = [
        {
            "query_id": each.query_id, "query": each.query, "task": each.task, "own": each.positive_ids[0],
            "own_text": texts[each.positive_ids[0]], "instead": None, "instead_text": None,
        }
        for each in drawn(dropped, SAMPLE, 0, _id)
    ]  # fmt: skip
    return {"name": name, "kept": kept, "dropped": len(dropped), "sample": samples}


def _write(folder: RunFolder, by_part: Mapping[Part, list[TrainingExample]]) -> None:
    held = [*by_part["dev"], *by_part["test"]]
    qrels = {part: {each.query_id: dict.fromkeys(each.positive_ids, 1) for each in by_part[part]}
             for part in ("dev", "test")}  # fmt: skip
    records = Collection(folder.found).records()
    Collection.write(folder.collection, records, {each.query_id: each.query for each in held}, qrels)
    train = [replace(each, positive_ids=each.positive_ids[:1]) for each in by_part["train"]]
    write_examples(folder.train, train)
    write_examples(folder.queries, [*by_part["dev"], *train])


def _samples(kept: list[TrainingExample], kind: str, texts: Mapping[str, str], seed: int) -> list[dict[str, str]]:
    of_kind = [example for example in kept if example.task == kind]
    return [
        {"query": each.query, "passage_id": each.positive_ids[0], "passage": texts[each.positive_ids[0]]}
        for each in drawn(of_kind, SAMPLE, seed, _id)
    ]


def _texts(collection: Path, wanted: set[str]) -> dict[str, str]:
    """First characters of some passages."""
    documents = Collection(collection).documents()
    return {each.id: each.content[:SHOWN_CHARACTERS] for each in documents if each.id in wanted}


def _keep(path: Path, value: object) -> None:
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
