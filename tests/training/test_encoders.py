"""What is trained: embeddings and gradients against the stock sentence-transformers forward, and what is saved."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertModel, MistralConfig, MistralModel, PreTrainedModel

from drama_models import Encoder
from drama_models.attention import PACKED
from drama_models.errors import AttentionDirectionError, MissingExtraError, ModelFolderError, TrainingError
from drama_models.model_folder import read_json
from drama_models.tokenisation import load_tokenizer
from tests.conftest import TEXTS, make_tokenizer
from training.encoders import EncoderRecipe, Kind, build_encoder, embed, load_adapters, merge_lora, tokenise
from training.lora import Lora
from training.start import encoder_tokenizer, write_start_folder

SOME = [TEXTS[0], TEXTS[3] * 2, TEXTS[5], "short", TEXTS[0] + "!"]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
CAUSAL = {"bidirectional": False, "pooling": "last"}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bidirectional llama": ("llama", {}),
    "causal llama with the state of EOS": ("llama", CAUSAL),
    "padded llama": ("llama", {"packed": False}),
    "mistral": ("mistral", CAUSAL | {"query_prompt": ""}),
    "bert": ("bert", {"pooling": "cls", "normalise": False}),
    "two berts": ("bert", {"pooling": "cls", "normalise": False, "two_encoders": True}),
    "two llamas": ("llama", {"two_encoders": True}),
    "checkpointed llama": ("llama", {"gradient_checkpointing": True}),
    "llama with lora": ("llama", {"lora": Lora(rank=4, alpha=8, dropout=0.0)}),
    "two berts with lora": ("bert", {"two_encoders": True, "lora": Lora(rank=4, alpha=8, dropout=0.0)}),
}


@pytest.fixture(scope="module")
def backbones(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of three kinds, of the true classes with random weights."""
    root, tokenizer = tmp_path_factory.mktemp("backbones"), make_tokenizer()
    torch.manual_seed(1)
    mistral = MistralConfig(**SIZES, num_key_value_heads=2, head_dim=8, vocab_size=len(tokenizer), sliding_window=8)
    MistralModel(mistral).save_pretrained(root / "mistral")
    BertModel(BertConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(root / "bert")
    for name in ("mistral", "bert"):
        tokenizer.save_pretrained(root / name)
    return {"llama": llama_folder, "mistral": root / "mistral", "bert": root / "bert"}


def built(backbones: dict[str, Path], name: str, work: Path, **changes: Any) -> SentenceTransformer:
    backbone, settings = RECIPES[name]
    recipe = EncoderRecipe(**{"max_length": 24} | settings | changes)
    if not (work / backbone).exists():
        write_start_folder(backbones[backbone], work / backbone, bidirectional=recipe.bidirectional)
    return build_encoder(work / backbone, recipe, device="cpu")


def stock(model: SentenceTransformer, texts: list[str], kind: Kind) -> Tensor:
    """The stock forward over a padded batch, without the normalisation at its end."""
    features: Any = model.preprocess(texts, task=kind)
    for module in model:
        features = features if isinstance(module, Normalize) else module(features)
    return features["sentence_embedding"]


def gradients(model: SentenceTransformer, embedded: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    embedded.sin().sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", list(RECIPES))
def test_embeddings_and_gradients_are_those_of_the_stock_forward(
    name: str, backbones: dict[str, Path], tmp_path: Path
) -> None:
    model = built(backbones, name, tmp_path).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    kinds: tuple[Kind, ...] = ("query", "document")
    for kind in kinds:
        expected = stock(model, SOME, kind)
        wanted = gradients(model, expected)
        found = embed(model, tokenise(model, SOME, kind), kind)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        own = gradients(model, found)
        assert own.keys() == wanted.keys()
        for weight in wanted:  # sums over all tokens in another order
            scale = max(float(wanted[weight].abs().max()), 1e-2)  # BERT's key biases have none but rounding
            torch.testing.assert_close(own[weight], wanted[weight], atol=1e-4 * scale, rtol=1e-3)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained >= own.keys()
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    backbones_of_model = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    assert {module.config._attn_implementation == PACKED for module in backbones_of_model} == {name != "padded llama"}


@pytest.mark.parametrize("name", ["bidirectional llama", "mistral", "two berts", "two llamas"])
def test_the_saved_folder_is_a_stock_model(name: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    model = built(backbones, name, tmp_path).eval()
    with torch.no_grad():  # so that the two encoders differ
        for number, weight in enumerate(model.parameters()):
            weight.add_(torch.randn_like(weight), alpha=0.01 * (1 + number % 3))
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    assert not any(PACKED in path.read_text() for path in (tmp_path / "saved").rglob("*.json"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    with torch.no_grad():
        ours = {
            kind: embed(model, tokenise(model, [(model.prompts[kind] or "") + text for text in SOME], kind), kind)
            for kind in ("query", "document")
        }
    vectors = {"query": loaded.encode_query(SOME), "document": loaded.encode_document(SOME)}
    encoder = Encoder.from_pretrained(tmp_path / "saved", runtime="torch")
    np.testing.assert_allclose(encoder.encode_queries(SOME), vectors["query"], atol=2e-5)
    np.testing.assert_allclose(encoder.encode_documents(SOME), vectors["document"], atol=2e-5)
    for kind, theirs in vectors.items():
        mine = ours[kind] if model.similarity_fn_name == "dot" else torch.nn.functional.normalize(ours[kind])
        np.testing.assert_allclose(mine.numpy(), theirs, atol=2e-5)
    assert ("two" in name) == (not np.allclose(loaded.encode(SOME, task="query"), loaded.encode(SOME, task="document")))
    assert loaded.similarity_fn_name == model.similarity_fn_name


def test_two_encoders_begin_alike_and_are_trained_apart(backbones: dict[str, Path], tmp_path: Path) -> None:
    model = built(backbones, "two llamas", tmp_path).eval()
    ids = tokenise(model, SOME, "query")
    query, document = embed(model, ids, "query"), embed(model, ids, "document")
    assert torch.equal(query, document)
    moved = {name.split(".")[2] for name in gradients(model, query)}
    assert moved == {"query"}


def test_the_direction_is_what_the_recipe_says(backbones: dict[str, Path], tmp_path: Path) -> None:
    ids = torch.tensor([0, 5, 6, 7, 1])
    changed = torch.tensor([0, 5, 6, 9, 1])
    for name, sees in (("bidirectional llama", True), ("causal llama with the state of EOS", False)):
        model = built(backbones, name, tmp_path / name, pooling="cls").eval()  # the first state alone
        first, second = embed(model, [ids], "query"), embed(model, [changed], "query")
        assert torch.equal(first, second) != sees
    with pytest.raises(AttentionDirectionError, match="attends bidirectionally where the recipe asks for causal"):
        built(backbones, "bidirectional llama", tmp_path / "bidirectional llama", bidirectional=False)
    with pytest.raises(AttentionDirectionError, match="is a bert, in which every token sees every other"):
        write_start_folder(backbones["bert"], tmp_path / "bert", bidirectional=False)


@pytest.mark.parametrize("name", ["llama with lora", "two berts with lora"])
def test_merged_lora_is_a_plain_folder_with_the_same_vectors(
    name: str, backbones: dict[str, Path], tmp_path: Path
) -> None:
    model = built(backbones, name, tmp_path)
    updates = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert updates
    assert all("lora_" in name for name in updates)
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    ids = tokenise(model, SOME, "document")
    before = embed(model, ids, "document").detach()
    for _ in range(3):
        optimiser.zero_grad()
        embed(model, ids, "document").sin().sum().backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        trained = embed(model, ids, "document")
        merge_lora(model)
        merged = embed(model, ids, "document")
    assert (trained - before).abs().max() > 1e-2
    torch.testing.assert_close(merged, trained, atol=1e-4, rtol=1e-4)
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    assert not list((tmp_path / "saved").rglob("adapter*"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    vectors = torch.nn.functional.normalize(merged).numpy()
    np.testing.assert_allclose(loaded.encode(SOME, task="document"), vectors, atol=2e-5)
    encoder = Encoder.from_pretrained(tmp_path / "saved", runtime="torch")
    np.testing.assert_allclose(encoder.encode_documents(SOME), vectors, atol=2e-5)


def test_lora_without_peft_says_what_to_install(
    backbones: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"encoder\.lora needs .*: pip install '(.*)'\.") as error:
        built(backbones, "llama with lora", tmp_path)
    groups = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert str(error.value).split("'")[1] in groups["dependency-groups"]["workshop"]


@pytest.mark.parametrize("name", ["llama with lora", "two berts with lora"])
def test_updates_are_read_back_from_a_checkpoint_of_this_model_alone(
    name: str, backbones: dict[str, Path], tmp_path: Path
) -> None:
    model, other = (built(backbones, name, tmp_path) for _ in range(2))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_()
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    load_adapters(other, tmp_path / "saved")
    expected = model.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in other.state_dict().items())
    wider = built(backbones, name, tmp_path, lora=Lora(rank=8))
    target = "query" if "bert" in name else "down_proj"
    fewer = built(backbones, name, tmp_path, lora=Lora(rank=4, targets=(target,)))
    for stranger in (wider, fewer):
        with pytest.raises(TrainingError, match=r"does not hold the updates of this model; remove .*saved to go on"):
            load_adapters(stranger, tmp_path / "saved")
    next((tmp_path / "saved").rglob("adapter_model.safetensors")).unlink()
    with pytest.raises(TrainingError, match="does not hold the updates of this model"):
        load_adapters(other, tmp_path / "saved")


def test_bfloat16_autocast_trains_float32_weights(backbones: dict[str, Path], tmp_path: Path) -> None:
    model = built(backbones, "bidirectional llama", tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        embedded = embed(model, tokenise(model, SOME, "query"), "query")
    found = gradients(model, embedded.float())
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    exact = embed(model, tokenise(model, SOME, "query"), "query")
    assert torch.nn.functional.cosine_similarity(embedded.float(), exact).min() > 0.98


def test_a_wrapped_model_is_called_as_a_whole(backbones: dict[str, Path], tmp_path: Path) -> None:
    """DistributedDataParallel must see the forward pass, or it synchronises nothing."""

    class Wrapper(torch.nn.Module):
        calls = 0

        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, features: dict[str, Any]) -> Any:
            self.calls += 1
            return self.module(features)

    model = built(backbones, "two llamas", tmp_path).eval()
    wrapped: Any = Wrapper(model)
    ids = tokenise(model, SOME, "document")
    assert torch.equal(embed(wrapped, ids, "document"), embed(model, ids, "document"))
    assert wrapped.calls == 1


@pytest.mark.parametrize("name", ["bidirectional llama", "bert", "llama with lora"])
def test_distributed_data_parallel_finds_a_gradient_for_every_weight(
    name: str, backbones: dict[str, Path], tmp_path: Path
) -> None:
    """A weight that no embedding goes through would stop the second step; one process is enough to see it."""
    model = built(backbones, name, tmp_path).eval()
    ids = tokenise(model, SOME, "query")
    wanted = gradients(model, embed(model, ids, "query"))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped: Any = DistributedDataParallel(model)
        for _ in range(2):
            found = gradients(model, embed(wrapped, ids, "query"))
    finally:
        dist.destroy_process_group()
    assert found.keys() == wanted.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    for weight in wanted:
        torch.testing.assert_close(found[weight], wanted[weight], atol=1e-5, rtol=1e-4)


def test_tokens_end_with_the_ends_also_where_a_text_is_cut(backbones: dict[str, Path], tmp_path: Path) -> None:
    model = built(backbones, "bidirectional llama", tmp_path, max_length=6)
    ids = [row.tolist() for row in tokenise(model, ["a", TEXTS[0]], "document")]
    assert [len(row) for row in ids] == [3, 6]
    assert all((row[0], row[-1]) == (0, 1) for row in ids)


@pytest.mark.parametrize(
    ("named", "numbers", "ends"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, {}, (0, 1)),
        ({}, {"bos_token_id": 0, "eos_token_id": [1]}, (0, 1)),  # by number only
        ({"eos_token": "</s>"}, {}, (None, 1)),  # it has no BOS
        ({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}, {"bos_token_id": 0}, (None, 1)),
    ],
)
def test_ends_are_those_that_the_folder_names_and_pad_too(
    named: dict[str, Any], numbers: dict[str, Any], ends: tuple[int | None, int], llama_folder: Path, tmp_path: Path
) -> None:
    folder = folder_with_ends(llama_folder, tmp_path / "llama", named, numbers)
    write_start_folder(folder, tmp_path / "start", bidirectional=True)
    model = build_encoder(tmp_path / "start", EncoderRecipe(max_length=24), device="cpu")
    (ids,) = tokenise(model, ["a"], "query")
    assert encoder_tokenizer(folder).encode("a").ids == ids.tolist()
    assert [number for number in ids.tolist() if number in (0, 1)] == [end for end in ends if end is not None]
    assert model.tokenizer.pad_token_id == 1
    if ends[0] is not None or "add_bos_token" in named:  # where encoding sets the ends itself, it sets the same
        assert load_tokenizer(folder, set_ends=True).encode("a").ids == ids.tolist()


@pytest.mark.parametrize("named", [{"bos_token": "<s>"}, {"bos_token": "<unheard>", "eos_token": "</s>"}])
def test_ends_that_are_not_there_are_refused(named: dict[str, Any], llama_folder: Path, tmp_path: Path) -> None:
    folder = folder_with_ends(llama_folder, tmp_path / "llama", named, {})
    with pytest.raises(ModelFolderError, match=r"names no (bos|eos)_token that tokenizer\.json knows"):
        write_start_folder(folder, tmp_path / "start", bidirectional=True)


def folder_with_ends(source: Path, folder: Path, named: dict[str, Any], numbers: dict[str, Any]) -> Path:
    """A copy of a Llama that names these ends in tokenizer_config.json, and these in config.json."""
    shutil.copytree(source, folder)
    for name, keys, ends in (
        ("tokenizer_config.json", ("bos_token", "eos_token", "pad_token"), named),
        ("config.json", ("bos_token_id", "eos_token_id"), numbers),
    ):
        stored = {key: value for key, value in read_json(folder / name).items() if key not in keys}
        (folder / name).write_text(json.dumps(stored | ends), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lora(rank=0), "rank=0 must be at least 1"),
        (lambda: Lora(dropout=1.0), "dropout=1.0 must be at least 0 and below 1"),
        (lambda: EncoderRecipe(max_length=2), "max_length=2 leaves no room"),
        (lambda: EncoderRecipe(dropout=1.0), "dropout=1.0 must be at least 0 and below 1"),
        (lambda: build_encoder(Path("a"), EncoderRecipe(), document_start=Path("b")), "document_start is for two"),
    ],
)
def test_nonsense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["bert", "padded llama", "bidirectional llama"])
def test_dropout_is_that_of_the_recipe_and_not_saved(name: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    def twice(**changes: Any) -> tuple[Tensor, Tensor]:
        model = built(backbones, name, tmp_path, **changes)
        model.train()
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        tokens = tokenise(model, SOME, "query")
        return embed(model, tokens, "query"), embed(model, tokens, "query")

    config = json.loads((backbones[RECIPES[name][0]] / "config.json").read_text())
    for share, equal in ((0.0, True), (0.5, False), (None, "bert" not in name)):  # of a BERT 0.1, of a Llama none
        one, two = twice(dropout=share)
        assert torch.equal(one, two) == equal
        saved = json.loads((tmp_path / "saved" / "config.json").read_text())
        assert all(saved[key] == config[key] for key in config if "dropout" in key)
