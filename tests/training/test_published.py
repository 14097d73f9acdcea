"""Published retrievers trained on: what is built, trained and saved against the encoder that users load."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoTokenizer

from drama_models import Collection, Encoder, Profile, evaluate
from drama_models.folders import sha256_of_folder
from drama_models.model_folder import read_json
from drama_models.prompts import IN_CONTEXT, INSTRUCTED
from drama_models.provenance import read_provenance
from drama_models.tokenisation import load_tokenizer
from tests.conftest import TEXTS, make_llama, train_recipe
from tests.drama_models.published_models import WEB_SEARCH, write_bge_en_icl, write_bge_gemma2, write_dragon
from tests.training.test_prompts import batch_of
from training.encoders import Kind, build_encoder, embed, tokenise
from training.evaluation import EvaluationRecipe
from training.objectives import Contrastive
from training.prompts import InContextSettings, in_context_documents, in_context_queries
from training.published import published_encoder
from training.recipe import ObjectiveRecipe
from training.start import add_special_tokens, write_start_folder
from training.train import as_published, open_plan, train
from training.trainer import training_arguments

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

QUERIES, DOCUMENTS = ["put tables together", "digest of a file"], TEXTS[:5]


def test_dragon_trains_on_as_two_encoders(tmp_path: Path) -> None:
    query, _context = write_dragon(tmp_path)
    before = Encoder.from_pretrained(query)
    model = continue_from(query, tmp_path / "start")
    model.eval()
    sides: list[tuple[Kind, list[str], NDArray[np.float32]]] = [
        ("query", QUERIES, before.encode_queries(QUERIES)),
        ("document", DOCUMENTS, before.encode_documents(DOCUMENTS)),
    ]
    for kind, texts, expected in sides:
        ours = embed(model, tokenise(model, texts, kind), kind)
        np.testing.assert_allclose(ours.detach().numpy(), expected, atol=1e-4)
    step(model, tokenise(model, QUERIES, "query"), tokenise(model, DOCUMENTS[:2], "document"))
    model.eval()
    model.save_pretrained(str(tmp_path / "trained"))
    after = Encoder.from_pretrained(tmp_path / "trained")
    np.testing.assert_allclose(after.encode_queries(QUERIES), model.encode_query(QUERIES), atol=1e-4)
    np.testing.assert_allclose(after.encode_documents(DOCUMENTS), model.encode_document(DOCUMENTS), atol=1e-4)
    assert np.abs(after.encode_queries(QUERIES) - before.encode_queries(QUERIES)).max() > 1e-3
    assert np.abs(after.encode_documents(DOCUMENTS) - before.encode_documents(DOCUMENTS)).max() > 1e-3
    assert (after.profile.pooling, after.profile.normalise) == ("cls", False)


@pytest.mark.parametrize("separator", [" [SEP] ", ":\n"])
def test_a_trained_dragon_reads_titles_as_the_published_one(
    collection_folder: Path, examples_file: Path, tmp_path: Path, separator: str
) -> None:
    query, context = write_dragon(tmp_path)
    (context / "config_sentence_transformers.json").write_text(json.dumps({"title_separator": separator}))
    plain = train_recipe(
        query, collection_folder, examples_file, tmp_path / "made", continue_retriever=True, learning_rate=0.0,
        objective=ObjectiveRecipe(contrastive=Contrastive(similarity="dot", temperature=1.0)),
        evaluation=EvaluationRecipe(collection=collection_folder, split="test", every=2),
    )  # fmt: skip
    recipe = as_published(plain)
    batch = open_plan(recipe, training_arguments(recipe)).batch(0)
    assert all(separator in text for text, absent in zip(batch.documents, batch.absent, strict=True) if not absent)
    record = train(plain)
    figures = record["figures"]
    named = {"backbone": query, "document_backbone": context}  # found by the name of the other
    assert {role: record["inputs"][role]["sha256"] for role in named} == {
        role: sha256_of_folder(folder) for role, folder in named.items()
    }
    before, after = Encoder.from_pretrained(query), Encoder.from_pretrained(tmp_path / "made", runtime="torch")
    assert {each.document_encoder.profile.title_separator for each in (before, after)} == {separator}
    documents, queries = list(Collection(collection_folder).documents()), Collection(collection_folder).queries()
    qrels = Collection(collection_folder).qrels("test")
    found = {}
    for between in (separator, " "):
        vectors = before.encode_documents([row.joined(between) for row in documents])
        scores = before.encode_queries([queries[key] for key in qrels]) @ vectors.T
        rows = (dict(zip((row.id for row in documents), map(float, values), strict=True)) for values in scores)
        found[between] = evaluate(dict(zip(qrels, rows, strict=True)), qrels)["ndcg@10"]
    assert figures["best_ndcg@10"] == pytest.approx(found[separator], abs=1e-6)  # a rate of 0 changes nothing
    assert figures["best_ndcg@10"] != pytest.approx(found[" "], abs=1e-4)


def test_a_retriever_named_as_on_the_hub_is_recorded_by_its_files(
    retriever_folder: Path,
    collection_folder: Path,
    examples_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched, commit = tmp_path / "hub" / "models--someone--small", "0" * 40
    shutil.copytree(retriever_folder, fetched / "snapshots" / commit)
    (fetched / "refs").mkdir()
    (fetched / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    recipe = train_recipe(
        Path("someone/small"), collection_folder, examples_file, tmp_path / "made", continue_retriever=True, steps=1
    )
    record = train(recipe)
    assert record["inputs"]["backbone"]["sha256"] == sha256_of_folder(retriever_folder)
    assert record["parent"] == read_provenance(retriever_folder) is not None


@pytest.mark.parametrize("separator", ["\n", ": ", ":", " "])
def test_a_title_separator_stays_what_it_is(separated_folder: Path, tmp_path: Path, separator: str) -> None:
    folder = shutil.copytree(separated_folder, tmp_path / "published")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(read_json(path) | {"title_separator": separator}), encoding="utf-8")
    assert published_encoder(folder)[0].title_separator == Profile.from_folder(folder).title_separator == separator


def test_bge_en_icl_trains_on_with_examples(tmp_path: Path) -> None:
    folder = write_bge_en_icl(tmp_path / "bge-en-icl")
    before = Encoder.from_pretrained(folder)
    model = continue_from(folder, tmp_path / "start")
    model.eval()
    tokenizer = load_tokenizer(folder, set_ends=True)
    batch, settings = batch_of(6), InContextSettings()
    queries = [torch.tensor(ids) for ids in in_context_queries(batch, tokenizer, settings, seed=0, step=1)]
    documents = [torch.tensor(ids) for ids in in_context_documents(batch, tokenizer, settings)]
    assert max(map(len, queries)) > 2 * min(map(len, queries))  # some carry examples
    pooled = embed(model, documents, "document")
    expected = before.encode_documents(batch.documents)
    np.testing.assert_allclose(torch.nn.functional.normalize(pooled, dim=-1).detach(), expected, atol=1e-4)
    step(model, queries, documents[::2])
    model.save_pretrained(str(tmp_path / "trained"))
    after = Encoder.from_pretrained(tmp_path / "trained")
    assert replace(after.profile, prompts={}) == before.profile
    examples = [{"query": "average", "response": TEXTS[2]}]
    trained, published = (
        encoder.encode_queries(QUERIES, instruction=WEB_SEARCH, examples=examples) for encoder in (after, before)
    )
    assert 1e-4 < np.abs(trained - published).max() < 0.5


def test_bge_multilingual_gemma2_keeps_its_prompts(tmp_path: Path) -> None:
    folder = write_bge_gemma2(tmp_path / "gemma2")
    model = continue_from(folder, tmp_path / "start", max_length=128)
    model.save_pretrained(str(tmp_path / "saved"))
    before, after = Encoder.from_pretrained(folder), Encoder.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(
        after.encode_queries(QUERIES, task="web_search_query"),
        before.encode_queries(QUERIES, task="web_search_query"),
        atol=1e-4,
    )
    assert after.profile.max_length == 128
    assert before.profile.prompts.items() <= after.profile.prompts.items()
    assert (before.profile.instruct, after.profile.instruct) == (INSTRUCTED, INSTRUCTED)


def test_a_plain_language_model_gets_the_tags_as_tokens(tmp_path: Path) -> None:
    start = tmp_path / "start"
    write_start_folder(make_llama(tmp_path / "llama"), start, bidirectional=False)
    assert Profile.from_folder(start).instruct is None
    tokens = len(AutoTokenizer.from_pretrained(start))
    for _ in range(2):  # the second time there is nothing to add
        add_special_tokens(start, IN_CONTEXT.tokens, seed=0)
    assert Profile.from_folder(start).instruct == IN_CONTEXT
    assert json.loads((start / "config.json").read_text())["vocab_size"] == tokens + 3
    ids = load_tokenizer(start, set_ends=True).encode("<instruct>a\n<query>b\n<response>").ids
    assert [number for number in ids if number >= tokens] == [tokens, tokens + 1, tokens + 2]
    assert ids[-1] == 1
    vectors = Encoder.from_pretrained(start, runtime="torch").encode_queries(QUERIES, instruction=WEB_SEARCH)
    assert np.isfinite(vectors).all()


def continue_from(published: Path, work: Path, **changes: int) -> SentenceTransformer:
    """A published retriever as a trainable model, as a training run builds it."""
    recipe, folders = published_encoder(published)
    recipe = replace(recipe, **changes)  # type: ignore[arg-type]
    starts = [work / name for name in ("start", "document_start")[: len(folders)]]
    for backbone, start in zip(folders, starts, strict=True):
        write_start_folder(backbone, start, bidirectional=recipe.bidirectional)
    return build_encoder(starts[0], recipe, document_start=starts[1] if recipe.two_encoders else None, device="cpu")


def step(model: SentenceTransformer, queries: list[torch.Tensor], documents: list[torch.Tensor]) -> None:
    """One contrastive step on the diagonal."""
    optimiser = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.02)
    model.train()
    scores = embed(model, queries, "query") @ embed(model, documents, "document").T
    torch.nn.functional.cross_entropy(scores, torch.arange(len(queries))).backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
