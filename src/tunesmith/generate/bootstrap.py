"""How sure a difference is: intervals from resampling rows, each with both its sides.

Percentiles of the bootstrap (Efron, 1979), with levels widened for few rows as Hesterberg proposes in "What teachers should
know about the bootstrap" (The American Statistician 69(4), 2015, section 4.3): of n rows the plain percentiles are too close
together, by what Student's t and the factor √(n / (n - 1)) add to the normal distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES, LEVEL, SEED = 4000, 0.95, 20261124
MIN_ROWS = 5
"""Fewer rows tell nothing."""
_TOGETHER = 2**20


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a difference, after less before."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_interval(
    before: Sequence[float], after: Sequence[float], weights: Sequence[float] | None = None, seed: int = SEED
) -> Interval | None:
    """The interval of the difference of two weighted means over the same rows; None for fewer than `MIN_ROWS`.

    Args:
        before, after: each row's value on either side. weights: above 0, such as a row's tokens; by default all rows are alike.
    """
    rows = len(before)
    if rows < MIN_ROWS:
        return None
    weight = np.ones(rows) if weights is None else np.asarray(weights, np.float64)
    weighted = (np.asarray(after, np.float64) - np.asarray(before, np.float64)) * weight
    draw, means = np.random.default_rng(seed), []
    some = max(1, _TOGETHER // rows)
    for start in range(0, RESAMPLES, some):
        chosen = draw.integers(0, rows, (min(some, RESAMPLES - start), rows))
        means.append(weighted[chosen].sum(1) / weight[chosen].sum(1))
    return Interval(*_ends(np.concatenate(means), rows))


def _ends(means: NDArray[np.float64], rows: int) -> tuple[float, float]:
    tail = NormalDist().cdf(-((rows / (rows - 1)) ** 0.5) * _student(rows - 1))
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def _student(freedom: int) -> float:
    """Student's t that leaves (1 - `LEVEL`) / 2 above it, by the expansion 26.7.5 of Abramowitz and Stegun (1964); right to
    half a per cent from 4 degrees of freedom on."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
