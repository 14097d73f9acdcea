"""Logit distillation: a sliced model learns the source's whole distribution of the next token, not only the token.

Beyond the papers, where recovery is plain continued pretraining; off by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pruning.packing import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

ROWS_AT_ONCE = 512  # tokens whose distributions are held in float32 at a time


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over predicted tokens of temperature^2 * KL(teacher || student), both softened by the temperature.

    Args:
        student: logits, (B, T, vocabulary); gradients flow into them.
        teacher: logits, same shape.
        labels: (B, T), shifted inside; IGNORED where a token counts for no loss.
        temperature: above 1 brings out the order of unlikely tokens.

    Returns:
        A scalar in float32. Hinton et al., 2015, section 2 (arXiv 1503.02531).
    """
    predicted = (labels[:, 1:] != IGNORED).flatten()
    rows = [logits[:, :-1].flatten(0, 1)[predicted] for logits in (student, teacher)]
    total = torch.zeros((), device=student.device)
    for ours, theirs in zip(*(part.split(ROWS_AT_ONCE) for part in rows), strict=True):
        ours, theirs = (torch.log_softmax(part.float() / temperature, dim=-1) for part in (ours, theirs))
        total = total + torch.nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True)
    return total * temperature**2 / len(rows[0])
