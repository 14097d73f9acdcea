"""Attention over texts laid end to end, by the fastest kernel that the machine has; torch alone.

On CUDA in half precision torch's variable-length attention, or flash-attn where it is installed; else SDPA over each
run of texts of equal length, which needs no padding either. Bidirectional or causal, grouped-query, sliding windows,
capped scores (Gemma 2); gradients flow through all of it.

T tokens of all texts together, n texts, H query heads in G groups, d head size.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

MAX_FUSED_HEAD_DIM = 256


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    *,
    causal: bool,
    max_length: int | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention within each of the packed texts, by the fastest kernel that this machine has for it.

    Args:
        query: (T, H, d).
        key: (T, G, d).
        value: (T, G, d).
        starts: `cu_seq_lens_q` of `pack`, (n + 1,).
        causal: whether tokens see earlier ones only.
        max_length: tokens of the longest text; counted if it is not given.
        scaling: multiplies the scores; 1 / sqrt(d) by default.
        dropout: of attention weights.
        window: a token sees another fewer than so many places away.
        softcap: as of `packed_attention`.

    Returns:
        (T, H, d).
    """
    if query.is_cuda and not dropout:
        longest = int(starts.diff().max()) if max_length is None else max_length
        reach = (-1, 0 if causal else -1)  # how many keys before and after, -1 for all
        if window is not None and window < longest:
            reach = (window - 1, 0 if causal else window - 1)
        fused = _fused(query, key, value, starts, longest, scaling=scaling, reach=reach, softcap=softcap)
        if fused is not None:
            return fused
    pieces, start = [], 0
    for length, run in groupby(starts.diff().tolist()):
        count = len(list(run))
        end = start + count * length
        # (count, H, length, d): texts of one length are a batch, and no element moves for it
        q, k, v = (x[start:end].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
        attended = _attend(q, k, v, causal=causal, scaling=scaling, dropout=dropout, window=window, softcap=softcap)
        pieces.append(attended.transpose(1, 2).flatten(0, 1))
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
        return capped(query, key, value, window_mask(query, causal=causal, window=window), scaling, softcap)
    mask = window_mask(query, causal=causal, window=window) if window is not None and window < length else None
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


def window_mask(query: Tensor, *, causal: bool, window: int | None) -> Tensor:
    """Which keys a token sees within one text, (T, T), bool; `window` as of `attend_packed`."""
    positions = torch.arange(query.shape[-2], device=query.device)
    behind = positions[:, None] - positions  # how far the key is before the query
    sees = behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    if window is not None:
        sees = sees & (behind.abs() < window)
    return sees


def capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, softcap: float) -> Tensor:
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
    reach: tuple[int, int],
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
        settings: dict[str, Any] = {"scale": scaling, "window_size": reach, "enable_gqa": grouped}
        return cast(Tensor, varlen_attn(query, key, value, starts, starts, longest, longest, **settings))
    flash = _flash_attention()
    if flash is None:
        return None
    settings = {"softmax_scale": scaling, "causal": reach[1] == 0, "window_size": reach, "softcap": softcap or 0.0}
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
