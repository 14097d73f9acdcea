"""The numbers of a BERT that a graph is built from, and the names and shapes of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drama_models.errors import ModelFolderError
from drama_models.model_folder import tensor_shapes, weight_files
from drama_models.setting_kinds import check_bert_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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

    @property
    def kv_heads(self) -> int:
        """Every query head has a key/value head of its own."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.hidden_size // self.heads

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


def check_bert_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Names in a folder's files by those of today's BertModel, every shape compared with what config.json asks for.

    The prefix `model.` is left out of them, as by `MappedWeights`.

    Raises:
        ModelFolderError: a size is missing in the configuration, a tensor is missing or has another shape, or the
            graph does not know this kind of BERT.
    """
    check_bert_settings(folder / "config.json", config)
    found = (tensor for path in weight_files(folder) for tensor in tensor_shapes(path).items())
    shapes = {name.removeprefix("model."): shape for name, shape in found}
    stored = {stock_name(name): name for name in shapes}
    for name, wanted in BertShape.from_config(config).weight_shapes().items():
        if name not in stored:
            raise ModelFolderError(f"{folder} has no tensor {name!r}; use weights and config.json of one model.")
        if (shape := shapes[stored[name]]) != wanted:
            raise ModelFolderError(
                f"{folder}: tensor {stored[name]!r} has shape {shape} where config.json asks for {wanted}; "
                "the file belongs to another model, fetch the folder again."
            )
    return stored


def stock_name(stored: str) -> str:
    """A tensor's name in today's BertModel, from that in a file.

    Some have the prefix of a task's model, and older ones call a norm's two vectors gamma and beta.
    """
    name = stored.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
