"""Whether a change of a metric is more than chance: a paired randomisation test and a bootstrap interval, by scipy.

Queries that were made from one document rise and fall together. So whole groups are drawn: the test flips the sign of
all differences of a document at once, the bootstrap draws documents with replacement. A user's own queries are each a
group of their own, which gives the usual test (Smucker et al., 2007, "A comparison of statistical significance tests
for information retrieval evaluation").
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from training.specialise.findings import Change

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

RESAMPLES = 9999
CONFIDENCE = 0.95
SEED = 0
AT_ONCE = 512  # resamples in memory together


def compare(
    metric: str, before: Mapping[str, float], after: Mapping[str, float], groups: Mapping[str, str] | None = None
) -> Change:
    """The change of a metric's mean, with its p and its confidence interval.

    Args:
        metric: its name.
        before: value of each query, at least one.
        after: the same queries' values.
        groups: the document of each query; without it, each query is a group.

    Returns:
        Means, and the 95% interval of their difference. A single group has no interval: it is the difference, p is 1.

    Raises:
        ValueError: other queries before than after, or none.
    """
    if not before or before.keys() != after.keys():
        raise ValueError(f"{len(before)} queries before and {len(after)} after; pass the same ones, at least one.")
    sums, counts = _by_group({query: after[query] - before[query] for query in before}, groups)
    low, high = _interval(sums, counts)
    return Change(
        metric=metric,
        before=float(np.mean(list(before.values()))),
        after=float(np.mean(list(after.values()))),
        low=low,
        high=high,
        p=_randomisation_p(sums),
    )


def _by_group(
    differences: Mapping[str, float], groups: Mapping[str, str] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the differences of each group, (G,) each; in the order of the groups' names."""
    found: dict[str, list[float]] = defaultdict(list)
    for query, difference in differences.items():
        found[groups[query] if groups is not None else query].append(difference)
    named = [found[name] for name in sorted(found)]
    return np.array([sum(values) for values in named]), np.array([float(len(values)) for values in named])


def _randomisation_p(sums: NDArray[np.float64]) -> float:
    """Two-sided p of the mean difference, were the sign of each group's sum as likely to be the other one."""
    from scipy.stats import permutation_test

    if len(sums) < 2 or not sums.any():
        return 1.0
    result = permutation_test(
        (sums,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=AT_ONCE,
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    return float(result.pvalue)


def _interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile bootstrap of the mean difference over queries, groups drawn as wholes."""
    from scipy.stats import bootstrap

    if len(sums) < 2 or not sums.any():
        only = float(sums.sum() / counts.sum())
        return only, only
    result = bootstrap(
        (sums, counts),
        lambda total, number, axis: total.sum(axis=axis) / number.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=AT_ONCE,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
