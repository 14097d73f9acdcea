"""Training: what is made, from what, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from drama_models import Collection, Encoder, Index, Profile, Retriever, evaluate
from drama_models.errors import CollectionError, ModelFolderError, TrainingError
from drama_models.evaluation import write_run
from drama_models.provenance import chain
from tests.conftest import TEXTS, make_tokenizer, train_recipe
from training.__main__ import COMMANDS
from training.data.datasets import DatasetRecipe
from training.data.examples import TrainingExample, write_examples
from training.data.supervision import RankWindows, Supervision, Teacher
from training.encoders import KINDS, EncoderRecipe, Kind, build_encoder, embed, tokenise
from training.evaluation import CollectionEvaluator, EvaluationRecipe
from training.lora import Lora
from training.recipe import ObjectiveRecipe, TrainRecipe
from training.start import write_start_folder
from training.step_data import StepData
from training.train import open_plan, train
from training.trainer import training_arguments


def test_the_retriever_is_a_sentence_transformers_folder(retriever_folder: Path) -> None:
    model = SentenceTransformer(str(retriever_folder), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model.prompts == {"query": "Query: ", "document": ""}
    ours = Encoder.from_pretrained(retriever_folder).encode_queries(TEXTS[:4])
    torch.testing.assert_close(torch.tensor(model.encode_query(TEXTS[:4])), torch.tensor(ours), atol=1e-5, rtol=0)
    profile = Profile.from_folder(retriever_folder)
    assert (profile.bidirectional, profile.dims, profile.max_length) == (True, (48, 16), 64)


def test_the_loss_falls_and_the_weights_move(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(llama_folder, collection_folder, examples_file, tmp_path / "made", steps=24)
    record = train(recipe)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "made" / "training_log.jsonl").read_text().splitlines()]
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    assert [stage["stage"] for stage in chain(record)] == ["training.train"]
    assert record["figures"]["steps"] == 24
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    before, after = (load_file(folder / "model.safetensors") for folder in (llama_folder, tmp_path / "made"))
    name = "layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[f"model.{name}"], after[name])


def test_the_causal_ablation_is_causal(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(
        llama_folder, collection_folder, examples_file, tmp_path / "made",
        encoder=EncoderRecipe(bidirectional=False, pooling="last", max_length=64),
    )  # fmt: skip
    train(recipe)
    profile = Profile.from_folder(tmp_path / "made")
    assert (profile.bidirectional, profile.pooling) == (False, "last")
    assert Encoder.from_pretrained(tmp_path / "made").encode_documents(TEXTS[:2]).shape == (2, 48)


def test_gradients_through_a_cache_train_the_same_model(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    for name, chunk_tokens in (("whole", None), ("cut", 100)):
        train(train_recipe(llama_folder, collection_folder, examples_file, tmp_path / name, chunk_tokens=chunk_tokens))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-6, msg=name)


def test_the_best_checkpoint_is_what_is_written_and_a_run_without_progress_stops(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    evaluation = EvaluationRecipe(collection=collection_folder, split="test", every=2, patience=2)
    recipe = train_recipe(
        llama_folder, collection_folder, examples_file, tmp_path / "made", steps=40, evaluation=evaluation,
        learning_rate=0.0,
    )  # fmt: skip
    figures = train(recipe)["figures"]
    assert (figures["steps"], figures["best_step"]) == (6, 2)  # nothing changes, so the third is the second failure
    log = [json.loads(line) for line in (tmp_path / "made" / "training_log.jsonl").read_text().splitlines()]
    assert [line["ndcg@10"] for line in log if "ndcg@10" in line] == [figures["best_ndcg@10"]] * 3
    model = SentenceTransformer(str(tmp_path / "made"), device="cpu")
    again = CollectionEvaluator(evaluation)(model)
    assert again["ndcg@10"] == pytest.approx(figures["best_ndcg@10"], abs=1e-6)
    encoder = Encoder.from_pretrained(tmp_path / "made", runtime="torch")
    documents = list(Collection(collection_folder).documents())
    index = Index(encoder.dim)
    index.add([row.id for row in documents], encoder.encode_documents([row.content for row in documents]))
    queries, qrels = Collection(collection_folder).queries(), Collection(collection_folder).qrels("test")
    stock = evaluate(Retriever(encoder, index).run({key: queries[key] for key in qrels}, 100), qrels)
    assert again == pytest.approx(stock, abs=1e-6)  # exact search through another encoder and index


@pytest.mark.parametrize("two_encoders", [False, True])
def test_updates_of_the_best_checkpoint_are_what_the_folder_holds(
    two_encoders: bool,
    llama_folder: Path,
    collection_folder: Path,
    examples_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[int, dict[Kind, Tensor]] = {}

    def evaluate(_: CollectionEvaluator, model: Any, *__: Any, steps: int = -1, **___: Any) -> dict[str, float]:
        with torch.no_grad():
            seen[steps] = {kind: embed(model, tokenise(model, TEXTS[:4], kind), kind) for kind in KINDS}
        return {"ndcg@10": 0.9 if steps == 2 else 0.1, "recall@100": 0.0}

    monkeypatch.setattr(CollectionEvaluator, "__call__", evaluate)
    encoder = EncoderRecipe(
        max_length=64, query_prompt="", normalise=False, two_encoders=two_encoders, lora=Lora(rank=4, dropout=0.0)
    )
    recipe = train_recipe(
        llama_folder, collection_folder, examples_file, tmp_path / "made", encoder=encoder, learning_rate=1e-2,
        evaluation=EvaluationRecipe(collection=collection_folder, split="test", every=1),
    )  # fmt: skip
    assert train(recipe)["figures"]["best_step"] == 2
    assert not list((tmp_path / "made").rglob("adapter*"))
    made = Encoder.from_pretrained(tmp_path / "made", runtime="torch")
    vectors = {"query": made.encode_queries(TEXTS[:4]), "document": made.encode_documents(TEXTS[:4])}
    for kind, best in seen[2].items():
        torch.testing.assert_close(torch.tensor(vectors[kind]), best, atol=1e-4, rtol=1e-4)  # merged, so rounded
        assert (best - seen[4][kind]).abs().max() > 1e-2
    assert torch.equal(seen[2]["query"], seen[2]["document"]) != two_encoders


def test_a_batch_is_prompted_texts_of_the_collection(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(llama_folder, collection_folder, examples_file, tmp_path / "made", negatives=2)
    write_start_folder(llama_folder, tmp_path / "start", bidirectional=True)
    model = build_encoder(tmp_path / "start", recipe.encoder, device="cpu")
    data = StepData(open_plan(recipe, training_arguments(recipe)), model, recipe)
    first, tokenizer = data[0], AutoTokenizer.from_pretrained(tmp_path / "start")
    assert len(data) == recipe.steps
    assert (len(first["query"]), len(first["document"])) == (8, 24)
    queries = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in first["query"]]
    documents = {str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in first["document"]}
    contents = {document.content for document in Collection(collection_folder).documents()}
    assert all(text.startswith("Query: ") for text in queries)
    assert len(documents) == 24  # no document twice in a batch
    assert all(any(content.startswith(text) for content in contents) for text in documents)
    again = data[0]
    assert all(torch.equal(one, two) for one, two in zip(first["document"], again["document"], strict=True))
    with pytest.raises(IndexError, match="batch 4 of a run of 4"):
        data[4]


def test_optimiser_and_schedule_begin_anew_with_a_teacher(
    llama_folder: Path, collection_folder: Path, tmp_path: Path
) -> None:
    queries = Collection(collection_folder).queries()
    names = [row.id for row in Collection(collection_folder).documents()]
    for teacher, order in (("first", names), ("second", names[::-1])):
        run = {query: {key: float(-rank) for rank, key in enumerate(order[:20])} for query in queries}
        write_run(tmp_path / f"{teacher}.run", run)
    dataset = DatasetRecipe(
        name="ranked", task="retrieval", collection=collection_folder,
        teachers=[Teacher(name=name, run=tmp_path / f"{name}.run") for name in ("first", "second")],
        supervision=Supervision(kind="progressive", steps_per_iteration=3),
        windows=RankWindows(k=20, positives=10, negatives=10),
    )  # fmt: skip
    recipe = train_recipe(
        llama_folder, collection_folder, tmp_path, tmp_path / "made", datasets=[dataset], steps=6, batch_size=2
    )
    train(recipe)
    log = [json.loads(line) for line in (tmp_path / "made" / "training_log.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in log]
    assert rates == pytest.approx([0, 1e-3, 5e-4, 0, 1e-3, 5e-4])


def test_start_folder_is_bidirectional_and_its_tokenizer_sets_both_ends(llama_folder: Path, tmp_path: Path) -> None:
    write_start_folder(llama_folder, tmp_path / "start", bidirectional=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    ids = tokenizer("a b c d e f", truncation=True, max_length=5)["input_ids"]
    assert (ids[0], ids[-1], len(ids)) == (0, 1, 5)
    config = json.loads((tmp_path / "start" / "config.json").read_text(encoding="utf-8"))
    assert (config["is_causal"], config["use_bidirectional_attention"]) == (False, True)
    with pytest.raises(ModelFolderError, match=r"is missing"):
        write_start_folder(tmp_path, tmp_path / "other", bidirectional=True)


def test_examples_that_do_not_fit_are_refused(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    def recipe(path: Path, **changes: object) -> TrainRecipe:
        return train_recipe(llama_folder, collection_folder, path, tmp_path / "made", **changes)

    with pytest.raises(CollectionError, match=r"fewer than its batch of 500; set a smaller batch_size"):
        train(recipe(examples_file, batch_size=500))
    stray = [
        TrainingExample(query_id=f"t{number}", query="x", positive_ids=[f"d{number}"], negative_ids=["unknown"])
        for number in range(8)
    ]
    write_examples(tmp_path / "stray.jsonl", stray)
    with pytest.raises(CollectionError, match=r"stray\.jsonl, line 1: .*unknown"):
        train(recipe(tmp_path / "stray.jsonl"))
    with pytest.raises(TrainingError, match="go beyond the backbone's 48"):
        train(recipe(examples_file, objective=ObjectiveRecipe(dims=(64,))))
    assert not (tmp_path / "made").exists()


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_queries(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(
        llama_folder, collection_folder, examples_file, tmp_path / "made", learning_rate=1e30, warmup_steps=0, steps=6
    )
    with pytest.raises(TrainingError, match=r"The loss is nan at step \d, on queries t\d+, t\d+.* of dataset 'topics'"):
        train(recipe)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"epochs": 0}, "epochs=0 must be positive"),
        ({"chunk_tokens": 0}, "chunk_tokens=0 must be at least 1"),
        ({"datasets": []}, "datasets is empty; name at least one"),
    ],
)
def test_recipes_refuse_nonsense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_recipe(tmp_path, tmp_path, tmp_path, tmp_path, **changes)


def test_objectives_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="dim_weights has 1 values for 2 dims"):
        ObjectiveRecipe(dims=(8, 4), dim_weights=(1.0,))
    with pytest.raises(ValueError, match="objective has no term; set contrastive, listwise or reranker"):
        ObjectiveRecipe(contrastive=None)


@pytest.mark.parametrize(
    ("kind", "two_encoders", "following"),
    [
        ("llama", False, "python -m export release"),
        ("bert", False, "python -m export release"),
        ("bert", True, "drama index"),
    ],
)
def test_the_command_says_what_it_made_and_what_comes_next(
    kind: str,
    two_encoders: bool,
    following: str,
    llama_folder: Path,
    collection_folder: Path,
    examples_file: Path,
    tmp_path: Path,
) -> None:
    backbone = llama_folder
    if kind == "bert":
        backbone, tokenizer = tmp_path / "bert", make_tokenizer()
        sizes: dict[str, Any] = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(backbone)
        tokenizer.save_pretrained(backbone)
    dataset = {"name": "a", "task": "retrieval", "collection": str(collection_folder), "examples": str(examples_file)}
    settings = {"backbone": str(backbone), "datasets": [dataset], "steps": 1, "batch_size": 4, "device": "cpu"}
    settings["encoder"] = {"two_encoders": two_encoders}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    said = COMMANDS["train"][0]([str(tmp_path / "recipe.yaml"), f"--out={tmp_path / 'made'}"])
    assert said.startswith(f"made {tmp_path / 'made'} from 96 examples in 1 steps; next: {following} ")
