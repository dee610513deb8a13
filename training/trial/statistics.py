"""Paired differences of runs that differ in nothing but their arm, with Student's intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .results import Table

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
"""97.5 % quantiles of Student's distribution by degrees of freedom, from 1."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    error: float
    """Standard error."""
    low: float
    """Lower end of Student's 95 % interval."""
    high: float
    """Upper end."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate the mean that 2 to 16 independent values have.

        Raises:
            ValueError: fewer or more.
        """
        n = len(values)
        if not 2 <= n <= len(STUDENT) + 1:
            raise ValueError(f"values must be 2 to {len(STUDENT) + 1}, got {n}; run more seeds, or fewer")
        mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(n)
        reach = STUDENT[n - 2] * error
        return cls(mean, error, mean - reach, mean + reach)

    @property
    def distinct(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """One arm at one moment against another at one."""

    title: str
    arm: str
    against: str
    at: str = "end"
    against_at: str = "end"


def differences(table: Table, comparison: Comparison, metric: str) -> list[float]:
    """Paired differences of a metric over the seeds that both arms have."""
    one, other = table.get(comparison.arm, {}), table.get(comparison.against, {})
    pairs = [
        (one[seed][comparison.at], other[seed][comparison.against_at])
        for seed in sorted(one.keys() & other.keys())
    ]
    return [a[metric] - b[metric] for a, b in pairs if metric in a and metric in b]


def difference(table: Table, comparison: Comparison, metric: str) -> Estimate | None:
    """The mean paired difference of a metric; None for fewer than two pairs."""
    values = differences(table, comparison, metric)
    return Estimate.of(values) if len(values) > 1 else None
