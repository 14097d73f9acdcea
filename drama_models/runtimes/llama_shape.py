"""The numbers of a Llama that a graph is built from, read from its config.json whichever transformers wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import ModelFolderError
from drama_models.rotary import inverse_frequencies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """Sizes and constants of one encoder."""

    hidden_size: int
    """Size of a hidden state, D."""
    intermediate_size: int
    """Channels of the MLP."""
    layers: int
    heads: int
    """Query heads of a layer."""
    kv_heads: int
    """Key/value heads of a layer; each serves heads / kv_heads query heads."""
    head_dim: int
    """Size of a head, d."""
    epsilon: float
    """Added to the mean square in RMSNorm."""
    frequencies: NDArray[np.float32]
    """Rotary frequencies, (d / 2,)."""

    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns, (out, in), of the weight of every linear layer, by its name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {
            "self_attn.q_proj": (queries, self.hidden_size),
            "self_attn.k_proj": (keys, self.hidden_size),
            "self_attn.v_proj": (keys, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, queries),
            "mlp.gate_proj": (self.intermediate_size, self.hidden_size),
            "mlp.up_proj": (self.intermediate_size, self.hidden_size),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
        }
        return {f"layers.{layer}.{name}": size for layer in range(self.layers) for name, size in sizes.items()}

    def rotation(self, positions: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosine and sine of every position and frequency: positions (N,), results (N, d / 2) each."""
        angles = positions[:, None].astype(np.float32) * self.frequencies
        return np.cos(angles), np.sin(angles)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LlamaShape:
        """Read a config.json.

        Raises:
            ModelFolderError: an activation or rotary scaling that is not built here.
        """
        if config.get("hidden_act", "silu") != "silu":
            raise ModelFolderError(f"Activation {config['hidden_act']!r} is not built here; supported is silu.")
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            epsilon=config.get("rms_norm_eps", 1e-6),
            frequencies=inverse_frequencies(config, head_dim),
        )
