"""A passage's states merged in groups between two layers, so that the layers above have less to read.

Queries and prompts are kept; groups of a passage's states become their plain mean, the last group of what it has. Rows
are packed to the left anew, and mask and positions begin again from 0.

Li et al., 2024, https://arxiv.org/abs/2409.15700. B rows, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def compress_passages(
    hidden: Tensor, attention_mask: Tensor, query_lengths: Tensor, prompt_lengths: Tensor, ratio: int
) -> tuple[Tensor, Tensor]:
    """Merge every `ratio` states of each row's passage into their mean.

    Args:
        hidden: states, (B, T, D), padded on the right.
        attention_mask: 1 for real tokens, (B, T).
        query_lengths: tokens before the passage, (B,).
        prompt_lengths: tokens behind it, (B,).
        ratio: states of a group, at least 1.

    Returns:
        States and mask, (B, T', D) and (B, T'), where T' is the longest new row; zeros where the mask is 0.

    Raises:
        ValueError: padding on the left, a ratio below 1, or rows shorter than their query and prompt.
    """
    lengths = attention_mask.sum(1)
    places = torch.arange(hidden.shape[1], device=hidden.device)
    if not torch.equal(attention_mask.bool(), places < lengths[:, None]):
        raise ValueError("Rows are padded on the left; passages are found from the left, so pad on the right.")
    passages = lengths - query_lengths - prompt_lengths
    if ratio < 1 or bool((passages < 0).any()):
        raise ValueError(f"ratio={ratio} must be at least 1, and rows at least as long as their query and prompt.")
    merged = -(-passages // ratio)
    new_lengths = query_lengths + merged + prompt_lengths
    targets = _targets(places, query_lengths[:, None], passages[:, None], merged[:, None], ratio)
    size = int(new_lengths.max())
    targets = targets.where(attention_mask.bool(), size)  # padding goes to one place more, which is dropped
    sums = hidden.new_zeros(len(hidden), size + 1, hidden.shape[2])
    sums = sums.scatter_add(1, targets[..., None].expand_as(hidden), hidden)
    counts = torch.zeros_like(sums[..., 0]).scatter_add(1, targets, torch.ones_like(hidden[..., 0]))
    means = (sums / counts.clamp(min=1)[..., None])[:, :size]
    return means, (torch.arange(size, device=hidden.device) < new_lengths[:, None]).to(attention_mask.dtype)


def _targets(places: Tensor, query: Tensor, passage: Tensor, merged: Tensor, ratio: int) -> Tensor:
    """New place of every old one, (B, T)."""
    inside = query + (places - query) // ratio
    behind = places - passage + merged
    return torch.where(places < query, places, torch.where(places < query + passage, inside, behind))
