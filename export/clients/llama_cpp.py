"""llama.cpp, through a GGUF file that is written here. Not a module of ours: run by path, imports no package of ours.

python llama_cpp.py FOLDER BATCHES.json OUTPUT.npy

Needs llama-cpp-python, gguf and safetensors. Names and layout are those of llama.cpp's own converter.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.pop(0)  # the script's own folder, where this file would hide the package of the same name

import gguf
import numpy as np
from llama_cpp import LLAMA_POOLING_TYPE_MEAN, Llama
from safetensors.numpy import load_file

LINEAR = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
LLAMA3_WORDS = r"\p{N}{1,3}"  # of the pattern that Llama 3 splits texts with


def rotated_pairs(weight: Any, heads: int) -> Any:
    """Rows of a projection in llama.cpp's order, (out, in): its pairs are neighbours, transformers' are halves."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def rotary_factors(rope: dict[str, Any], size: int) -> Any:
    """By what Llama 3's scaling divides each rotary frequency, (size / 2,)."""
    frequencies = 1 / rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high, original = (
        rope[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    share = np.clip((original * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)


def write_gguf(folder: Path, path: Path) -> None:
    """The whole model in one file of llama.cpp's."""
    config, tokenizer = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("config", "tokenizer"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for add in (writer.add_rope_dimension_count, writer.add_key_length, writer.add_value_length):
        add(config["head_dim"])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rotary_factors(rope, config["head_dim"]))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_causal_attention(config["is_causal"])
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    add_tokenizer(writer, tokenizer, config)
    shards = sorted(folder.glob("*.safetensors"))
    for name, weight in (pair for shard in shards for pair in load_file(shard).items()):
        weight = weight.astype(np.float32)
        if name.startswith("layers."):
            _, layer, part = name.split(".", 2)
            part, _, kind = part.rpartition(".")  # weight or bias
            if part.endswith(("q_proj", "k_proj")):
                weight = rotated_pairs(weight, heads if part.endswith("q_proj") else kv_heads)
            name = f"blk.{layer}.{LINEAR[part]}.{kind}"
        else:
            name = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """A byte-level vocabulary with its merges, and the way that texts are split before."""
    names, types = [""] * config["vocab_size"], [gguf.TokenType.UNUSED] * config["vocab_size"]
    for token, number in tokenizer["model"]["vocab"].items():
        names[number], types[number] = token, gguf.TokenType.NORMAL
    for token in tokenizer["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        names[token["id"]], types[token["id"]] = token["content"], kind
    writer.add_tokenizer_model("gpt2")
    split = json.dumps(tokenizer["pre_tokenizer"])
    writer.add_tokenizer_pre("llama-bpe" if json.dumps(LLAMA3_WORDS)[1:-1] in split else "gpt-2")
    writer.add_token_list(names)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


folder, source, target = map(Path, sys.argv[1:4])
settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
length = settings["model_max_length"]
model_file = target.with_suffix(".gguf")
write_gguf(folder, model_file)
sizes = {"n_ctx": length, "n_batch": length, "n_ubatch": length}  # a text that sees both ways goes through in one piece
model = Llama(str(model_file), embedding=True, pooling_type=LLAMA_POOLING_TYPE_MEAN, verbose=False, **sizes)
rows = []
for texts in json.loads(source.read_text("utf-8")):
    rows += [model.embed(text, normalize=True) for text in texts]
np.save(target, np.array(rows, dtype=np.float32))
