"""From a folder of documents to a retriever for them, and to figures that say whether it is better than before.

chunk → de-duplicate → find, crop and generate queries → split by document → mine → fuse → label → filter → train →
evaluate before and after → report. Every stage is done once for the same inputs (`stages`), so a killed run goes on
where it was, and a run on documents that were added makes only what is new, but for the training, which starts from the
given model again.

Tamber et al., 2025, https://arxiv.org/abs/2502.19712.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from drama_models.checkpoints import changed_settings
from drama_models.collection import Collection
from drama_models.errors import CollectionError, RecipeError
from drama_models.folders import atomic_file, sha256_of_file
from drama_models.model_folder import find_model_folder
from drama_models.provenance import installed_versions, plain_settings
from training.augment.chunk import ChunkRecipe, check_outside, chunk
from training.augment.cross_encoder import load_cross_encoder
from training.augment.deduplicate import DeduplicateRecipe, deduplicate
from training.augment.filter import FilterRecipe, filter_examples
from training.data.examples import read_examples
from training.specialise.findings import FILE_NAME, Corpus, DroppedQuery, Filter, Findings, QueryKind, SampleQuery
from training.specialise.judged import read_judged
from training.specialise.layout import RunFolder
from training.specialise.learning import learn
from training.specialise.lists import LABELS, MODEL, labellers, load_rankers, make_lists
from training.specialise.measuring import AFTER, BEFORE, QuerySet, measure
from training.specialise.queries import compared, document_of_passage, make_queries
from training.specialise.report import write_report
from training.specialise.settings import FREE_SETTINGS
from training.specialise.stages import Stages, content_hash
from training.specialise.verdict import judge, unanswered, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drama_models.encoder import Encoder
    from training.specialise.judged import JudgedQueries
    from training.specialise.queries import MadeQueries
    from training.specialise.settings import SpecialiseRecipe

FEWEST_PASSAGES = 3


@dataclass(frozen=True)
class Chunked:
    """What the documents became."""

    corpus: Corpus
    judged: JudgedQueries | None


def specialise(recipe: SpecialiseRecipe) -> Findings:
    """Specialise a retriever to documents; everything lies in `recipe.out` then, the report in its `report.html`.

    The same call goes on with a run that was killed.

    Raises:
        CollectionError: no documents, too few of them, nothing left after the filters, or malformed judgements.
        ModelFolderError: the model, a teacher or the reranker is missing or incomplete.
        EndpointError: the large model does not answer; what it has answered is kept.
        RecipeError: the folder holds something else, or a run with other settings, or one that is under way; or it
            lies among the documents.
        TrainingError: the loss became non-finite.
    """
    folder = RunFolder(recipe.out)
    _begin(recipe, folder)
    lock = FileLock(recipe.out / ".lock", timeout=0)
    try:
        with lock:
            return _specialise(recipe, folder, Stages(recipe.out))
    except Timeout:
        raise RecipeError(f"Another run is at work in {recipe.out}; wait for it, or choose another folder.") from None


def _specialise(recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages) -> Findings:
    rankers = load_rankers(recipe)
    if recipe.reranker is not None:
        load_cross_encoder(str(find_model_folder(recipe.reranker)), recipe.device)  # before anything is mined for it
    _keep_settings(recipe, folder)
    chunked = _chunk(recipe, folder, stages, rankers.encoders[MODEL])
    asked = {compared(text) for text in chunked.judged.queries.values()} if chunked.judged else set()
    made = make_queries(recipe, folder, stages, asked)
    qualities, reranked = make_lists(recipe, folder, stages, rankers)
    filters = _filter(recipe, folder, stages)
    training = learn(recipe, folder, stages, rankers)
    models = {BEFORE: recipe.model, AFTER: folder.retriever}
    evaluations = [measure(test, models, folder, stages) for test in _tests(folder, chunked.judged)]
    recommended, reason = judge(evaluations)
    kinds = _kinds(folder, made)
    large_model = made.usage | ({"reranking": reranked} if recipe.endpoint and not recipe.reranker else {})
    findings = Findings(
        model=str(recipe.model),
        retriever=str(folder.retriever),
        recommended=recommended,
        recommended_folder=str(folder.retriever if recommended == "new" else recipe.model),
        reason=reason,
        warnings=[
            *unanswered(large_model),
            *warn(evaluations, qualities, sum(kind.kept for kind in kinds)),
            *_unknown(chunked.judged),
        ],
        corpus=_split_counted(chunked.corpus, made),
        kinds=kinds,
        filters=[*map(_as_filter, made.left_out), *filters],
        rankers=qualities,
        labels_from=labellers(recipe, rankers),
        evaluations=evaluations,
        training=training,
        large_model=large_model,
        settings=plain_settings(recipe),
        versions=installed_versions(),
        times=stages.times,
        export_command=shlex.join(
            [
                "python",
                "-m",
                "export",
                "release",
                "--retriever",
                str(folder.retriever),
                "--out",
                str(recipe.out / "release"),
            ]
        ),
    )
    findings.save(recipe.out / FILE_NAME)
    write_report(findings, folder.report)
    return findings


def _begin(recipe: SpecialiseRecipe, folder: RunFolder) -> None:
    """Whether the run's folder is new, or of the same settings."""
    check_outside(recipe.out, recipe.documents)
    settings = plain_settings(recipe)
    if folder.settings.is_file():
        before = json.loads(folder.settings.read_text(encoding="utf-8"))
        was = changed_settings(before, settings, free=FREE_SETTINGS)
        if was:
            raise RecipeError(
                f"{recipe.out} holds a run with other settings ({was}); set them back to go on with it, or choose "
                "another folder with --out."
            )
        return
    if recipe.out.exists() and (not recipe.out.is_dir() or any(recipe.out.glob("[!.]*"))):
        raise RecipeError(f"{recipe.out} holds something else; choose a folder that is new or empty with --out.")
    if not recipe.documents.exists():
        raise CollectionError(f"There are no documents at {recipe.documents}; pass a folder or file of them.")
    find_model_folder(recipe.model)  # nothing is made where the model is missing


def _keep_settings(recipe: SpecialiseRecipe, folder: RunFolder) -> None:
    settings = plain_settings(recipe)
    with atomic_file(folder.settings) as partial:
        partial.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _chunk(recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages, model: Encoder) -> Chunked:
    """Documents to passages, each once; and the user's judgements of them."""
    chunking = ChunkRecipe(
        documents=recipe.documents, model=model.document_encoder.layout.backbone, out=folder.work / "chunks",
        max_tokens=min(recipe.max_tokens, model.document_encoder.profile.max_length), language=recipe.language,
    )  # fmt: skip
    job = {
        "documents": content_hash(recipe.documents), "tokenizer": content_hash(chunking.model / "tokenizer.json"),
        "max_tokens": chunking.max_tokens, "min_tokens": chunking.min_tokens, "language": chunking.language,
    }  # fmt: skip
    read = stages.run("chunk", job, [chunking.out], lambda: dict(chunk(chunking)["figures"]))
    unique = DeduplicateRecipe(collection=chunking.out, out=folder.passages)
    job = {"passages": sha256_of_file(Collection(chunking.out).corpus_file)}
    counted = stages.run("deduplicate", job, [folder.passages], lambda: dict(deduplicate(unique)["figures"]))
    if counted["kept"] < FEWEST_PASSAGES:
        raise CollectionError(
            f"{recipe.documents} gives {counted['kept']} passages ({counted['removed']} of them were contained in "
            "others); add documents with more text."
        )
    corpus = Corpus(
        documents=read["documents"], passages=counted["kept"], duplicates=counted["removed"], skipped=read["skipped"]
    )
    if recipe.qrels is None:
        return Chunked(corpus, None)
    return Chunked(corpus, read_judged(recipe.qrels, recipe.split, document_of_passage(folder.passages)))


def _filter(recipe: SpecialiseRecipe, folder: RunFolder, stages: Stages) -> list[Filter]:
    """Keep the queries that are worth training on."""
    passages = Collection(folder.found).count()
    filtering = FilterRecipe(
        collection=folder.found, examples=folder.train, teacher_run=folder.run(LABELS), out=folder.examples,
        retriever_run=folder.run(MODEL), length=min(recipe.candidates, passages), seed=recipe.seed,
    )  # fmt: skip
    job = {
        "examples": sha256_of_file(folder.train), "length": filtering.length, "seed": recipe.seed,
        "runs": [sha256_of_file(folder.run(name)) for name in (LABELS, MODEL)],
    }  # fmt: skip
    stages.run("filter", job, [folder.examples], lambda: dict(filter_examples(filtering)["figures"]))
    report = json.loads((folder.examples / "report.json").read_text(encoding="utf-8"))
    return [_as_filter(each) for each in report["filters"]]


def _as_filter(record: dict[str, Any]) -> Filter:
    samples = [
        DroppedQuery(
            query_id=each["query_id"], query=each["query"], kind=each["task"], own=each["own"],
            own_text=each["own_text"] or "", instead=each["instead"], instead_text=each["instead_text"],
        )
        for each in record["sample"]
    ]  # fmt: skip
    return Filter(name=record["name"], kept=record["kept"], dropped=record["dropped"], samples=samples)


def _tests(folder: RunFolder, judged: JudgedQueries | None) -> Iterator[QuerySet]:
    """Held-out queries, then the user's own."""
    collection, document_of = Collection(folder.collection), document_of_passage(folder.collection)
    qrels, texts = collection.qrels("test"), collection.queries()
    yield QuerySet(
        name="held-out", title="held-out queries", collection=folder.collection,
        queries={key: texts[key] for key in qrels}, qrels=qrels, kinds=_kinds_of(folder),
        groups={key: document_of[next(iter(grades))] for key, grades in qrels.items()}, document_of=None,
    )  # fmt: skip
    if judged is not None:
        yield QuerySet(
            name="yours", title="your queries", collection=folder.passages, queries=judged.queries, qrels=judged.qrels,
            kinds=dict.fromkeys(judged.queries, "your own"), groups=None,
            document_of=document_of_passage(folder.passages),
        )  # fmt: skip


def _kinds_of(folder: RunFolder) -> dict[str, str]:
    """The kind of each held-out query."""
    return dict(json.loads((folder.kinds).read_text(encoding="utf-8")))


def _kinds(folder: RunFolder, made: MadeQueries) -> list[QueryKind]:
    kept = dict.fromkeys(made.counts, 0)
    for example in read_examples(folder.examples / "examples.jsonl"):
        kept[example.task] += 1
    return [
        QueryKind(
            kind=kind, source=made.sources[kind], kept=kept[kind],
            samples=[SampleQuery(**sample) for sample in made.samples[kind]], **counts,
        )
        for kind, counts in made.counts.items()
    ]  # fmt: skip


def _split_counted(corpus: Corpus, made: MadeQueries) -> Corpus:
    return Corpus(**(asdict(corpus) | {"split": made.documents}))


def _unknown(judged: JudgedQueries | None) -> list[str]:
    if judged is None or not judged.unknown:
        return []
    shown = ", ".join(map(repr, judged.unknown[:3]))
    return [
        f"{len(judged.unknown)} of your judgements do not count: their documents ({shown}) are not there, or other "
        "documents hold their text."
    ]
