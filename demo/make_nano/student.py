"""The student before training: the teacher itself without some of its layers and without most of its words.

What is kept is copied as it is (Sajjad et al., 2020, https://arxiv.org/abs/2004.03844, drop layers of a BERT likewise),
so the student starts as a damaged copy of the teacher and has only the damage to make good.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from demo.make_nano.vocabulary import rows_of, trimmed_tokenizer
from drama_models.folders import atomic_folder
from drama_models.model_folder import WEIGHTS, read_json
from drama_models.runtimes.bert_shape import POSITIONS, WORDS, BertShape

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor

CONFIG_KEPT = (
    "model_type", "hidden_size", "intermediate_size", "num_attention_heads", "hidden_act", "layer_norm_eps",
    "initializer_range", "type_vocab_size", "position_embedding_type",
)  # fmt: skip


def write_start(
    teacher: Path, tokenizer: Tokenizer, entries: Sequence[str], layers: Sequence[int], max_length: int, out: Path
) -> None:
    """Write the starting folder: config.json, model.safetensors, tokenizer.json.

    Args:
        teacher: folder of a BERT.
        tokenizer: the teacher's.
        entries: of its vocabulary, to keep.
        layers: to keep, counted from 0.
        max_length: positions to keep.
        out: folder to make.
    """
    stored = read_json(teacher / "config.json")
    config: dict[str, Any] = {key: stored[key] for key in CONFIG_KEPT if key in stored}
    config |= {
        "architectures": ["BertModel"],
        "num_hidden_layers": len(layers),
        "vocab_size": len(entries),
        "max_position_embeddings": max_length,
        "pad_token_id": list(entries).index("[PAD]"),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    state = kept_weights(load_file(teacher / WEIGHTS), rows_of(tokenizer, entries), layers, max_length)
    state = {name: state[name] for name in BertShape.from_config(config).weight_shapes()}
    with atomic_folder(out, scratch=True) as partial:
        save_file(state, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        trimmed_tokenizer(tokenizer, entries).save(str(partial / "tokenizer.json"))


def kept_weights(
    state: dict[str, Tensor], rows: Sequence[int], layers: Sequence[int], positions: int
) -> dict[str, Tensor]:
    """A BertModel's weights with fewer word rows, layers and positions; kept layers are numbered anew."""
    number_of = {str(layer): str(number) for number, layer in enumerate(layers)}
    kept = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[:2] == ["encoder", "layer"]:
            if parts[2] in number_of:
                kept[".".join(["encoder", "layer", number_of[parts[2]], *parts[3:]])] = value
        else:
            kept[name] = value
    kept[WORDS] = state[WORDS][torch.tensor(rows)]
    kept[POSITIONS] = state[POSITIONS][:positions]
    return {name: value.float().contiguous() for name, value in kept.items()}
