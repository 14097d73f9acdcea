"""Reference losses without a model of the wanted size: a power law through the losses of larger siblings.

loss(N) = a N^(-b) + c for every text domain, N counting all parameters with embeddings (Xia et al., 2023, arXiv
2310.06694, appendix on reference losses).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize_scalar

from drama_models.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LEAST_MODELS = 3  # a, b and c
EXPONENTS = (1e-4, 4.0)  # searched range of b


def extrapolated_loss(losses: Mapping[int, float], target_size: int) -> float:
    """Loss at another size, by the power law that fits best in least squares.

    Through three models it is exact, unless losses fall faster than with the logarithm of the size: then the best law
    is the flattest one that is searched, and passes them by.

    Args:
        losses: held-out loss, nats a token, by number of parameters.
        target_size: parameters of the model whose loss is wanted.

    Returns:
        Nats a token.

    Raises:
        CorpusError: fewer than three models, a size or loss that is not positive, or losses that do not fall with size.
    """
    if len(losses) < LEAST_MODELS:
        raise CorpusError(f"A scaling curve needs at least {LEAST_MODELS} models, found {len(losses)}; add more.")
    sizes = np.array(sorted(losses), dtype=np.float64)
    values = np.array([losses[int(size)] for size in sizes], dtype=np.float64)
    if target_size < 1 or sizes[0] < 1 or values.min() <= 0:
        raise CorpusError("Sizes and losses of a scaling curve must be positive numbers; correct the table.")
    if (np.diff(values) >= 0).any():
        raise CorpusError(
            f"Losses {values.tolist()} of models with {sizes.astype(int).tolist()} parameters do not fall with size; "
            "check that each loss stands beside its own model."
        )
    unit = np.exp(np.log(sizes).mean())  # keeps N^(-b) near 1, whatever b

    def residual(exponent: float) -> float:
        return float(np.square(_line(sizes / unit, values, exponent)[1]).sum())

    exponent = float(minimize_scalar(residual, bounds=EXPONENTS, method="bounded", options={"xatol": 1e-12}).x)
    (factor, floor), _ = _line(sizes / unit, values, exponent)
    return float(factor * (target_size / unit) ** -exponent + floor)


def _line(
    sizes: NDArray[np.float64], losses: NDArray[np.float64], exponent: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Best a and c for one exponent, where the law is linear in both, and what they leave over."""
    design = np.stack([sizes**-exponent, np.ones_like(sizes)], axis=1)
    coefficients: NDArray[np.float64] = np.linalg.lstsq(design, losses, rcond=None)[0].astype(np.float64)
    return coefficients, losses - design @ coefficients
