"""A folder laid out like the published `facebook/drama-base`, with random weights at its true shape.

Its configuration points to remote code that must never run: the code leaves a file behind if it does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from drama_models.model_folder import llama_tensor_shapes
from tests.conftest import make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {
    "architectures": ["DramaModel"],
    "auto_map": {"AutoModel": "modeling_drama.DramaModel"},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "num_key_value_heads": 12,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.48.0",
    "use_cache": False,
    "vocab_size": 128256,
}
SENTENCE_TRANSFORMERS = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": 768,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "include_prompt": True,
    },
    "config_sentence_transformers.json": {"prompts": {"query": "Query: "}, "similarity_fn_name": "cosine"},
    "sentence_bert_config.json": {"max_seq_length": 8192, "do_lower_case": False},
}
REMOTE_CODE = 'import pathlib\n(pathlib.Path(__file__).parent / "REMOTE_CODE_RAN").touch()\n'


def write_published_folder(folder: Path, *, with_eos: bool, **changes: object) -> Path:
    """Write the folder.

    Args:
        folder: where to.
        with_eos: whether its tokenizer appends EOS, as newer revisions do, or not, as the first one.
        changes: settings that differ from drama-base's.
    """
    config = CONFIG | changes
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    _write(folder / "config.json", config | ids)
    for name, content in SENTENCE_TRANSFORMERS.items():
        _write(folder / name, content)
    (folder / "modeling_drama.py").write_text(REMOTE_CODE, encoding="utf-8")
    if with_eos:
        from tokenizers.processors import TemplateProcessing

        ends = [(tokenizer.bos_token, tokenizer.bos_token_id), (tokenizer.eos_token, tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[tokenizer.bos_token, "$A", tokenizer.eos_token], special_tokens=ends
        )
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(0, 0.04, generator=generator)
        for name, shape in llama_tensor_shapes(config).items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
