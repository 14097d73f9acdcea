"""The card of the demo's source model, written from its provenance and its folder alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drama_models.model_folder import read_json, tensor_shapes, weight_files
from drama_models.provenance import read_provenance

if TYPE_CHECKING:
    from pathlib import Path

CARD = """---
language: [en]
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [drama-models, llama]
---

# The demo's source model

A Llama of {parameters:,} parameters ({non_embedding:,} without the embedding matrix, which is also the output
head): {layers} layers, {hidden} wide, {heads} query heads in {groups} groups, a vocabulary of {vocabulary:,}
byte-level BPE entries that round-trip any Unicode text. `make demo` prunes it to half; it is of no other use than to
show the chain. Stored in bfloat16.

## What it saw

Docstrings, comments and a quarter of the source files of these Python packages, read as text from one environment:
{packages}. Nothing else: no web text, no dialogue, hardly any language but English and Python. One file in fifty was
kept out as a whole.

| text domain | bytes there | share of training |
|---|---|---|
{domains}

{tokens:,} training tokens ({tokens_per_parameter:.1f} for each non-embedding parameter) in {steps:,} steps of
{batch} sequences of {length}; AdamW, peak learning rate {learning_rate}, cosine to zero,
weight decay {weight_decay}, float32.

## How good it is

Bits per byte of held-out text, lower is better. Unigram and trigram (Witten-Bell) count the same tokens in the same
training text; xz compressed the held-out text after the end of the training text.

| text domain | this model | trigram | unigram | xz | before training |
|---|---|---|---|---|---|
{bits}

## Made by

`python -m demo.make_source`, with `demo/recipes/source.yaml`: the same continued pretraining that recovers pruned
models (`pruning/recover.py`), from random weights. Seed, versions and input hashes are in `provenance.json`.

## Limits

It continues docstrings plausibly and knows nothing. It may reproduce phrases of the packages it read, whose own
licences apply to them.
"""


def write_source_card(folder: Path) -> None:
    """Write `README.md` into the source model's folder.

    Args:
        folder: with `config.json`, safetensors and the provenance that `demo.make_source` completed.

    Raises:
        ModelFolderError: the folder is incomplete.
    """
    record, config = read_provenance(folder) or {}, read_json(folder / "config.json")
    shapes = [shape for path in weight_files(folder) for shape in tensor_shapes(path).values()]
    parameters = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)
    non_embedding = parameters - config["vocab_size"] * config["hidden_size"]
    recipe, figures = record["recipe"], record["figures"]
    card = CARD.format(
        parameters=parameters,
        non_embedding=non_embedding,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        groups=config["num_key_value_heads"],
        vocabulary=config["vocab_size"],
        packages=", ".join(f"{name} {version}" for name, version in figures["packages"].items()),
        domains="\n".join(
            f"| {domain} | {size:,} | {recipe['proportions'][domain]:.0%} |"
            for domain, size in figures["text_bytes"].items()
        ),
        tokens=figures["tokens"],
        tokens_per_parameter=figures["tokens"] / non_embedding,
        steps=figures["steps"],
        batch=recipe["batch_size"],
        length=recipe["sequence_length"],
        learning_rate=recipe["learning_rate"],
        weight_decay=recipe["weight_decay"],
        bits="\n".join(_bits_row(domain, figures) for domain in figures["held_out"]),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _bits_row(domain: str, figures: dict[str, Any]) -> str:
    baselines = figures["baselines_bits_per_byte"][domain]
    values = [
        figures["held_out"][domain]["bits_per_byte"],
        *(baselines[name] for name in ("trigram", "unigram", "xz")),
        figures["held_out_before"][domain]["bits_per_byte"],
    ]
    return f"| {domain} | " + " | ".join(f"{value:.3f}" for value in values) + " |"
