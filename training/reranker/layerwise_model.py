"""A Gemma 2 that scores after any of its layers: bge-reranker-v2.5-gemma2-lightweight.

From `start_layer` on, every `layer_sep`-th layer has a head of its own, one row each, that began as the language
model's row for "Yes". Layers above the last one asked for are not run, and passages can be compressed on the way.
Modules are named as in the published folder. The published code takes the first heads for the layers that are returned,
whichever they are; here every layer has its own.

Li et al., 2024, https://arxiv.org/abs/2409.15700. B pairs, T tokens, D hidden size.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from drama_models.errors import ModelFolderError
from drama_models.model_folder import read_json, weight_files
from training.reranker.compression import compress_passages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class ScoreHead(nn.Module):
    """One row over the hidden state."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_head = nn.Linear(hidden_size, 1, bias=False)


class LayerwiseReranker(nn.Module):
    """Scores of pairs after several layers.

    Args:
        config: of the Gemma 2.
        start_layer: first layer with a head, counted from 1.
        layer_sep: layers from one head to the next.

    Raises:
        ValueError: no layer would have a head.
    """

    def __init__(self, config: Gemma2Config, *, start_layer: int, layer_sep: int = 1) -> None:
        super().__init__()
        layers = config.num_hidden_layers
        if not 1 <= start_layer <= layers or layer_sep < 1:
            raise ValueError(
                f"start_layer={start_layer} must be between 1 and {layers}, and layer_sep={layer_sep} at least 1."
            )
        self.config = config
        self.head_layers = tuple(range(start_layer, layers + 1, layer_sep))
        self.model = Gemma2Model(config)
        self.lm_head = nn.ModuleList(ScoreHead(config.hidden_size) for _ in self.head_layers)

    @classmethod
    def from_folder(cls, folder: Path, dtype: torch.dtype = torch.float32) -> LayerwiseReranker:
        """Load a folder laid out like the published one; its code is never run.

        Raises:
            ModelFolderError: a missing or damaged file, or weights that do not fit the configuration.
        """
        settings = read_json(folder / "config.json")
        try:
            start_layer, layer_sep = int(settings["start_layer"]), int(settings["layer_sep"])
        except (KeyError, TypeError, ValueError):
            raise ModelFolderError(
                f"{folder / 'config.json'} has no start_layer and layer_sep; it is not a layer-wise reranker."
            ) from None
        left_out = ("model_type", "architectures", "auto_map", "transformers_version")
        config = Gemma2Config(**{key: value for key, value in settings.items() if key not in left_out})
        model = cls(config, start_layer=start_layer, layer_sep=layer_sep).to(dtype)
        state: dict[str, Tensor] = {}
        for path in weight_files(folder):
            state |= load_file(path)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelFolderError(f"The weights of {folder} do not fit its config.json ({reason}).") from None
        return model.eval()

    def start_heads_from(self, row: Tensor) -> None:
        """Give every head the language model's row for one token, (D,), as training begins."""
        with torch.no_grad():
            for head in self.lm_head:
                cast(ScoreHead, head).linear_head.weight.copy_(row[None])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        query_lengths: Tensor,
        prompt_lengths: Tensor,
        *,
        cutoff_layers: Sequence[int] | None = None,
        compress_layers: Sequence[int] = (),
        compress_ratio: int = 1,
    ) -> dict[int, Tensor]:
        """Scores after each of the layers asked for.

        Args:
            input_ids: of `pair_inputs`, padded on the right, (B, T).
            attention_mask: 1 for real tokens, (B, T).
            query_lengths: tokens before the passage, (B,).
            prompt_lengths: tokens behind it, (B,).
            cutoff_layers: layers to score after, counted from 1; the last by default.
            compress_layers: layers, counted from 0, below which passages are compressed; again at each of them.
            compress_ratio: states of a group; 1 compresses nothing.

        Returns:
            Scores by layer, (B,) each, float32, in increasing order.

        Raises:
            ValueError: none of the layers has a head, or padding on the left where passages are compressed.
        """
        wanted = self.scored_layers(cutoff_layers)
        hidden, mask, scores = self.model.embed_tokens(input_ids), attention_mask, {}
        for number, layer in enumerate(self.model.layers[: wanted[-1]]):
            if number == 0 or (compress_ratio > 1 and number in compress_layers):
                if number:
                    hidden, mask = compress_passages(hidden, mask, query_lengths, prompt_lengths, compress_ratio)
                masks, positions, rotations = self._places(hidden, mask)
            kind = cast(Any, self.config).layer_types[number]
            hidden = layer(hidden, attention_mask=masks[kind], position_embeddings=rotations, position_ids=positions)
            if number + 1 in wanted:
                scores[number + 1] = self._scores(hidden, mask, number + 1)
        return scores

    def scored_layers(self, cutoff_layers: Sequence[int] | None) -> list[int]:
        """Those of the layers that have a head, in increasing order; the others are named in a warning.

        Raises:
            ValueError: none has.
        """
        if cutoff_layers is None:
            return [self.head_layers[-1]]
        known = sorted({layer for layer in cutoff_layers if layer in self.head_layers})
        unknown = sorted(set(cutoff_layers) - set(known))
        heads = ", ".join(map(str, self.head_layers))
        if not known:
            raise ValueError(f"cutoff_layers={list(cutoff_layers)} has no layer with a head; heads are at {heads}.")
        if unknown:
            warnings.warn(f"Layers {unknown} have no head and are left out; heads are at {heads}.", stacklevel=2)
        return known

    def _places(self, hidden: Tensor, mask: Tensor) -> tuple[dict[str, Any], Tensor, Any]:
        """Masks by kind of attention, positions from 0 and their rotations, for rows of this length."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        given: dict[str, Any] = {
            "config": self.config,
            "inputs_embeds": hidden,
            "attention_mask": mask,
            "past_key_values": None,
            "position_ids": positions,
        }
        masks = {
            "full_attention": create_causal_mask(**given),
            "sliding_attention": create_sliding_window_causal_mask(**given),
        }
        return masks, positions, self.model.rotary_emb(hidden, positions)

    def _scores(self, hidden: Tensor, mask: Tensor, layer: int) -> Tensor:
        head = cast(ScoreHead, self.lm_head[self.head_layers.index(layer)])
        last = score_places(mask)
        states = self.model.norm(hidden[torch.arange(len(hidden), device=hidden.device), last])  # (B, D)
        logits = head.linear_head(states)[:, 0].float()
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)


def score_places(attention_mask: Tensor) -> Tensor:
    """Place of the last real token of each row, where the score is read: (B, T) to (B,)."""
    return attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
