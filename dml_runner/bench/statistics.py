"""Figures of paired measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A median, and the interval that holds it with 95 % by the percentile bootstrap (Efron & Tibshirani 1993, chapter 13).

    Attributes:
        median: of the values.
        low: lower end of the interval.
        high: upper end.
    """

    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Median of ``values`` and its 95 % interval; the same values give the same interval."""
    sample = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(1).choice(sample, (RESAMPLES, len(sample)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return Estimate(float(np.median(sample)), float(low), float(high))
