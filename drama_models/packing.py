"""Texts laid end to end in one row: where each begins, which position each token has, one vector for each text.

T tokens of all texts together, n texts, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def text_starts(lengths: Sequence[int]) -> Tensor:
    """First token of each text, and T at the end, (n + 1,), int32, on the CPU."""
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))


def positions_within(starts: Tensor) -> Tensor:
    """Place of each token in its own text, (T,), int64, from `text_starts`."""
    lengths = starts.diff()
    return torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(lengths)


def pool_packed(states: Tensor, starts: Tensor, pooling: str) -> Tensor:
    """One vector for each of the packed texts.

    Args:
        states: last hidden states, (T, D).
        starts: `text_starts`, (n + 1,); every text has a token.
        pooling: mean, last or cls (first token).

    Returns:
        (n, D), float32, not normalised.
    """
    if pooling == "mean" and len(starts) == 2:
        return states.float().mean(0, keepdim=True)
    starts = starts.to(device=states.device, dtype=torch.int64)
    if pooling != "mean":
        return states[starts[1:] - 1 if pooling == "last" else starts[:-1]].float()
    lengths = starts.diff()
    owner = torch.arange(len(lengths), device=states.device).repeat_interleave(lengths)
    sums = states.new_zeros(len(lengths), states.shape[1], dtype=torch.float32).index_add(0, owner, states.float())
    return sums / lengths[:, None]
