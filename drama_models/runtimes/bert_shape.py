"""The numbers of a BERT that a graph is built from, and the names and shapes of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drama_models.errors import ModelFolderError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXACT_GELU = ("gelu", "gelu_python")  # x times the normal distribution's share below x, not its approximation by tanh
WORDS, POSITIONS, KINDS = (f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
EMBEDDING_NORM = "embeddings.LayerNorm"


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """Sizes and constants of one encoder."""

    hidden_size: int
    """Size of a hidden state, D."""
    intermediate_size: int
    """Channels of the MLP."""
    layers: int
    heads: int
    epsilon: float
    """Added to the variance in LayerNorm."""
    vocabulary: int
    """Entries of the token embedding."""
    positions: int
    """Longest text, in tokens."""
    kinds: int
    """Token types; every token here is of the first."""

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight of a BertModel without its pooler."""
        hidden, wide = self.hidden_size, self.intermediate_size
        linear = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (hidden, hidden)}
        linear |= {"intermediate.dense": (wide, hidden), "output.dense": (hidden, wide)}
        norms = [EMBEDDING_NORM]
        shapes: dict[str, tuple[int, ...]] = {
            WORDS: (self.vocabulary, hidden),
            POSITIONS: (self.positions, hidden),
            KINDS: (self.kinds, hidden),
        }
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}"
            for name, size in linear.items():
                shapes |= {f"{prefix}.{name}.weight": size, f"{prefix}.{name}.bias": size[:1]}
            norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
        return shapes | {f"{norm}.{part}": (hidden,) for norm in norms for part in ("weight", "bias")}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BertShape:
        """Read a config.json.

        Raises:
            ModelFolderError: an activation or kind of positions that is not built here.
        """
        activation = config.get("hidden_act", "gelu")
        if activation not in EXACT_GELU:
            raise ModelFolderError(f"Activation {activation!r} is not computed from safetensors; only gelu is.")
        positions = config.get("position_embedding_type") or "absolute"
        if positions != "absolute":
            raise ModelFolderError(
                f"Positions {positions!r} are not computed from safetensors; only absolute ones are."
            )
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            epsilon=config.get("layer_norm_eps", 1e-12),
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            kinds=config.get("type_vocab_size", 2),
        )


def stock_name(stored: str) -> str:
    """A tensor's name in today's BertModel, from that in a file.

    Some have the prefix of a task's model, and older ones call a norm's two vectors gamma and beta.
    """
    name = stored.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
