"""What one method has over another: paired over slices, with an interval by bootstrap.

The interval says how far the mean would move with other slices of the same kind. Slices of one task are alike, so it
says less of tasks that the study has not seen; and each interval stands for itself, none is widened because there are
many.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
"""Of the resampling: the same differences have the same interval, so that the same study gives the same page."""
FEWEST = 3
"""Fewer slices have no interval: there is nothing to resample."""
DECIDING = 6
"""With fewer slices nothing is called clear: by chance all of five have one sign in 1 of 16 (two-sided sign test)."""
EQUAL = 1e-9
"""Scores that differ by no more than rounding are level."""
BATCH = 2_000_000
"""Numbers resampled at a time, so that thousands of slices fit in memory."""


@dataclass(frozen=True)
class Difference:
    """``a − b`` over the slices that both have; fractions, not points.

    Attributes:
        mean: the mean over slices, every slice counting once.
        low: the lower end of the 95 % interval of the mean; NaN where there are fewer than :data:`FEWEST` slices.
        high: the upper end.
        slices: how many both have.
        wins: on how many of them ``a`` is higher.
        losses: on how many ``b`` is.
    """

    mean: float
    low: float
    high: float
    slices: int
    wins: int
    losses: int

    @property
    def has_interval(self) -> bool:
        """Whether there are slices enough for an interval."""
        return not math.isnan(self.low)

    @property
    def clear(self) -> int:
        """1 where ``a`` is clearly higher, -1 where ``b`` is: 0 lies outside the interval of slices enough; else 0."""
        if self.slices < DECIDING:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def turned(self) -> Difference:
        """Return ``b − a``."""
        return Difference(-self.mean, -self.high, -self.low, self.slices, self.losses, self.wins)


def difference(a: Mapping[str, float], b: Mapping[str, float]) -> Difference | None:
    """Return what ``a`` has over ``b``, slice by slice; None where no slice has both.

    Args:
        a: the score of each slice, by its name.
        b: likewise.
    """
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return None
    values = np.array([a[name] - b[name] for name in shared], dtype=np.float64)
    low, high = interval(values)
    wins, losses = int((values > EQUAL).sum()), int((values < -EQUAL).sum())
    return Difference(float(values.mean()), low, high, len(values), wins, losses)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of ``values`` (n,); NaN twice for fewer than :data:`FEWEST`.

    Bias-corrected and accelerated (Efron 1987); by percentiles where that degenerates, as for values all alike.
    """
    if len(values) < FEWEST:
        return math.nan, math.nan
    low, high = _bootstrap(values, "BCa")
    return (low, high) if math.isfinite(low) and math.isfinite(high) else _bootstrap(values, "percentile")


def _bootstrap(values: NDArray[np.float64], method: str) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it degenerates, the result says
        found = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, BATCH // len(values)),
            confidence_level=CONFIDENCE,
            method=method,
            rng=np.random.default_rng(SEED),
        ).confidence_interval
    return float(found.low), float(found.high)
