"""DRAGON, bge-en-icl and bge-multilingual-gemma2 against the stock classes, their prompts and poolings by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoModel, AutoTokenizer, BertTokenizer

from drama_models import Collection, Encoder, Index, Profile, Retriever
from drama_models.bulk import read_shards
from drama_models.cli import main
from drama_models.collection import Document
from drama_models.errors import IndexFolderError, ModelFolderError, PromptError
from drama_models.index import ModelIdentity
from drama_models.layout import find_layouts
from tests.conftest import TEXTS
from tests.drama_models.published_models import WEB_SEARCH, write_bge_en_icl, write_bge_gemma2, write_dragon

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOCUMENTS = [text * (1 + number % 3) for number, text in enumerate(TEXTS[:7])]
QUERIES = ["put tables together", "digest", "the shortest way between two nodes"]
EXAMPLES = [
    {"query": "average numbers", "response": TEXTS[2]},
    {"instruct": "Name the topic.", "query": "draw a line", "response": "plot"},
]


@pytest.fixture(scope="module")
def dragon(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_dragon(tmp_path_factory.mktemp("dragon"))


@pytest.fixture(scope="module")
def icl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bge_en_icl(tmp_path_factory.mktemp("bge") / "bge-en-icl")


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bge_gemma2(tmp_path_factory.mktemp("bge") / "bge-multilingual-gemma2")


def first_states(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """State of [CLS], as DRAGON's card computes it."""
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[:, 0].numpy()


def last_states(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """State of the last position of left-padded whole texts between BOS and EOS, scaled to length 1."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    rows = [[1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2] for text in texts]
    tokens = tokenizer.pad({"input_ids": rows}, pad_to_multiple_of=8, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
    return torch.nn.functional.normalize(states.last_hidden_state[:, -1], dim=-1).numpy()


def test_dragon_takes_the_first_state_of_two_encoders(dragon: tuple[Path, Path]) -> None:
    query, context = dragon
    encoder = Encoder.from_pretrained(query, document_model=context)
    queries, documents = encoder.encode_queries(QUERIES), encoder.encode_documents(DOCUMENTS)
    np.testing.assert_allclose(queries, first_states(query, QUERIES), atol=1e-4)
    np.testing.assert_allclose(documents, first_states(context, DOCUMENTS), atol=1e-4)
    assert np.linalg.norm(documents, axis=1).min() > 1.5  # compared by inner product, so not scaled to length 1
    assert np.abs(encoder.encode_documents(QUERIES) - queries).max() > 0.1
    np.testing.assert_array_equal(np.concatenate(list(encoder.stream_documents(DOCUMENTS))), documents)


def test_one_of_two_encoders_finds_the_other(dragon: tuple[Path, Path], tmp_path: Path) -> None:
    expected = Encoder.from_pretrained(dragon[0], document_model=dragon[1])
    for name in (*dragon, str(dragon[0]) + "/", dragon[0].parent):
        found = Encoder.from_pretrained(name)
        assert found.fingerprint() == expected.fingerprint()
        np.testing.assert_array_equal(found.encode_documents(QUERIES), expected.encode_documents(QUERIES))
    alone = shutil.copytree(dragon[0], tmp_path / "my-query-encoder")
    with pytest.raises(ModelFolderError, match=r"one of two encoders.*my-context-encoder.*document_model="):
        Encoder.from_pretrained(alone)


def test_an_index_of_two_encoders_belongs_to_both(dragon: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(dragon[0])
    index = Index(32, ModelIdentity.of(encoder))
    index.add([f"d{number}" for number in range(len(DOCUMENTS))], encoder.encode_documents(DOCUMENTS))
    scores = first_states(dragon[0], QUERIES[:1]) @ first_states(dragon[1], DOCUMENTS).T
    hits = Retriever(encoder, index).search(QUERIES[0], k=3)
    assert [document for document, _ in hits] == [f"d{row}" for row in np.argsort(-scores[0])[:3]]
    for changed in dragon:
        other = shutil.copytree(dragon[0].parent, tmp_path / f"other-{changed.name}-pair")
        weights = bytearray((other / changed.name / "model.safetensors").read_bytes())
        weights[-2] ^= 1
        (other / changed.name / "model.safetensors").write_bytes(weights)
        with pytest.raises(IndexFolderError, match="another space"):
            Retriever(Encoder.from_pretrained(other), index)


def test_commands_put_a_separator_between_title_and_text_for_dragon(
    dragon: tuple[Path, Path], collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, index = tmp_path / "vectors", tmp_path / "my.index"
    words = ["encode", str(dragon[0]), str(collection_folder), str(vectors), "--document-model", str(dragon[1])]
    assert main(words) == 0
    documents = list(Collection(collection_folder).documents())
    contents = [f"{document.title} [SEP] {document.text}" for document in documents]
    expected = first_states(dragon[1], contents)
    np.testing.assert_allclose(np.concatenate([rows for _, rows in read_shards(vectors)]), expected, atol=1e-4)
    assert main(["index", str(vectors), str(index)]) == 0
    capsys.readouterr()
    assert main(["search", str(index), QUERIES[0], "--k", "3", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    scores = first_states(dragon[0], QUERIES[:1]) @ expected.T
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores[0], reverse=True)[:3], rel=1e-4)
    untitled = Document("d", "", "text alone")
    assert (untitled.joined(" [SEP] "), untitled.content) == ("text alone", "text alone")


def test_an_index_remembers_a_document_encoder_that_the_name_does_not_lead_to(
    dragon: tuple[Path, Path], collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    asks, answers = (shutil.copytree(folder, work / name) for folder, name in zip(dragon, ("a", "b"), strict=True))
    one, vectors, two, three = (str(work / name) for name in ("one", "vectors", "deep/two", "three"))
    words = [str(collection_folder), one, "--model", str(asks), "--document-model", str(answers)]
    assert main(["index", *words]) == 0
    assert main(["encode", str(asks), str(collection_folder), vectors, "--document-model", str(answers)]) == 0
    assert main(["index", vectors, two]) == 0
    assert main(["index", two, three, "--kind", "hnsw"]) == 0
    work.rename(tmp_path / "moved")
    contents = [document.joined(" [SEP] ") for document in Collection(collection_folder).documents()]
    scores = first_states(dragon[0], QUERIES[:1]) @ first_states(dragon[1], contents).T
    for index in (one, two, three):
        capsys.readouterr()
        moved = index.replace(str(work), str(tmp_path / "moved"))
        assert main(["search", moved, QUERIES[0], "-k", "3", "--json"]) == 0
        hits = json.loads(capsys.readouterr().out)
        assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores[0], reverse=True)[:3], rel=1e-4)
    assert main(["search", moved, "x", "--model", str(dragon[0])]) == 0  # which finds the other by its name
    assert main(["search", moved, "x", "--document-model", str(dragon[0])]) == 2
    assert "../a with ../b; this encoder is" in capsys.readouterr().err
    identity = ModelIdentity.of(Encoder.from_pretrained(tmp_path / "moved" / "a", document_model=dragon[1]))
    assert (identity.name, identity.document_name) == (str(tmp_path / "moved" / "a"), str(dragon[1]))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("token", ["</s>", {"content": "</s>", "lstrip": False}])
def test_a_pair_of_robertas_has_a_separator_of_its_own(
    dragon: tuple[Path, Path], tmp_path: Path, name: str, token: object
) -> None:
    assert Profile.of(find_layouts(*dragon)[1]).title_separator == " [SEP] "
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in dragon]
    for folder in folders:
        path = folder / name
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(settings | {"sep_token": token}), encoding="utf-8")
    assert Profile.of(find_layouts(*folders)[1]).title_separator == " </s> "


def test_a_router_folder_of_sentence_transformers_gives_its_vectors(dragon: tuple[Path, Path], tmp_path: Path) -> None:
    query, document = ([Transformer(str(folder)), Pooling(32, pooling_mode="cls")] for folder in dragon)
    stock = SentenceTransformer(modules=[Router.for_query_document(query, document)], device="cpu")
    stock.save_pretrained(str(tmp_path / "router"))
    encoder = Encoder.from_pretrained(tmp_path / "router")
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), stock.encode_query(QUERIES), atol=1e-4)
    np.testing.assert_allclose(encoder.encode_documents(DOCUMENTS), stock.encode_document(DOCUMENTS), atol=1e-4)
    assert not encoder.profile.normalise
    assert encoder.document_encoder is not encoder


def test_bge_en_icl_reads_instruction_and_examples_before_the_query(icl: Path) -> None:
    encoder = Encoder.from_pretrained(icl)
    np.testing.assert_allclose(encoder.encode_documents(DOCUMENTS), last_states(icl, DOCUMENTS), atol=1e-4)
    task = f"<instruct>{WEB_SEARCH}\n<query>"
    shots = (
        f"{task}average numbers\n<response>{TEXTS[2]}\n\n"
        "<instruct>Name the topic.\n<query>draw a line\n<response>plot\n\n"
    )
    for ours, prefix in (
        (encoder.encode_queries(QUERIES), ""),
        (encoder.encode_queries(QUERIES, instruction=WEB_SEARCH), task),
        (encoder.encode_queries(QUERIES, task=WEB_SEARCH, examples=[]), task),
        (encoder.encode_queries(QUERIES, instruction=WEB_SEARCH, examples=EXAMPLES), shots + task),
    ):
        expected = last_states(icl, [f"{prefix}{query}\n<response>" for query in QUERIES])
        np.testing.assert_allclose(ours, expected, atol=1e-4)
        assert np.abs(ours @ ours.T - 1).max() > 1e-3  # queries are told apart


def test_examples_and_prompts_of_the_folder_serve_their_task(icl: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(icl, tmp_path / "with-examples")
    prompts = {"web": f"<instruct>{WEB_SEARCH}\n<query>", "topics": "<instruct>Name the topic.\n<query>"}
    stored = {"prompts": prompts, "default_prompt_name": "web"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stored), encoding="utf-8")
    (folder / "examples.json").write_text(json.dumps({"web": EXAMPLES}), encoding="utf-8")
    encoder, plain = Encoder.from_pretrained(folder), Encoder.from_pretrained(icl)
    given = plain.encode_queries(QUERIES, instruction=WEB_SEARCH, examples=EXAMPLES)
    assert np.isfinite(plain.encode_queries(QUERIES, instruction="\ud800", examples=[{"query": "\udc00"}])).all()
    with pytest.raises(PromptError, match="instruction is int; pass the task in words"):
        plain.encode_queries(QUERIES, instruction=3)  # type: ignore[arg-type]
    np.testing.assert_array_equal(encoder.encode_queries(QUERIES, task="web"), given)
    np.testing.assert_array_equal(encoder.encode_queries(QUERIES), plain.encode_queries(QUERIES))
    without = plain.encode_queries(QUERIES, instruction=WEB_SEARCH)
    np.testing.assert_array_equal(encoder.encode_queries(QUERIES, task="web", examples=[]), without)
    topics = plain.encode_queries(QUERIES, instruction="Name the topic.")
    np.testing.assert_array_equal(encoder.encode_queries(QUERIES, task="topics"), topics)
    with pytest.raises(PromptError, match=r"task='news' is not among the tasks .*: topics, web\."):
        encoder.encode_queries(QUERIES, task="news")


def test_bge_multilingual_gemma2_has_a_prompt_and_no_response_tag(gemma2: Path) -> None:
    encoder = Encoder.from_pretrained(gemma2)
    np.testing.assert_allclose(encoder.encode_documents(DOCUMENTS), last_states(gemma2, DOCUMENTS), atol=1e-4)
    expected = last_states(gemma2, [f"<instruct>{WEB_SEARCH}\n<query>{query}" for query in QUERIES])
    np.testing.assert_allclose(encoder.encode_queries(QUERIES, task="web_search_query"), expected, atol=1e-4)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES, instruction=WEB_SEARCH), expected, atol=1e-4)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), last_states(gemma2, QUERIES), atol=1e-4)
    with pytest.raises(PromptError, match="not trained with examples"):
        encoder.encode_queries(QUERIES, task="web_search_query", examples=EXAMPLES)


def test_profiles_say_what_the_published_folders_do_not(dragon: tuple[Path, Path], icl: Path, gemma2: Path) -> None:
    profile = Profile.from_folder(icl)
    assert (profile.pooling, profile.bidirectional, profile.normalise) == ("last", False, True)
    assert (profile.max_length, profile.set_ends) == (512, True)
    assert Profile.from_folder(gemma2).instruct != profile.instruct
    document = Profile.from_folder(dragon[0].parent, "document")
    assert (document.pooling, document.bidirectional, document.normalise) == ("cls", True, False)
    assert (document.max_length, document.instruct) == (64, None)


def test_long_queries_are_cut_and_their_examples_are_not(icl: Path) -> None:
    encoder = Encoder.from_pretrained(icl, max_length=24)
    query = " ".join(TEXTS[:5])
    with pytest.warns(UserWarning, match="1 texts were longer"):
        ours = encoder.encode_queries([query], examples=EXAMPLES, instruction="Find it.")
    tokenizer = AutoTokenizer.from_pretrained(icl)
    text = f"<instruct>Find it.\n<query>{query}"
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    tag = len(tokenizer("\n<response></s>", add_special_tokens=False)["input_ids"])
    shots = (
        f"<instruct>Find it.\n<query>average numbers\n<response>{TEXTS[2]}\n\n"
        "<instruct>Name the topic.\n<query>draw a line\n<response>plot\n\n"
    )
    kept = text[: offsets[24 - 1 - tag - 1][1]]
    assert kept.startswith("<instruct>Find it.\n<query>join")
    np.testing.assert_allclose(ours, last_states(icl, [f"{shots}{kept}\n<response>"]), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"instruction": "Find it."}, "no format for an instruction"),
        ({"task": "Find the answer."}, "task='Find the answer.' is not among the tasks of this model, which are: none"),
        ({"examples": [{"query": "q", "response": "r"}]}, "not trained with examples"),
        ({"instruction": 3}, "no format for an instruction"),
        ({"examples": ["q"]}, "Example number 0 is str; pass mappings with `query` and `response`"),
        ({"examples": [{}, {"answer": "r"}]}, "Example number 1 has 'answer': 'r'"),
        ({"examples": [{"query": 3}]}, "Example number 0 has 'query': 3; an example has only texts"),
    ],
)
def test_what_a_model_has_no_format_for_is_refused(
    dragon: tuple[Path, Path], arguments: dict[str, Any], message: str
) -> None:
    encoder = Encoder.from_pretrained(dragon[0])
    with pytest.raises(PromptError, match=message):
        encoder.encode_queries(QUERIES, **arguments)
    assert encoder.encode_queries(QUERIES, examples=[]).shape == (3, 32)


def test_damaged_pairs_and_examples_name_the_file(dragon: tuple[Path, Path], icl: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(icl, tmp_path / "icl")
    (copy / "examples.json").write_text('{"web": [{"response": 1}]}', encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"examples\.json: Example number 0 has 'response': 1"):
        Encoder.from_pretrained(copy)
    pair = shutil.copytree(dragon[0].parent, tmp_path / "pair")
    shutil.copytree(dragon[1], pair / "another-context-encoder")
    with pytest.raises(ModelFolderError, match="several encoders for one side"):
        Encoder.from_pretrained(pair)
    with pytest.raises(ModelFolderError, match="pass the two encoders of one model"):
        Encoder.from_pretrained(dragon[0], document_model=write_wider(tmp_path / "wider"))


def write_wider(folder: Path) -> Path:
    """A BERT with another hidden size."""
    from transformers import BertConfig, BertModel

    _, context = write_dragon(folder)
    config = BertConfig.from_pretrained(context, hidden_size=64)
    BertModel(config).save_pretrained(context)
    return context


def test_a_retriever_asks_with_the_prompt_of_a_task(gemma2: Path) -> None:
    encoder = Encoder.from_pretrained(gemma2)
    index = Index(32)
    index.add([f"d{number}" for number in range(len(DOCUMENTS))], encoder.encode_documents(DOCUMENTS))
    vectors = last_states(gemma2, [f"<instruct>{WEB_SEARCH}\n<query>{query}" for query in QUERIES])
    expected = dict(index.search(vectors[:1], 3)[0])
    retriever = Retriever(encoder, index)
    hits = retriever.search(QUERIES[0], k=3, task="web_search_query")
    assert dict(hits) == pytest.approx(expected, abs=1e-4)
    assert dict(hits) != pytest.approx(dict(retriever.search(QUERIES[0], k=3)), abs=1e-4)
    run = retriever.run({"q1": QUERIES[0]}, k=3, task="web_search_query")
    assert run["q1"] == pytest.approx(expected, abs=1e-4)
