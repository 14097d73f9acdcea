"""The whole way, from a folder of manuals to a report: without a large model, with an endpoint, grown, and mistaken."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drama_models import Collection, Encoder
from drama_models.errors import DramaError
from drama_models.evaluation import evaluate, read_run
from drama_models.folders import sha256_of_file
from tests.training.augment.chat_server import serving
from tests.training.specialise.documents import QUICK, write_manuals
from training.__main__ import COMMANDS
from training.data.examples import read_examples
from training.specialise.findings import Findings
from training.specialise.layout import RunFolder
from training.specialise.queries import make_queries
from training.specialise.settings import SpecialiseRecipe
from training.specialise.specialise import specialise
from training.specialise.stages import Stages
from training.specialise.verdict import summary


def recipe(documents: Path, model: Path, out: Path, **changes: Any) -> SpecialiseRecipe:
    return SpecialiseRecipe(documents=documents, model=model, out=out, **(QUICK | changes))


@pytest.fixture(scope="module")
def manuals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty manuals, one of them there twice, and a file that is none."""
    folder = write_manuals(tmp_path_factory.mktemp("zoo") / "manuals")
    shutil.copy(folder / "003.md", folder / "copy.md")
    (folder / "logo.txt").write_bytes(b"\x89PNG\x00\x01")
    return folder


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five questions of a user; the fourth is of a document whose copy stays, the last is what a document asks."""
    path = tmp_path_factory.mktemp("judged") / "questions.jsonl"
    records = [{"query": f"sounds of animal number {n}", "documents": [f"{n:03}"]} for n in range(4)]
    records += [{"query": "Where does owl number 0 live?", "documents": ["000.md"]}]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(manuals: Path, judged: Path, retriever_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without a large model."""
    out = tmp_path_factory.mktemp("runs") / "zoo"
    specialise(recipe(manuals, retriever_folder, out, qrels=judged))
    return out


def test_no_document_of_a_held_out_query_is_trained_on(made: Path) -> None:
    collection = Collection(made / "collection")
    document_of = {record["_id"]: record["document"] for record in collection.records()}
    trained = {document_of[each.positive_ids[0]] for each in read_examples(made / "examples" / "examples.jsonl")}
    held = {
        split: {document_of[key] for grades in collection.qrels(split).values() for key in grades}
        for split in ("dev", "test")
    }
    assert trained
    assert min(map(len, held.values())) >= 2
    assert not trained & (held["dev"] | held["test"])
    assert not held["dev"] & held["test"]


def test_the_findings_are_what_the_runs_say(made: Path, retriever_folder: Path) -> None:
    findings = Findings.load(made / "findings.json")
    held_out, yours = findings.evaluations
    collection = Collection(made / "collection")
    for evaluation, qrels, name in (
        (held_out, collection.qrels("test"), "held-out"),
        (yours, {f"line-{n + 1}": {f"{n % 4:03}.md": 1} for n in (0, 1, 2, 4)}, "yours"),
    ):
        for which in ("before", "after"):
            measured = evaluate(read_run(made / "runs" / f"{name}-{which}.run"), qrels, ["ndcg@10", "recall@100"])
            for metric, value in measured.items():
                assert getattr(evaluation.change(metric), which) == pytest.approx(value)
    assert [each.dim for each in held_out.by_dim] == [48, 16]
    assert held_out.by_dim[0].after == pytest.approx(held_out.change("ndcg@10").after)
    encoder = Encoder.from_pretrained(made / "retriever", dim=16)
    texts, queries = {each.id: each.content for each in collection.documents()}, collection.queries()
    products = (
        encoder.encode_queries([queries[key] for key in collection.qrels("test")])
        @ encoder.encode_documents(list(texts.values())).T
    )
    run = {
        key: dict(zip(texts, row.tolist(), strict=True))
        for key, row in zip(collection.qrels("test"), products, strict=True)
    }
    cut = evaluate(run, collection.qrels("test"), ["ndcg@10"])["ndcg@10"]
    assert held_out.by_dim[1].after == pytest.approx(cut, abs=1e-6)
    assert findings.corpus.duplicates == 2
    assert findings.corpus.skipped == {"binary": ["logo.txt"]}
    assert sum(findings.corpus.split.values()) == findings.corpus.documents - 1 == 40
    assert "'003'" in next(each for each in findings.warnings if "judgements" in each)


def test_what_two_documents_are_called_is_no_query(tmp_path: Path) -> None:
    titles = ["Release notes", "release  Notes", *(f"Page about animal {number}" for number in range(10))]
    records = [
        {"_id": f"{n}:0", "title": title, "text": f"Text number {n} is of some length.", "document": str(n)}
        for n, title in enumerate(titles)
    ]
    folder = RunFolder(tmp_path)
    Collection.write(folder.passages, records)
    make_queries(recipe(tmp_path, tmp_path, tmp_path, found=("title",), crops=0), folder, Stages(tmp_path), set())
    asked = {each.query for each in read_examples(folder.queries)} | set(
        Collection(folder.collection).queries().values()
    )
    assert asked == set(titles[2:])


def test_the_users_own_queries_are_never_trained_on(made: Path) -> None:
    texts = {each.query for each in read_examples(made / "work" / "queries.jsonl")}
    assert "Where does owl number 0 live?" not in texts
    assert "Where does carp number 3 live?" in texts
    findings = Findings.load(made / "findings.json")
    assert {each.name: each.dropped for each in findings.filters}["queries that are among your own"] == 1


def test_the_report_and_the_last_words_say_which_model_to_use(made: Path, retriever_folder: Path) -> None:
    findings = Findings.load(made / "findings.json")
    words = summary(findings, made)
    assert f"recommended: {findings.recommended_folder}" in words
    assert f": python -m export release --retriever {made / 'retriever'} --out" in words.splitlines()[-1]
    assert (findings.recommended == "new") == (findings.recommended_folder == str(made / "retriever"))
    assert findings.reason in (made / "report.html").read_text(encoding="utf-8")
    assert {kind.kind for kind in findings.kinds} >= {"crop", "title", "question"}
    assert any(each.startswith("Only 4 of your queries are judged") for each in findings.warnings)


def test_a_second_run_makes_nothing_and_one_on_more_documents_only_what_is_new(
    made: Path, manuals: Path, judged: Path, retriever_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "zoo"
    shutil.copytree(made, out)
    again = recipe(manuals, retriever_folder, out, qrels=judged)
    specialise(again)  # in its new place
    capsys.readouterr()
    before = sha256_of_file(out / "findings.json")
    specialise(again)
    told = capsys.readouterr().err
    assert told.count("done before") == told.count("specialise |") > 10
    assert sha256_of_file(out / "findings.json") == before
    grown = tmp_path / "grown"
    shutil.copytree(manuals, grown)
    write_manuals(grown, range(100, 106))
    held = {each.query_id for each in Findings.load(out / "findings.json").evaluations[0].scores}
    specialise(replace(again, documents=grown))
    of_old = out / "work" / "vectors" / Encoder.from_pretrained(retriever_folder).fingerprint()[:16]
    counts = [len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(of_old.glob("*.jsonl"))]
    assert counts == [80, 80, 12, 12]  # without and with titles; then six manuals of two passages
    trained = {each.query_id for each in read_examples(out / "examples" / "examples.jsonl")}
    assert not trained & held


def test_a_large_model_writes_queries_and_orders_lists(
    manuals: Path, retriever_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(messages: list[dict[str, str]]) -> str:
        asked = messages[-1]["content"]
        if "passages by relevance" in "".join(turn["content"] for turn in messages):
            return "[1] > [2] > [3] > [4] > [5] > [6]"
        words = asked.rpartition("<passage>")[2].replace("</passage>", "").split()
        return " ".join(words[3:12] if "question" in messages[0]["content"] else words[6:10])

    def refused(_: int, body: dict[str, Any]) -> int | None:
        return 400 if zlib.crc32(json.dumps(body).encode()) % 5 == 0 else None

    with serving(reply, refused) as server:
        (tmp_path / "prompts").mkdir()
        own = "=== user\nMine: order the $count passages by relevance to $query.\n$passages"
        (tmp_path / "prompts" / "rerank.txt").write_text(own, encoding="utf-8")
        asked = recipe(
            manuals, retriever_folder, tmp_path / "out", llm=server.url, llm_model="tiny", found=(),
            generated=("question", "keywords"), prompts=tmp_path / "prompts", llm_usd_per_million=(1e6, 0.0),
        )  # fmt: skip
        partial = specialise(asked)
        reranking = partial.large_model["reranking"]
        assert 0 < reranking["unanswered"] < reranking["queries"]
        assert partial.warnings[0].startswith(
            f"The large model did not answer {partial.large_model['failed']} of 160 req"
        )
        assert f"and {reranking['unanswered']} of {reranking['queries']} requests to order a" in partial.warnings[0]
        labels = read_run(tmp_path / "out" / "work" / "runs" / "labels.run")
        assert len(labels) == reranking["queries"] - reranking["unanswered"]  # and no list in the order it had
        dev = Collection(tmp_path / "out" / "collection").qrels("dev")
        assert {each.queries for each in partial.rankers} == {len(dev.keys() & labels.keys())}
        server.faults = lambda *_: None
        findings = specialise(asked)
        assert findings.large_model["failed"] == findings.large_model["reranking"]["unanswered"] == 0
        assert not any("did not answer" in each for each in findings.warnings)
        assert any(body["messages"][-1]["content"].startswith("Mine: order the 6") for body in server.bodies)
        assert findings.large_model["usd"] == findings.large_model["prompt_tokens"]
        count = len(server.bodies)
        shutil.rmtree(tmp_path / "out" / "work")
        specialise(asked)
        assert len(server.bodies) == count  # every answer was kept
    assert [(kind.kind, kind.source) for kind in findings.kinds] == [
        ("keywords (generated)", "generate"), ("question (generated)", "generate"),
    ]  # fmt: skip
    assert findings.large_model["answers"] > 100
    assert findings.large_model["reranking"]["incomplete"] == 0
    assert {each.role for each in findings.rankers} == {"model", "retriever", "labels"}


Change = Callable[[Path], dict[str, Any]]


def _binary(folder: Path) -> dict[str, Any]:
    (folder / "docs").mkdir()
    (folder / "docs" / "a.txt").write_bytes(b"\x00\x01")
    return {"documents": folder / "docs"}


def _few(folder: Path) -> dict[str, Any]:
    return {"documents": write_manuals(folder / "docs", range(4))}


def _other(folder: Path) -> dict[str, Any]:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("x", encoding="utf-8")
    return {}


def _empty(folder: Path) -> dict[str, Any]:
    (folder / "docs").mkdir()
    return {"documents": folder / "docs"}


def _not_judged(folder: Path) -> dict[str, Any]:
    (folder / "q.jsonl").write_text('{"query": "x", "documents": ["nowhere"]}', encoding="utf-8")
    return {"qrels": folder / "q.jsonl"}


MISTAKES: dict[str, tuple[Change, str]] = {
    "no folder": (lambda folder: {"documents": folder / "absent"}, "There are no documents at"),
    "an empty folder": (_empty, "holds no documents"),
    "a binary file": (_binary, r"holds no documents \(1 files skipped \(binary: a\.txt\)\)"),
    "a run among the documents": (
        lambda folder: {"documents": folder, "out": folder / "docs" / "out"}, "would be read as documents the next time"
    ),
    "few documents": (_few, "There are 4 documents with passages, and at least 10 are needed"),
    "no model": (lambda folder: {"model": folder / "absent"}, "absent"),
    "no teacher": (lambda folder: {"teacher": str(folder / "nobody")}, "nobody"),
    "no reranker": (lambda folder: {"reranker": str(folder / "nobody")}, "nobody"),
    "an encoder as the reranker": (
        lambda _: {"reranker": "demo/nano"}, r"demo/nano is no cross-encoder: it has no weights for a score"
    ),
    "another's folder": (_other, "holds something else; choose a folder that is new or empty"),
    "judgements of other documents": (_not_judged, "judges none of these documents relevant"),
    "an endpoint that is down": (
        lambda _: {"llm": "http://127.0.0.1:9/v1", "llm_model": "m"}, "There is no answer from http://127.0.0.1:9/v1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name: str, manuals: Path, retriever_folder: Path, tmp_path: Path) -> None:
    change, message = MISTAKES[name]
    settings = {"documents": manuals, "model": retriever_folder, "out": tmp_path / "out"} | change(tmp_path)
    with pytest.raises(DramaError, match=message) as caught:
        specialise(SpecialiseRecipe(**(QUICK | settings)))
    assert str(caught.value).endswith(".")
    assert not (tmp_path / "out" / "retriever").exists()


def test_other_settings_are_refused_by_name(made: Path, manuals: Path, retriever_folder: Path) -> None:
    with pytest.raises(DramaError, match=r"holds a run with other settings \(candidates=6, seed=42\)"):
        specialise(recipe(manuals, retriever_folder, made, candidates=5, seed=1))


def test_nothing_left_after_the_filters_is_one_sentence(
    made: Path, manuals: Path, judged: Path, retriever_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path / "zoo")
    labels = tmp_path / "zoo" / "work" / "runs" / "labels.run"
    own = {each.query_id: each.positive_ids[0] for each in read_examples(tmp_path / "zoo" / "work" / "queries.jsonl")}
    lines = [line for line in labels.read_text(encoding="utf-8").splitlines(keepends=True)
             if line.split()[2] != own[line.split()[0]]]  # fmt: skip
    record = json.loads((tmp_path / "zoo" / ".stages" / "labels.json").read_text(encoding="utf-8"))
    labels.write_text("".join(lines), encoding="utf-8")
    record["outputs"]["work/runs/labels.run"] = sha256_of_file(labels)
    (tmp_path / "zoo" / ".stages" / "labels.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DramaError, match="passed the filters"):
        specialise(recipe(manuals, retriever_folder, tmp_path / "zoo", qrels=judged))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be positive"),
        ({"epochs": float("nan")}, "epochs=nan and"),
        ({"max_tokens": 5}, "max_tokens=5 must be at least 10"),
        ({"workers": -1}, "workers=-1 and"),
        ({"seed": -1}, "seed=-1 not negative"),
    ],
)
def test_settings_that_a_later_stage_would_refuse_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(Path(), Path(), Path(), **changes)


def test_the_command_knows_both_spellings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for flag in ("--llm-model=x", "--llm_model=x"):
        with pytest.raises(DramaError, match="llm and llm_model go together"):
            COMMANDS["specialise"][0](["--documents", str(tmp_path), "--model", "m", "--out", "o", flag])
