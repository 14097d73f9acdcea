"""Dynamic batch loading: shares of the text domains follow how far each domain's loss is above its reference.

Xia et al., 2023 (arXiv 2310.06694), section 2.2 and algorithm 1, as the authors' code computes it. Their paper clips
loss differences at zero and their code does not; `clip` chooses, and the code is the default.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from drama_models.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Update = Literal["constant", "doremi", "bandit"]
STEP_SIZE = 1.0  # eta
SMOOTHING = 1e-4  # c: this much of the mass is spread evenly, so that no domain dies out


def updated_proportions(
    proportions: Sequence[float],
    losses: Sequence[float],
    reference_losses: Sequence[float],
    *,
    update: Update = "doremi",
    clip: bool = False,
) -> NDArray[np.float64]:
    """Shares after one evaluation.

    doremi: softmax(ln p + eta (l - r)); bandit: softmax(p + eta (l - r)); both then smoothed. constant: p as it was.

    Args:
        proportions: current shares p, one for each domain, sum 1.
        losses: l, held-out loss of each domain, nats a token.
        reference_losses: r, the loss that each domain is expected to reach, nats a token.
        update: the rule.
        clip: take differences below zero as zero (the paper's algorithm 1).

    Returns:
        (number of domains,), float64, sum 1.

    Raises:
        ValueError: an unknown rule, or arguments of different lengths.
    """
    if update not in get_args(Update):
        raise ValueError(f"update={update!r} is not a rule; choose from {', '.join(get_args(Update))}.")
    current, reached, expected = (
        np.asarray(values, dtype=np.float32) for values in (proportions, losses, reference_losses)
    )
    if not len(current) == len(reached) == len(expected):
        raise ValueError(
            f"{len(current)} proportions, {len(reached)} losses and {len(expected)} reference losses do not belong "
            "together; give one of each for every domain."
        )
    if update != "constant":
        differences = reached - expected
        if clip:
            differences = np.maximum(differences, 0)
        with np.errstate(divide="ignore"):  # a domain at zero starts again from the smoothing
            scores = (np.log(current) if update == "doremi" else current) + np.float32(STEP_SIZE) * differences
        weights = np.exp(scores - scores.max())
        current = weights / weights.sum()
        current = (1 - np.float32(SMOOTHING)) * current + np.float32(SMOOTHING / len(current))
    shares = current.astype(np.float64)
    return shares / shares.sum()


def read_reference_losses(path: Path, domains: Iterable[str]) -> dict[str, float]:
    """Reference losses of the given domains, from what `python -m pruning reference-loss` wrote.

    Raises:
        CorpusError: no such file, not a JSON object of finite numbers, or a domain without a loss.
    """
    try:
        table: Mapping[str, float] = json.loads(path.read_text(encoding="utf-8"))
        losses = {domain: float(table[domain]) for domain in domains}
        if not all(map(math.isfinite, losses.values())):
            raise ValueError
    except FileNotFoundError:
        raise CorpusError(f"There is no {path}; run `python -m pruning reference-loss` to make it.") from None
    except KeyError as error:
        raise CorpusError(f"{path} has no reference loss for domain {error}; add one, in nats a token.") from None
    except (json.JSONDecodeError, TypeError, ValueError):
        raise CorpusError(f'{path} must hold finite losses by domain, such as {{"en": 2.14}}; make it again.') from None
    return losses
