"""A Llama encoder in plain torch for inference: packed texts, fused projections, prepacked weights.

Equal to transformers' model within rounding, and lean: it reads the safetensors itself (the token embedding stays a
memory map of the file where it has the right number format), imports no transformers, and spends on a query about a
quarter of the operator calls. Llama, Mistral and Qwen2 are this shape; what is not (other activations, rotary scalings
or windows) is left to transformers.

T tokens of all texts, D hidden size, H query heads in G groups, d head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open
from torch import Tensor, nn

from drama_models.attention_kernels import attend_packed
from drama_models.model_folder import check_llama_weights, weight_files
from drama_models.packing import positions_within, text_starts
from drama_models.rotary import ROTARY_KINDS, inverse_frequencies, rotary_settings
from drama_models.runtimes.linear import PrepackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

MODEL_TYPES = ("llama", "mistral", "qwen2")
QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
FIRST_POSITIONS = 512  # angles made at the start; more when a longer text comes


class PackedLlama:
    """Weights of a folder, and their forward pass; calls from many threads are safe.

    Args:
        folder: with config.json's weights as safetensors.
        config: the content of its config.json, one that `is_llama_shaped` accepts.
        causal: whether tokens see earlier ones only.
        device: where to compute.
        dtype: number format to compute in.
        compile_layers: let torch.compile fuse what is between matrix products and attention.

    Raises:
        ModelFolderError: weights are missing, damaged or of the wrong shape.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        causal: bool,
        device: torch.device,
        dtype: torch.dtype,
        compile_layers: bool = False,
    ) -> None:
        check_llama_weights(folder, dict(config))
        read = _reader(folder, device, dtype)
        self.causal, self.device = causal, device
        self.embedding = read("embed_tokens.weight")
        self.layers = [_Layer(config, read, f"layers.{number}.") for number in range(config["num_hidden_layers"])]
        self.norm, self.eps = read("norm.weight"), config.get("rms_norm_eps", 1e-6)
        window = config.get("sliding_window") if config.get("model_type") == "mistral" else None
        self.window = window + 1 if window and not causal else window  # as `packed_attention` has it of transformers
        self.frequencies = torch.from_numpy(inverse_frequencies(config, self.layers[0].head_dim))
        self.rotation = self._rotation(FIRST_POSITIONS)
        if compile_layers:
            for layer in self.layers:
                layer.compile_halves()

    def states(self, texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Last hidden states of all tokens, (T, D), and `text_starts`, (n + 1,).

        Args:
            texts: token ids, (length,) each, at least one in each, on the CPU.
        """
        starts = text_starts([len(text) for text in texts])
        longest = max(len(text) for text in texts)
        rotation = self.rotation
        if longest > len(rotation[0]):
            self.rotation = rotation = self._rotation(2 * longest)
        if len(texts) == 1:
            ids, (cosine, sine) = texts[0], (table[:longest] for table in rotation)
        else:
            positions = positions_within(starts).to(self.device)
            ids, (cosine, sine) = torch.cat(list(texts)), (table[positions] for table in rotation)
        seen = starts.to(self.device) if self.device.type == "cuda" else starts
        states = F.embedding(ids.to(self.device), self.embedding)  # (T, D)
        for layer in self.layers:
            query, key, value = layer.project(states, cosine[:, None], sine[:, None])
            attended = attend_packed(
                query, key, value, seen, causal=self.causal, max_length=longest, window=self.window
            )
            states = layer.finish(states, attended)
        return F.rms_norm(states, (states.shape[-1],), self.norm, self.eps), starts

    def _rotation(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position and frequency, (length, d / 2) each."""
        angles = torch.outer(torch.arange(length, dtype=torch.float32), self.frequencies)
        return angles.cos().to(self.device, self.norm.dtype), angles.sin().to(self.device, self.norm.dtype)


def is_llama_shaped(config: Mapping[str, Any]) -> bool:
    """Whether `PackedLlama` computes what a config.json describes."""
    return (
        config.get("model_type") in MODEL_TYPES
        and config.get("hidden_act", "silu") == "silu"
        and rotary_settings(config)["rope_type"] in ROTARY_KINDS
        and not config.get("use_sliding_window")  # Qwen2's, of some layers only
        and not config.get("quantization_config")
    )


class _Layer(nn.Module):
    """One layer in two halves: attention, which alone mixes tokens, runs between them.

    A module, and its gains buffers, so that what is compiled for one layer serves them all.
    """

    before_attention: Tensor
    before_mlp: Tensor

    def __init__(self, config: Mapping[str, Any], read: Callable[..., Tensor], prefix: str) -> None:
        super().__init__()
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.eps = config.get("rms_norm_eps", 1e-6)
        self.register_buffer("before_attention", read(f"{prefix}input_layernorm.weight"))
        self.register_buffer("before_mlp", read(f"{prefix}post_attention_layernorm.weight"))
        self.query_key_value = _fused([prefix + name for name in QUERY_KEY_VALUE], read)
        self.output = _fused([f"{prefix}self_attn.o_proj"], read)
        self.gate_up = _fused([prefix + name for name in GATE_UP], read)
        self.down = _fused([f"{prefix}mlp.down_proj"], read)

    def project(self, states: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) to queries (T, H, d), keys and values (T, G, d); the first two turned by their positions."""
        fused = self.query_key_value(F.rms_norm(states, (states.shape[-1],), self.before_attention, self.eps))
        fused = fused.unflatten(-1, (-1, self.head_dim))  # (T, H + 2 G, d)
        first, second = fused[:, : self.heads + self.kv_heads].chunk(2, -1)
        turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
        return turned[:, : self.heads], turned[:, self.heads :], fused[:, self.heads + self.kv_heads :]

    def finish(self, states: Tensor, attended: Tensor) -> Tensor:
        """States after attention's output, (T, H, d), and the MLP: (T, D)."""
        states = self.output(attended.flatten(1)).add_(states)
        gate, up = self.gate_up(F.rms_norm(states, (states.shape[-1],), self.before_mlp, self.eps)).chunk(2, -1)
        return self.down(F.silu(gate).mul_(up)).add_(states)

    def compile_halves(self) -> None:
        self.project = torch.compile(self.project, dynamic=True)  # type: ignore[method-assign]
        self.finish = torch.compile(self.finish, dynamic=True)  # type: ignore[method-assign]


def _fused(names: list[str], read: Callable[..., Tensor]) -> PrepackedLinear:
    """Several projections of the same states as one."""
    weights = [read(f"{name}.weight") for name in names]
    biases = [read(f"{name}.bias", optional=True) for name in names]
    bias = torch.cat(biases) if all(len(each) for each in biases) else None
    return PrepackedLinear(weights[0] if len(weights) == 1 else torch.cat(weights), bias)


def _reader(folder: Path, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A function that reads one tensor by LlamaModel's name for it."""
    home: dict[str, tuple[Any, str]] = {}
    for path in weight_files(folder):
        file = safe_open(path, framework="pt", device="cpu")
        home |= {name.removeprefix("model."): (file, name) for name in file.keys()}  # noqa: SIM118

    def read(name: str, *, optional: bool = False) -> Tensor:
        if optional and name not in home:
            return torch.empty(0)
        file, stored = home[name]
        return file.get_tensor(stored).to(device=device, dtype=dtype)

    return read
