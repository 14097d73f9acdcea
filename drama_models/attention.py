"""Packed attention: texts laid end to end in one row, so that nothing is computed for padding.

Stock transformers models run it unchanged. It is registered as an attention implementation; a packed call gives every
token its position within its own text and says where texts begin (`cu_seq_lens_q`, as flash attention names it), and
everything else in a transformer looks at one token at a time anyway. A call with an ordinary padded batch goes to
transformers' own SDPA, so a model may keep this implementation for good. Kernels: on CUDA in half precision torch's
variable-length attention, or flash-attn where it is installed; else SDPA over each run of texts of equal length.
Bidirectional or causal, grouped-query, sliding windows, capped scores (Gemma 2); gradients flow through all of it.

T tokens of all texts together, n texts, H query heads in G groups, d head size, D hidden size.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

PACKED = "drama_packed"  # transformers never writes the name of an attention implementation into a saved folder
MAX_FUSED_HEAD_DIM = 256


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
    lengths = torch.tensor([len(text) for text in texts])
    ends = lengths.cumsum(0)
    device = texts[0].device
    ids = torch.cat(list(texts))
    positions = torch.arange(len(ids)) - (ends - lengths).repeat_interleave(lengths) + first_position
    starts = F.pad(ends, (1, 0)).to(torch.int32)
    starts = starts.to(device) if device.type == "cuda" else starts  # elsewhere it is read as numbers in every layer
    longest = int(lengths.max())
    return {
        "input_ids": ids[None],
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
    alone = [torch.arange(3, 6), torch.arange(6, 8)]
    alone = [ids.to(model.device) % model.config.get_text_config().vocab_size for ids in alone]
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


def pool_packed(states: Tensor, starts: Tensor, pooling: str) -> Tensor:
    """One vector for each of the packed texts.

    Args:
        states: last hidden states, (T, D).
        starts: `cu_seq_lens_q` of `pack`, (n + 1,).
        pooling: mean, last or cls (first token).

    Returns:
        (n, D), float32, not normalised.
    """
    starts = starts.to(device=states.device, dtype=torch.int64)
    if pooling != "mean":
        return states[starts[1:] - 1 if pooling == "last" else starts[:-1]].float()
    lengths = starts.diff()
    owner = torch.arange(len(lengths), device=states.device).repeat_interleave(lengths)
    sums = states.new_zeros(len(lengths), states.shape[1], dtype=torch.float32).index_add(0, owner, states.float())
    return sums / lengths[:, None]


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
        sliding_window: tokens that one sees, itself included, if causal; else how far it sees on either side.
        softcap: scores are bent to stay below it in size.
        cu_seq_lens_q: first token of each text, and T, (n + 1,), int32.
        max_length_q: tokens of the longest text.
        kwargs: ignored, or passed on to transformers' SDPA.

    Returns:
        (1, T, H, d) or (B, T, H, d), and None in place of the weights.
    """
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if cu_seq_lens_q is None:
        if softcap is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
            )
        mask = _window_mask(query, causal=causal, window=sliding_window) if attention_mask is None else attention_mask
        return _capped(query, key, value, mask, scaling, softcap).transpose(1, 2), None
    if query.is_cuda and not dropout:
        longest = int(cu_seq_lens_q.diff().max()) if max_length_q is None else max_length_q
        window = (-1, 0 if causal else -1)
        if sliding_window is not None and sliding_window < longest:
            window = (sliding_window - 1, 0) if causal else (sliding_window, sliding_window)
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (T, H, d), (T, G, d), (T, G, d)
        fused = _fused(q, k, v, cu_seq_lens_q, longest, scaling=scaling, window=window, softcap=softcap)
        if fused is not None:
            return fused[None], None
    settings = {"scaling": scaling, "dropout": dropout, "causal": causal, "window": sliding_window, "softcap": softcap}
    return _text_by_text(query[0], key[0], value[0], cu_seq_lens_q.diff().tolist(), **settings)[None], None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def _text_by_text(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], *, softcap: float | None = None, **settings: Any
) -> Tensor:
    """SDPA over each run of texts of equal length: (H, T, d), (G, T, d), (G, T, d) to (T, H, d)."""
    pieces, start = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        end = start + count * length
        # (count, H, length, d): texts of one length are a batch, and no element moves for it
        q, k, v = (x[:, start:end].unflatten(1, (count, length)).transpose(0, 1) for x in (query, key, value))
        pieces.append(_attend(q, k, v, softcap=softcap, **settings).transpose(1, 2).flatten(0, 1))
        start = end
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    dropout: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention within texts of one length: (n, H, T, d), (n, G, T, d), (n, G, T, d) to (n, H, T, d)."""
    length = query.shape[2]
    if softcap is not None:
        return _capped(query, key, value, _window_mask(query, causal=causal, window=window), scaling, softcap)
    mask = _window_mask(query, causal=causal, window=window) if window is not None and window < length else None
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _window_mask(query: Tensor, *, causal: bool, window: int | None) -> Tensor:
    """Which keys a token sees within one text, (T, T), bool, in transformers' reading of a window."""
    positions = torch.arange(query.shape[-2], device=query.device)
    behind = positions[:, None] - positions  # how far the key is before the query
    sees = behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    if window is not None:
        sees = sees & (behind < window if causal else behind.abs() <= window)
    return sees


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, softcap: float) -> Tensor:
    """Attention whose scores are bent below `softcap`, which SDPA cannot do; shapes as of `_attend`."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    longest: int,
    *,
    scaling: float | None,
    window: tuple[int, int],
    softcap: float | None,
) -> Tensor | None:
    """One kernel over all texts, (T, H, d), or None where this machine has none for these tensors."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    dim = query.shape[-1]
    if query.dtype not in (torch.float16, torch.bfloat16) or dim % 8 or dim > MAX_FUSED_HEAD_DIM:
        return None
    if softcap is None and _has_varlen(query.device, query.dtype):
        from torch.nn.attention.varlen import varlen_attn

        grouped = query.shape[1] != key.shape[1]
        settings: dict[str, Any] = {"scale": scaling, "window_size": window, "enable_gqa": grouped}
        return cast(Tensor, varlen_attn(query, key, value, starts, starts, longest, longest, **settings))
    flash = _flash_attention()
    if flash is None:
        return None
    settings = {"softmax_scale": scaling, "causal": window[1] == 0, "window_size": window, "softcap": softcap or 0.0}
    return flash(query, key, value, starts, starts, longest, longest, **settings)


@lru_cache
def _has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's variable-length attention runs here; it is tried, since it depends on the GPU and the build."""
    try:
        from torch.nn.attention.varlen import varlen_attn

        sample = torch.zeros(2, 2, 64, device=device, dtype=dtype)
        starts = torch.tensor([0, 1, 2], device=device, dtype=torch.int32)
        varlen_attn(sample, sample[:, :1], sample[:, :1], starts, starts, 1, 1, window_size=(-1, -1), enable_gqa=True)
    except (ImportError, RuntimeError, TypeError, ValueError):
        return False
    return True


@lru_cache
def _flash_attention() -> Any:
    """flash-attn's variable-length function, or None where it is not installed."""
    try:
        return importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError):
        return None


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
    close = torch.allclose(packed, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    return close and torch.equal(packed[: len(texts[0])], other[: len(texts[0])])
