"""Small models of the real classes, built here: no network, no downloads, fixed seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drama_models.collection import Collection
from export.release import ReleaseRecipe, release
from pruning.corpus import tokenise
from training.augment.mine import mine_negatives
from training.data.datasets import DatasetRecipe
from training.data.examples import TrainingExample, write_examples
from training.encoders import EncoderRecipe
from training.recipe import ObjectiveRecipe, TrainRecipe
from training.train import train

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
TOPICS = {
    "join": "Put two tables together on a column that both of them have.",
    "sort": "Bring the rows of a table into ascending order of a column.",
    "mean": "Average the numbers of an array along an axis.",
    "parse": "Read a date from a string and give back the moment it names.",
    "path": "Find the shortest way between two nodes of a graph.",
    "split": "Cut a string into pieces at every separator.",
    "hash": "Compute a digest of the bytes in a file.",
    "plot": "Draw the points of a series as a line on a canvas.",
}
TEXTS = [f"{topic} number {number}. {text}" for number in range(12) for topic, text in TOPICS.items()]


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Tiny matrices are slower on many threads, and CI machines are shared."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose post-processor adds nothing, like the first published drama folders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def make_llama(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """A small grouped-query Llama with its tokenizer; weights are large enough for attention to matter."""
    tokenizer = make_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "intermediate_size": 80,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**(settings | changes))).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source model. Read-only: tests that change files copy it first."""
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def corpus_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tokenised text domains."""
    root = tmp_path_factory.mktemp("corpus")
    for domain, texts in (("long", TEXTS), ("short", TEXTS[::3])):
        (root / "text" / domain).mkdir(parents=True)
        (root / "text" / domain / "part.txt").write_text("\n\n".join(texts * 25), encoding="utf-8")
    tokenise(root / "text", llama_folder, root / "corpus")
    return root / "corpus"


@pytest.fixture(scope="session")
def collection_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BEIR folder: eight topics, twelve documents each, one query a topic."""
    folder = tmp_path_factory.mktemp("collections") / "topics"
    topics = list(TOPICS)
    documents = [
        {"_id": f"d{number}", "title": topics[number % len(topics)], "text": text} for number, text in enumerate(TEXTS)
    ]
    queries = {f"q-{topic}": f"{topic} {text.split()[-1]}" for topic, text in TOPICS.items()}
    qrels = {
        "test": {
            f"q-{topic}": {f"d{number}": 1 for number in range(position, len(TEXTS), len(topics))}
            for position, topic in enumerate(topics)
        }
    }
    Collection.write(folder, documents, queries, qrels)
    return folder


@pytest.fixture(scope="session")
def examples_file(collection_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training examples on that collection, with BM25 negatives."""
    from drama_models.bm25 import BM25

    documents = list(Collection(collection_folder).documents())
    teacher = BM25((document.id, document.content) for document in documents)
    examples = (
        TrainingExample(query_id=f"t{number}", query=document.text[:40], positive_ids=[document.id], source="crop")
        for number, document in enumerate(documents)
    )
    path = tmp_path_factory.mktemp("examples") / "examples.jsonl"
    write_examples(path, mine_negatives(examples, teacher, name="bm25", first_rank=2, last_rank=10))
    return path


def train_recipe(llama: Path, collection: Path, examples: Path, out: Path, **changes: Any) -> TrainRecipe:
    """A training of a few steps on the CPU."""
    settings: dict[str, Any] = {
        "datasets": [DatasetRecipe(name="topics", task="retrieval", collection=collection, examples=examples)],
        "encoder": EncoderRecipe(max_length=64),
        "objective": ObjectiveRecipe(dims=(48, 16)),
        "steps": 4,
        "batch_size": 8,
        "negatives": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "log_every": 1,
        "save_every": 2,
        "device": "cpu",
        "precision": "fp32",
    }
    return TrainRecipe(backbone=llama, out=out, **(settings | changes))


@pytest.fixture(scope="session")
def retriever_folder(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A retriever after a few training steps."""
    out = tmp_path_factory.mktemp("retrievers") / "retriever"
    train(train_recipe(llama_folder, collection_folder, examples_file, out))
    return out


@pytest.fixture(scope="session")
def separated_folder(retriever_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That retriever as one that reads title and text in two lines, as no one else does."""
    folder = shutil.copytree(retriever_folder, tmp_path_factory.mktemp("retrievers") / "separated")
    (folder / "provenance.json").unlink()  # its hashes are those of other settings
    path = folder / "config_sentence_transformers.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(stored | {"title_separator": ":\n"}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def release_folder(retriever_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of that retriever."""
    out = tmp_path_factory.mktemp("releases") / "release"
    release(ReleaseRecipe(retriever=retriever_folder, out=out, license="apache-2.0", languages=("en",)))
    return out
