"""Make the source model that the demo prunes: a small grouped-query Llama, from nothing, on installed text.

    python -m demo.make_source            # about two hours on two cores; goes on where it was interrupted

Tokenizer, random start and text are made here; the training is the workshop's own continued pretraining
(`pruning.recover`), for which a randomly initialised folder is just another starting folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.environment import installed_packages
from demo.source_baselines import baseline_bits_per_byte
from demo.source_card import write_source_card
from demo.source_text import write_source_text
from drama_models.errors import ModelFolderError
from drama_models.folders import atomic_folder
from drama_models.progress import hide_loading_bars
from drama_models.provenance import read_provenance, write_provenance
from drama_models.recipe import parse_recipe
from pruning.corpus import Corpus, tokenise
from pruning.documents import read_documents
from pruning.recover import RecoverRecipe, recover

HERE = Path(__file__).parent
RECIPE = HERE / "recipes" / "source.yaml"
VOCABULARY = 8192
BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
# How Llama 3 cuts text before merging bytes: contractions, words, numbers of up to three digits, symbols, white space.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "intermediate_size": 512,
}


def train_tokenizer(text: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with 8,192 entries: any Unicode text comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS, EOS, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    files = [text / domain / "train.jsonl" for domain in ("docstrings", "comments", "code")]
    tokenizer.train_from_iterator((document for file in files for document in read_documents(file)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=1024
    )


def write_random_start(text: Path, out: Path, seed: int) -> None:
    """A folder like any other source model, with random weights."""
    with atomic_folder(out) as partial:
        train_tokenizer(text).save_pretrained(partial)
        torch.manual_seed(seed)
        config = LlamaConfig(
            **SHAPE,
            vocab_size=VOCABULARY,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
        LlamaForCausalLM(config).save_pretrained(partial)
        figures = {"parameters": LlamaForCausalLM(config).num_parameters()}
        write_provenance(partial, stage="demo.random_start", recipe=SHAPE | {"seed": seed}, inputs={}, figures=figures)


def make_source(recipe: RecoverRecipe, text: Path) -> None:
    """Text, tokenizer, random start, corpus, training (each skipped where its folder is there), and the card."""
    if not text.is_dir():
        print("bytes of text by domain:", write_source_text(text))  # noqa: T201
    if not recipe.model.is_dir():
        write_random_start(text, recipe.model, recipe.seed)
    if not recipe.corpus.is_dir():
        tokenise(text, recipe.model, recipe.corpus)
    record = read_provenance(recipe.out) if recipe.out.is_dir() else recover(recipe)
    if record is None:
        raise ModelFolderError(f"{recipe.out} has no provenance.json; remove the folder and run this again.")
    domains = Corpus.open(recipe.corpus).domains
    record["figures"] |= {
        "packages": {package.name: package.version for package in installed_packages()},
        "text_bytes": {domain: splits["train"].text_bytes for domain, splits in domains.items()},
        "baselines_bits_per_byte": baseline_bits_per_byte(text, recipe.corpus, VOCABULARY),
    }
    (recipe.out / "provenance.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_source_card(recipe.out)
    print(f"made {recipe.out}; next: make demo")  # noqa: T201


def main() -> None:
    """Run the shipped recipe; command-line words override its fields."""
    hide_loading_bars()
    recipe = parse_recipe(RecoverRecipe, [str(RECIPE), *sys.argv[1:]], command="python -m demo.make_source")
    work = HERE / "work"
    make_source(replace(recipe, out=work / "source"), work / "source_text")
    shutil.copytree(work / "source", recipe.out, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
