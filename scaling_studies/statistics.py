"""Medians and order-statistic confidence intervals of costs. It does not own ratios (``ratios``).

The job is the sample: steps inside one job are correlated, so a job enters with its median step time
(Hoefler and Belli, SC15, rules 5, 6 and 8). Below six jobs a nonparametric 95 % interval of the median does not exist.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MIN_SAMPLES_FOR_INTERVAL = (
    6  # the widest interval, smallest to largest, covers 1 - 2 * 0.5**n: 93.75 % at 5, 96.9 % at 6
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """samples: all values as given; low, high, coverage: None where no interval exists."""

    samples: tuple[float, ...]
    median: float
    low: float | None
    high: float | None
    coverage: float | None

    @property
    def interval_text(self) -> str:
        """The interval in words, or the reason there is none."""
        if self.low is None or self.high is None or self.coverage is None:
            return f"no CI (n={len(self.samples)})"
        return f"{self.low:.4g} to {self.high:.4g} ({100 * self.coverage:.1f} % CI, n={len(self.samples)})"


def median_interval_ranks(num_samples: int, confidence: float = 0.95) -> tuple[int, int, float] | None:
    """1-based order statistics bounding the median with at least ``confidence``, and their true coverage.

    None where no pair reaches it. Source: binomial distribution of the count below the median
    (Hoefler and Belli, SC15, section 3.1.3); no assumption on the distribution of the samples.
    """
    best = None
    for lower in range(1, num_samples // 2 + 1):
        tail = sum(math.comb(num_samples, count) for count in range(lower)) / 2**num_samples
        if 1 - 2 * tail >= confidence:
            best = (lower, num_samples + 1 - lower, 1 - 2 * tail)
    return best


def summarize(samples: Sequence[float]) -> Summary:
    """Median and, from six samples on, its 95 % order-statistic interval. Raises ValueError for no samples."""
    if not samples:
        raise ValueError("summarize got no samples")
    ordered = sorted(samples)
    ranks = median_interval_ranks(len(ordered)) if len(ordered) >= MIN_SAMPLES_FOR_INTERVAL else None
    low, high, coverage = (ordered[ranks[0] - 1], ordered[ranks[1] - 1], ranks[2]) if ranks else (None, None, None)
    return Summary(samples=tuple(samples), median=statistics.median(ordered), low=low, high=high, coverage=coverage)


def job_step_s(step_s: Sequence[float]) -> float:
    """The one value a job contributes: the median of its step times [s]."""
    return statistics.median(step_s)
