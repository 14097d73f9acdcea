"""DramaModel: a Llama in which every token sees every other, and the text encoder made of it.

This file travels inside every release folder, so it imports nothing but torch and transformers. It works on
transformers 4.48 to 5.x with eager, sdpa, flex and flash attention; where the attention direction cannot be honoured,
loading fails. (The class published with facebook/drama-base overrides a method that later transformers no longer call,
and then encodes causally without a word.)

Ma et al., 2025, arXiv 2502.18460, section 3.3; encoding rules as in the published model folders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import LlamaModel
from transformers import __version__ as transformers_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import LlamaConfig, PreTrainedTokenizerBase

QUERY_PROMPT = "Query: "
MAX_LENGTH = 8192
# From 5.2 on, create_causal_mask and the attention functions follow `config.is_causal`; before, masks are made here.
FOLLOWS_CONFIG = tuple(int(part) for part in transformers_version.split(".")[:2]) >= (5, 2)
OWN_MASKS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")


class DramaModel(LlamaModel):
    """Bidirectional Llama encoder; parameters, configuration and outputs are LlamaModel's.

    Its configuration says `is_causal: false`, so that what is saved loads as the same model through AutoModel.
    """

    def __init__(self, config: LlamaConfig) -> None:
        config.is_causal = False
        config.use_bidirectional_attention = True  # the name under which text-embeddings-inference reads it
        super().__init__(config)
        for layer in self.layers:
            cast(Any, layer).self_attn.is_causal = False

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does, and make sure that it is whole and looks both ways.

        Raises:
            ValueError: weights are missing, or this environment does not honour bidirectional attention.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model: Any
        model, info = cast(Any, super()).from_pretrained(*args, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise ValueError(f"{args[0]} lacks weights ({missing}, ...); fetch the folder again.")
        if not model.is_bidirectional():
            raise ValueError(
                f"transformers {transformers_version} with attn_implementation={model.config._attn_implementation!r} "
                "attends causally here, which would give wrong vectors; use transformers >= 5.2, or 'sdpa' or 'eager'."
            )
        return (model, info) if wants_info else model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states in which every real token has attended to every real token.

        Args:
            input_ids: (B, T), int64.
            attention_mask: (B, T), 1 for real tokens and 0 for padding on either side; None if there is none.
            inputs_embeds: (B, T, D) instead of `input_ids`.
            kwargs: passed on to LlamaModel.

        Returns:
            BaseModelOutputWithPast; `last_hidden_state` is (B, T, D), meaningless at padded positions.
        """
        kwargs["use_cache"] = False
        if not FOLLOWS_CONFIG:
            inputs = input_ids if input_ids is not None else inputs_embeds
            if inputs is None:
                raise ValueError("Pass input_ids or inputs_embeds.")
            attention_mask = self._own_mask(attention_mask, inputs)
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )

    def encode_queries(
        self,
        tokenizer: PreTrainedTokenizerBase,
        queries: str | Sequence[str],
        max_seq_len: int | None = None,
        dim: int | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Embed queries: the prompt "Query: " goes before each.

        Args:
            tokenizer: the model's tokenizer.
            queries: one text or several.
            max_seq_len: tokens kept of each text, BOS and EOS included; by default 8192, or the model's or the
                tokenizer's limit where that is lower.
            dim: leading coordinates to keep, cut before normalising; all by default.
            batch_size: texts in one forward pass.

        Returns:
            (number of queries, dim), float32, rows of length 1, on the model's device.

        Raises:
            ValueError: `dim` is not between 1 and the hidden size.
        """
        queries = [queries] if isinstance(queries, str) else queries
        return self._encode(tokenizer, [QUERY_PROMPT + query for query in queries], max_seq_len, dim, batch_size)

    def encode_documents(
        self,
        tokenizer: PreTrainedTokenizerBase,
        documents: str | Sequence[str],
        max_seq_len: int | None = None,
        dim: int | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Embed documents as they are; arguments, result and errors as of `encode_queries`."""
        documents = [documents] if isinstance(documents, str) else documents
        return self._encode(tokenizer, list(documents), max_seq_len, dim, batch_size)

    @torch.no_grad()
    def _encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: list[str],
        max_seq_len: int | None,
        dim: int | None,
        batch_size: int,
    ) -> Tensor:
        hidden_size = self.config.hidden_size
        if dim is not None and not 1 <= dim <= hidden_size:
            raise ValueError(f"dim={dim} must be between 1 and the hidden size, {hidden_size}.")
        limit = max_seq_len or min(MAX_LENGTH, self.config.max_position_embeddings, tokenizer.model_max_length)
        pieces = [
            self._embed_batch(tokenizer, texts[start : start + batch_size], limit, dim)
            for start in range(0, len(texts), batch_size)
        ]
        return torch.cat(pieces) if pieces else torch.empty(0, dim or hidden_size, device=self.device)

    def _embed_batch(self, tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int, dim: int | None) -> Tensor:
        # BOS and EOS are set here, always both and once, whatever the tokenizer's own post-processor does.
        encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=limit - 2)["input_ids"]
        ends = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
        rows = [torch.tensor(ends[0] + ids + ends[1], device=self.device) for ids in encoded]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, T)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None]).long()  # (B, T)
        hidden = self(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()  # (B, T, D)
        weights = mask[..., None].float()
        pooled = (hidden * weights).sum(1) / weights.sum(1)  # (B, D): mean over real tokens, BOS, prompt and EOS too
        return F.normalize(pooled[:, :dim], dim=-1)

    @torch.no_grad()
    def is_bidirectional(self) -> bool:
        """Whether a change of the last token reaches the first state, with and without padding in the batch.

        Both are tried because each is wrong on its own in some version of transformers.
        """
        if self.device.type == "meta":
            return True  # nothing can be computed yet
        last = max(self.config.vocab_size - 1, 1)
        ids = torch.tensor([[0, 1, 0, 0], [0, 1, last, 0]], device=self.device)
        plain = self(input_ids=ids[:, :3]).last_hidden_state[:, 0]
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]], device=self.device)
        padded = self(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        return bool((plain[0] != plain[1]).any() and (padded[0] != padded[1]).any())

    def _own_mask(self, attention_mask: Tensor | None, inputs: Tensor) -> Any:
        """The mask that this attention implementation reads as "padding only", for transformers below 5.2."""
        kind = self.config._attn_implementation
        if kind not in OWN_MASKS:
            raise ValueError(
                f"attn_implementation={kind!r} cannot be made bidirectional on transformers {transformers_version}; "
                f"use one of {', '.join(OWN_MASKS)}, or transformers >= 5.2."
            )
        batch, length = inputs.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(batch, length, device=inputs.device)
        if attention_mask.ndim == 4 or kind.startswith("flash"):  # flash attention follows is_causal of the layers
            return attention_mask
        visible = attention_mask.bool()
        if kind == "flex_attention":
            from torch.nn.attention.flex_attention import create_block_mask

            def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
                return visible[row, key]

            return create_block_mask(sees, batch, None, length, length, device=str(inputs.device))
        dtype = self.embed_tokens.weight.dtype
        blocked = torch.zeros(batch, 1, 1, length, dtype=dtype, device=inputs.device)
        blocked = blocked.masked_fill(~visible[:, None, None, :], torch.finfo(dtype).min)
        return blocked.expand(batch, 1, length, length)  # added to the scores


DramaModel.register_for_auto_class("AutoModel")
