"""What computes hidden states: torch, ONNX Runtime or OpenVINO, behind one small interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

CPU_BATCH_TOKENS = 1024
"""The sweet spot of two CPU cores, where more are no faster."""


class Runtime(Protocol):
    """Computes one pooled vector for each text of a batch."""

    name: str
    description: str
    """What computes, in which precision; shown to whoever asks what "auto" chose."""
    precision: str
    """fp32, bf16, fp16 or int8: vectors of different ones should not be mixed."""
    batch_tokens: int
    """Tokens in a batch that it is fastest with."""

    @property
    def packed(self) -> bool:
        """Whether a batch costs its real tokens only, so that its budget need not count padding."""
        ...

    def embed(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Pooled vectors, not cut and not normalised.

        Args:
            batch: token ids of each text, (T,) each, ends included.

        Returns:
            (number of texts, hidden size), float32; a row does not depend on its batch mates beyond float rounding.
        """
        ...
