"""Packed attention: texts laid end to end in one row, so that nothing is computed for padding.

Stock transformers models run it unchanged. It is registered as an attention implementation; a packed call gives every
token its position within its own text and says where texts begin (`cu_seq_lens_q`, as flash attention names it), and
everything else in a transformer looks at one token at a time anyway. A call with an ordinary padded batch goes to
transformers' own SDPA, so a model may keep this implementation for good. The kernels are `attention_kernels`.

T tokens of all texts together, n texts, H query heads in G groups, d head size, D hidden size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from drama_models.attention_kernels import attend_packed, capped, window_mask
from drama_models.packing import positions_within, text_starts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

LONGEST_TRIED = 512  # tokens; a wider sliding window is not tried, since on a large model that takes long
PACKED = "drama_packed"  # transformers never writes the name of an attention implementation into a saved folder


def pack(texts: Sequence[Tensor], first_position: int = 0) -> dict[str, Any]:
    """What a transformers model takes for texts laid end to end.

    Args:
        texts: token ids of each text, (length,) each, at least one; all on one device.
        first_position: position number of a text's first token, 0 but for RoBERTa's family.

    Returns:
        Keyword arguments: `input_ids` and `position_ids` (1, T), int64; `cu_seq_lens_q` and `cu_seq_lens_k` (n + 1,),
        int32, on the CPU unless the texts are on CUDA; `max_length_q` and `max_length_k`; `attention_mask`, an empty
        tensor of four axes, which transformers takes for a mask that is already made.
    """
    device = texts[0].device
    lengths = [len(text) for text in texts]
    starts = text_starts(lengths)
    positions = positions_within(starts) + first_position
    if device.type == "cuda":  # elsewhere it is read as numbers in every layer
        starts = starts.to(device)
    longest = max(lengths)
    return {
        "input_ids": torch.cat(list(texts))[None],
        "position_ids": positions[None].to(device),
        "attention_mask": torch.empty(1, 0, 0, 0, device=device),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def enable_packing(model: PreTrainedModel) -> bool:
    """Let a model take packed calls beside ordinary ones, if it can.

    Whether it can is tried, not looked up: a text must give the same states packed as alone, and not notice the text
    it is packed with. A model that fails is left as it was.

    Args:
        model: any transformers model with `last_hidden_state`; its attention implementation changes.

    Returns:
        Whether `pack`'s arguments work with it.
    """
    if model.config._attn_implementation == PACKED:
        return True
    before, training = model.config._attn_implementation, model.training
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    longer = max(3, window + 2 if window < LONGEST_TRIED else 0)  # than the window, whose ends are then tried too
    alone = [ids.to(model.device) % config.vocab_size for ids in (torch.arange(3, 3 + longer), torch.arange(6, 8))]
    model.eval()
    try:
        with torch.no_grad():
            wanted = [model(input_ids=ids[None]).last_hidden_state[0] for ids in alone]
            model.set_attn_implementation(PACKED)
            works = model.config._attn_implementation == PACKED and _equals_alone(model, alone, wanted)
    finally:
        model.train(training)
    if not works:
        model.set_attn_implementation(before)
    return works


@torch.no_grad()
def sees_later_tokens(model: PreTrainedModel) -> bool:
    """Whether a change of the last of three tokens reaches the first state: the attention direction, by trial."""
    training = model.training
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=model.device)
    first = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    model.train(training)
    return bool((first[0] != first[1]).any())


def first_position(model: torch.nn.Module) -> int:
    """Number of a text's first position: 0, but in RoBERTa's family, which counts from behind its padding id."""
    for module in model.modules():
        padding, table = getattr(module, "padding_idx", None), getattr(module, "position_embeddings", None)
        if isinstance(padding, int) and isinstance(table, torch.nn.Embedding):
            return padding + 1
    return 0


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer.

    Args:
        module: the layer's attention; its `is_causal` counts where the argument is None.
        query: (1, H, T, d); of a padded batch, which has no `cu_seq_lens_q`, (B, H, T, d).
        key: (1, G, T, d).
        value: (1, G, T, d).
        attention_mask: of a padded batch.
        scaling: multiplies the scores; 1 / sqrt(d) by default.
        dropout: of attention weights.
        is_causal: whether tokens see earlier ones only.
        sliding_window: a token sees another fewer than so many places away; one more where only `is_causal` keeps a
            decoder from being causal, since transformers then makes a mask that includes the window's end.
        softcap: scores are bent to stay below it in size.
        cu_seq_lens_q: first token of each text, and T, (n + 1,), int32.
        max_length_q: tokens of the longest text.
        kwargs: ignored, or passed on to transformers' SDPA.

    Returns:
        (1, T, H, d) or (B, T, H, d), and None in place of the weights.
    """
    decoder = bool(getattr(module, "is_causal", True))
    causal = decoder if is_causal is None else is_causal
    if sliding_window is not None and decoder and not causal:
        sliding_window += 1
    if cu_seq_lens_q is not None:
        attended = attend_packed(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            cu_seq_lens_q,
            max_length=max_length_q,
            causal=causal,
            scaling=scaling,
            dropout=dropout,
            window=sliding_window,
            softcap=softcap,
        )
        return attended[None], None
    if softcap is not None:
        mask = window_mask(query, causal=causal, window=sliding_window) if attention_mask is None else attention_mask
        return capped(query, key, value, mask, scaling, softcap).transpose(1, 2), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
    )


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def _equals_alone(model: PreTrainedModel, texts: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether packed states are those of the texts alone, and those of the first do not depend on the second."""
    position = first_position(model)
    try:
        packed = model(**pack(texts, position)).last_hidden_state[0]
        other = model(**pack([texts[0], texts[1].flip(0)], position)).last_hidden_state[0]
    except (TypeError, RuntimeError, ValueError, IndexError, AttributeError):
        return False  # the model takes no positions, or reads the mask itself
    expected = torch.cat(wanted)
    tolerance = 1e-3 if packed.dtype in (torch.float32, torch.float64) else 5e-2
    largest = float(expected.abs().max())
    if not math.isfinite(largest):
        return False  # nothing can be told from states that are no numbers
    close = torch.allclose(packed, expected, rtol=0, atol=tolerance * largest)
    return close and torch.equal(packed[: len(texts[0])], other[: len(texts[0])])
