"""The console command: `drama encode | index | search | evaluate | serve`. Each parses, then calls the package."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from drama_models.bm25 import BM25
from drama_models.bm25 import FOLDER as BM25_FOLDER
from drama_models.bulk import encode_shards, read_manifest, read_shards
from drama_models.collection import Collection
from drama_models.console import run
from drama_models.encoder import Encoder
from drama_models.errors import CollectionError, IndexFolderError, IndexKindError
from drama_models.evaluation import evaluate as evaluate_run
from drama_models.evaluation import write_run
from drama_models.folders import check_replaceable
from drama_models.index import Index, ModelIdentity
from drama_models.index.folder import IDS as INDEX_IDS
from drama_models.index.kinds import KINDS, chosen_kind
from drama_models.quantisation import PRECISIONS
from drama_models.ray_workers import Engine
from drama_models.retriever import Retriever
from drama_models.runtimes.choice import Precision, RuntimeName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from drama_models.collection import Document
    from drama_models.index.kinds import Kind
    from drama_models.quantisation import EmbeddingPrecision

SNIPPET_CHARACTERS = 100
HITS = 100  # of each query that is evaluated
KEPT_LANGUAGE = ""  # of `search --bm25` without one: that which the index keeps BM25 for


@dataclass(frozen=True)
class Answer:
    """What a command says: a JSON value with --json, else lines for people."""

    value: object
    text: str


def encode(options: argparse.Namespace) -> Answer:
    """Documents of a collection to a folder of vectors; goes on where it was interrupted."""
    manifest = _encode_collection(
        options,
        options.collection,
        options.out,
        precision=options.store,
        engine=options.engine,
        workers=options.workers,
    )
    text = (
        f"made {options.out}: {manifest['count']:,} vectors of {manifest['dim']}; next: drama index {options.out} INDEX"
    )
    return Answer({"out": str(options.out), "count": manifest["count"], "dim": manifest["dim"]}, text)


def index(options: argparse.Namespace) -> Answer:
    """A collection, the vectors that `drama encode` made, or another index, to an index of some kind."""
    out, vectors = options.out, options.source
    check_replaceable(out, (INDEX_IDS,))
    kind = chosen_kind(options.kind, dict(map(_setting, options.set)))
    if options.bm25 and options.model is None:
        raise CollectionError(f"--bm25 reads texts, and {vectors} has none; index a collection, with --model.")
    if options.model is None:
        _check_unused(options)
    else:
        vectors = out.parent / f".{out.name}.vectors"  # kept until the index is there, so a rerun resumes
        _encode_collection(options, options.source, vectors)
    if (vectors / INDEX_IDS).is_file():
        built = _of_another_index(vectors, out, kind)
    else:
        manifest = read_manifest(vectors)
        identity = ModelIdentity.read(manifest["model"]).renamed(partial(_relative, folder=out))
        collection = _relative(str(options.source), out) if options.model else None
        built = Index(manifest["dim"], identity, collection, kind=kind)
        for ids, rows in read_shards(vectors):
            try:
                built.add(ids, rows)
            except ValueError as error:  # ids that whoever made the vectors gave twice
                raise CollectionError(f"{vectors} makes no index. {error}") from None
    bm25 = _bm25(Collection(options.source).documents(), options.bm25) if options.bm25 else None
    built.save(out, bm25=bm25)
    if options.model is not None:
        shutil.rmtree(vectors)
    made = f"made {out} ({kind.name}): {len(built):,} documents, dim {built.dim}"
    text = f'{made}; next: drama search {out} "your question"'
    return Answer({"out": str(out), "count": len(built), "dim": built.dim, "kind": kind.name}, text)


def search(options: argparse.Namespace) -> Answer:
    """The best documents for a question."""
    opened = Index.load(options.index, verify=options.verify)
    if options.model is None:
        if opened.model is None:
            raise IndexFolderError(f"{options.index} does not say which model it belongs to; pass it with --model.")
        kept = opened.model.renamed(partial(_resolved, folder=options.index))
        options.model, options.document_model = kept.name, options.document_model or kept.document_name
    options.dim = opened.dim
    bm25 = None if options.bm25 is None else _bm25_of(opened, options.index, options.bm25)
    hits = Retriever(_encoder(options), opened, bm25=bm25).search(options.query, options.k, task=options.task)
    texts = _texts(opened, options.index, {document for document, _ in hits})
    records = [
        {"rank": rank, "score": round(score, 6), "id": document, "text": texts.get(document)}
        for rank, (document, score) in enumerate(hits, start=1)
    ]
    return Answer(records, "\n".join(map(_hit_lines, records)))


def evaluate(options: argparse.Namespace) -> Answer:
    """nDCG@10, Recall@100, MRR@10 and MAP of a model on a collection, by exact search, or on tasks of mteb."""
    if options.mteb:
        return _evaluate_on_mteb(options)
    if options.collection is None:
        raise CollectionError("Pass a BEIR folder, or names of tasks with --mteb.")
    collection = Collection(options.collection)
    qrels, queries = collection.qrels(options.split), collection.queries()
    if not qrels:
        raise CollectionError(
            f"The split {options.split!r} of {options.collection} has no judgement; pass another one."
        )
    encoder = _encoder(options)
    documents = list(collection.documents())
    bm25 = _bm25(documents, options.bm25) if options.bm25 else None
    retriever = Retriever.of_documents(encoder, documents, bm25=bm25, show_progress=True)
    # one hit more, so that k are left where a query's own id is dropped
    asked = {key: queries[key] for key in qrels}
    run = retriever.run(asked, options.k + options.drop_identical_ids, task=options.task)
    if options.run is not None:
        write_run(options.run, run)
    figures = evaluate_run(run, qrels, drop_identical_ids=options.drop_identical_ids)
    text = "\n".join(f"{name:12} {value:.4f}" for name, value in figures.items())
    return Answer(figures | {"queries": len(qrels), "documents": len(documents)}, text)


def _evaluate_on_mteb(options: argparse.Namespace) -> Answer:
    from drama_models.mteb_encoder import evaluate_on_mteb

    ours = {
        "BEIR folder beside it": options.collection, "--task": options.task, "--bm25": options.bm25,
        "--run": options.run, "-k": options.k != HITS, "--drop-identical-ids": options.drop_identical_ids,
    }  # fmt: skip
    given = [name for name, value in ours.items() if value]
    if given:
        raise CollectionError(f"mteb evaluates in its own way, so --mteb takes no {', no '.join(given)}; leave it out.")
    figures = evaluate_on_mteb(_encoder(options), options.model, options.mteb, split=options.split)
    lines = [f"{task} {name:12} {value:.4f}" for task, scores in figures.items() for name, value in scores.items()]
    return Answer(figures, "\n".join(lines))


def serve(options: argparse.Namespace) -> Answer:
    """Embeddings over HTTP as OpenAI's clients ask for them, and search in an index; until it is told to end."""
    from drama_models.server.limits import Limits
    from drama_models.server.run import check_installed, is_loopback
    from drama_models.server.run import serve as run_server

    check_installed()
    from drama_models.server.app import Served

    opened = Index.load(options.index, verify=options.verify) if options.index else None
    encoder = _encoder(options)
    if opened is not None:
        opened.check_encoder(encoder)
    name = options.name or Path(options.model).name
    names = tuple({options.model} - {name})
    loopback = is_loopback(options.host)
    if not loopback:
        warnings.warn(f"Everybody who reaches {options.host} may use this server; it asks for no key.", stacklevel=2)
    served = Served(
        encoder=encoder, name=name, other_names=names, index=opened, limits=Limits(), together=options.together,
        loopback=loopback,
    )  # fmt: skip
    run_server(served, options.host, options.port)
    return Answer({"served": name}, f"{name} is no longer served")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `drama`: exit code 2 and one sentence for a user's mistake, 130 when interrupted."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # of all its arguments one is shown
    options = command_line().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")

    def command() -> str:
        answer: Answer = options.command(options)
        return json.dumps(answer.value, ensure_ascii=False) if options.json else answer.text

    return run(command, interrupted="the same command goes on where it stopped")


def command_line() -> argparse.ArgumentParser:
    """All commands of `drama` with their options; `parse_args` gives the function as `command`."""
    parser = argparse.ArgumentParser(
        prog="drama", description="Encode, index, search and evaluate with small retrievers."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], Answer]) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        added.set_defaults(command=function)
        added.add_argument("--runtime", choices=get_args(RuntimeName), default="auto", help="default: auto")
        added.add_argument(
            "--precision", choices=get_args(Precision), default="auto", help="that it computes in; default: auto, fp32"
        )
        added.add_argument("--device", help="for torch, such as cuda; default: a GPU if there is one")
        added.add_argument("--max-length", type=_positive, help="tokens kept of each text; default: the model's limit")
        added.add_argument("--document-model", help="its document encoder, where that is a folder of its own")
        added.add_argument(
            "--no-verify",
            dest="verify",
            action="store_false",
            help="do not compare weights and vectors with the hashes that were written; default: compare",
        )
        added.add_argument("--json", action="store_true", help="print the result as JSON")
        added.add_argument("--verbose", action="store_true", help="say what was chosen automatically")
        return added

    encoding = command(encode)
    encoding.add_argument("model", help="model folder or hub name")
    encoding.add_argument("collection", type=Path, help="BEIR folder")
    encoding.add_argument("out", type=Path, help="folder of vectors to fill")
    encoding.add_argument(
        "--store", choices=PRECISIONS, default="float32", help="numbers that vectors are kept in; default: float32"
    )
    encoding.add_argument(
        "--engine", choices=get_args(Engine), default="local", help="ray: several processes; default: local"
    )
    encoding.add_argument("--workers", type=_positive, default=2, help="processes of --engine ray; default: 2")
    indexing = command(index)
    indexing.add_argument("source", type=Path, help="BEIR folder (needs --model), folder of vectors, or index")
    indexing.add_argument("out", type=Path, help="index to make")
    indexing.add_argument("--model", help="model folder or hub name")
    indexing.add_argument("--kind", choices=tuple(KINDS), default="flat", help="see docs/search.md; default: flat")
    indexing.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the kind, such as links=48"
    )
    searching = command(search)
    searching.add_argument("index", type=Path, help="folder made by `drama index`")
    searching.add_argument("query", help="the question")
    searching.add_argument("-k", "--k", type=_positive, default=10, help="hits to show; default: 10")
    searching.add_argument("--model", help="model folder or hub name; default: the one the index was built with")
    evaluating = command(evaluate)
    evaluating.add_argument("model", help="model folder or hub name")
    evaluating.add_argument("collection", type=Path, nargs="?", help="BEIR folder")
    evaluating.add_argument("--mteb", nargs="+", metavar="TASK", help="tasks of mteb instead, by name, or BEIR folders")
    evaluating.add_argument("--split", default="test", help="judgements to use; default: test")
    evaluating.add_argument("-k", "--k", type=_positive, default=HITS, help=f"hits for each query; default: {HITS}")
    evaluating.add_argument("--drop-identical-ids", action="store_true", help="as ArguAna and Quora need it")
    evaluating.add_argument("--run", type=Path, help="write the ranking to this TREC run file")
    serving = command(serve)
    serving.add_argument("model", help="model folder or hub name")
    serving.add_argument("--index", type=Path, help="folder made by `drama index`, to search at /search; default: none")
    serving.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, this machine")
    serving.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    serving.add_argument("--name", help="that callers ask for as `model`; default: the folder's")
    serving.add_argument(
        "--no-batching", dest="together", action="store_false", help="one request after another; default: together"
    )
    for added in (searching, evaluating):
        added.add_argument("--task", help="named prompt for the query, or an instruction; default: the model's prompt")
    for added, use, language, default in (
        (indexing, "keep BM25 with the index", "en", "en"),
        (searching, "fuse with BM25", KEPT_LANGUAGE, "the index's, else en"),
        (evaluating, "fuse with BM25", "en", "en"),
    ):
        said = f"{use}; two-letter language, default: {default}"
        added.add_argument("--bm25", nargs="?", const=language, metavar="LANGUAGE", help=said)
    for added in (encoding, indexing, evaluating, serving):
        added.add_argument("--dim", type=int, help="coordinates to keep, cut before normalising; default: all")
    return parser


def _positive(words: str) -> int:
    if not words.isdecimal() or int(words) < 1:
        raise argparse.ArgumentTypeError(f"{words!r} must be a whole number above 0")
    return int(words)


def _check_unused(options: argparse.Namespace) -> None:
    """Refuse what only an encoder would read, where vectors are there already."""
    read = {
        "--dim": options.dim, "--max-length": options.max_length, "--device": options.device,
        "--document-model": options.document_model, "--runtime": options.runtime != "auto",
        "--precision": options.precision != "auto",
    }  # fmt: skip
    given = [name for name, value in read.items() if value]
    if given:
        raise CollectionError(
            f"{options.source} is indexed as it is without --model, so {' and '.join(given)} would change nothing; "
            "leave it out, or pass a collection and --model."
        )


def _encoder(options: argparse.Namespace) -> Encoder:
    return Encoder.from_pretrained(
        options.model,
        document_model=options.document_model,
        runtime=options.runtime,
        precision=options.precision,
        dim=options.dim,
        max_length=options.max_length,
        device=options.device,
        verify=options.verify,
    )


def _bm25(documents: Iterable[Document], language: str) -> BM25:
    return BM25(((document.id, document.content) for document in documents), language)


def _bm25_of(opened: Index, folder: Path, language: str) -> BM25:
    """The BM25 that is kept with an index, else or where that is of another language one made now of its collection."""
    kept = BM25.load(folder / BM25_FOLDER) if (folder / BM25_FOLDER).is_dir() else None
    if kept is not None and language in (KEPT_LANGUAGE, kept.language):
        return kept
    language = language or "en"
    if opened.collection is None or not (folder / opened.collection).is_dir():
        raise IndexFolderError(f"{folder} does not know its collection, which --bm25 reads; index it again.")
    why = "" if kept is None else f", since the index keeps it for {kept.language!r} and not for {language!r}"
    warnings.warn(
        f"BM25 over {len(opened):,} documents is made anew for this search{why}; `drama index --bm25 {language}` "
        "keeps it.",
        stacklevel=2,
    )
    return _bm25(Collection(folder / opened.collection).documents(), language)


def _of_another_index(source: Path, out: Path, kind: Kind) -> Index:
    """The documents of an index in one of another kind; model and collection are named as seen from there."""
    built = Index.load(source).rebuilt(kind)
    if built.model is not None:
        built.model = built.model.renamed(lambda name: _relative(_resolved(name, source), out))
    if built.collection is not None:
        built.collection = _relative(_resolved(built.collection, source), out)
    return built


def _setting(words: str) -> tuple[str, str]:
    name, equals, value = words.partition("=")
    if not equals:
        raise IndexKindError(f"--set {words!r} must be NAME=VALUE, such as --set links=48.")
    return name, value


def _encode_collection(
    options: argparse.Namespace,
    folder: Path,
    out: Path,
    *,
    precision: EmbeddingPrecision = "float32",
    engine: Engine = "local",
    workers: int = 2,
) -> dict[str, Any]:
    encoder, collection = _encoder(options), Collection(folder)
    documents = ((document.id, encoder.content_of(document)) for document in collection.documents())
    return encode_shards(
        encoder,
        documents,
        out,
        model=ModelIdentity.of(encoder, options.model, options.document_model),
        precision=precision,
        total=collection.count(),
        show_progress=True,
        engine=engine,
        workers=workers,
    )


def _relative(name: str, folder: Path) -> str:
    """A local path as seen from the index folder, so that both can move together; hub names stay as they are.

    Links are followed first: from where one leads to, `..` is another folder than from the link itself.
    """
    return os.path.relpath(Path(name).resolve(), folder.resolve()) if Path(name).exists() else name


def _resolved(name: str, folder: Path) -> str:
    local = folder / name
    return str(local.resolve()) if local.exists() else name


def _texts(opened: Index, folder: Path, wanted: set[str]) -> dict[str, str]:
    """Texts of the hits, where the index knows its collection and that is still there; read as far as the last one."""
    if not wanted or opened.collection is None or not (folder / opened.collection).is_dir():
        return {}
    texts: dict[str, str] = {}
    for document in Collection(folder / opened.collection).documents():
        if document.id in wanted:
            texts[document.id] = document.text
            if len(texts) == len(wanted):
                break
    return texts


def _hit_lines(record: dict[str, Any]) -> str:
    text = " ".join((record["text"] or "").split())[:SNIPPET_CHARACTERS]
    line = f"{record['rank']:>3}  {record['score']:.4f}  {record['id']}"
    return f"{line}\n             {text}" if text else line


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
