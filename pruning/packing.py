"""Documents packed into sequences of one length: what of them is predicted, and what share of a step that is.

Nothing here knows where sequences come from (`pruning.mixture`) or how a model is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORED = -100  # a label that counts for no loss


def packed(row: NDArray[np.unsignedinteger], start_token: int | None = None) -> dict[str, Tensor]:
    """One sequence as the model reads it.

    Args:
        row: token ids, (length,).
        start_token: first token of every document, to keep documents apart: positions start at 0 with each, from which
            transformers' Llama derives an attention mask that does not cross them, and no document's start is
            predicted from the end of another. It may also be their last token. None reads the row as one text.

    Returns:
        input_ids and labels, and position_ids where documents are kept apart; int64, (length,). The first label counts
        as absent, since nothing predicts it.
    """
    tokens = torch.from_numpy(row.astype(np.int64))
    labels = tokens.clone()
    labels[0] = IGNORED
    if start_token is None:
        return {"input_ids": tokens, "labels": labels}
    starts = tokens == start_token
    starts[:-1] &= tokens[1:] != start_token  # of two in a row, the first ends a document; the row's last may be either
    places = torch.arange(len(tokens))
    last_start = torch.where(starts, places, 0).cummax(dim=0).values
    return {"input_ids": tokens, "labels": labels.masked_fill(starts, IGNORED), "position_ids": places - last_start}


def share_of_step(labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | float:
    """What part of an optimiser step's predicted tokens a batch has; 1 where nobody counted them.

    The stock loss is a sum over the batch divided by the tokens of the whole step, over all accumulated batches and
    processes. Whatever is added to it must be shared out in the same way.

    Args:
        labels: (B, T), shifted inside.
        num_items_in_batch: predicted tokens in the step, as the Trainer passes them on.
    """
    return 1.0 if num_items_in_batch is None else (labels[:, 1:] != IGNORED).sum() / num_items_in_batch
