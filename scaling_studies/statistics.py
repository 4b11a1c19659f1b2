"""What samples of jobs say: medians, intervals, comparisons in words. It does not own ratios of medians (``ratios``).

The job is the sample: steps inside one job are correlated, so a job enters with its median step time. Nothing here
assumes a distribution. Source of the rules: Hoefler and Belli, SC15 (rules 3 to 8).

Below six jobs a nonparametric 95 % interval of the median does not exist: then there is no interval, no error bar and
no comparison in words.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from janus.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MIN_SAMPLES_FOR_INTERVAL = (
    6  # the widest interval, smallest to largest, covers 1 - 2 * 0.5**n: 93.75 % at 5, 96.9 % at 6
)
CONFIDENCE = 0.95
SIGNIFICANCE = 0.01  # of rank tests; 6 against 6 jobs can reach 0.0022
THRESHOLD = 0.02  # assumed: changes below 2 % are of no practical interest
LEAST_P_OF_T = 1e-4  # Student's t is too small for the tails of rank correlations of ten or so values: none below this
MOST_ARRANGEMENTS = 20_000  # counted one by one in a rank test
BOOTSTRAP_DRAWS = 4000  # an end of the interval then moves by about a fiftieth of its width from seed to seed

MORE_TIME, LESS_TIME = "took more time", "took less time"
NO_DIFFERENCE, TOO_FEW = "no difference shown", "too few jobs to say"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """low, high: ends; confidence: nominal; method: in words."""

    low: float
    high: float
    confidence: float
    method: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """samples: all values as given; low, high, coverage: None where no interval exists.

    kind "cost": median and arithmetic mean. kind "rate": inverse of the median and mean of the inverses, so the mean is
    the harmonic one.
    """

    samples: tuple[float, ...]
    median: float
    mean: float
    low: float | None
    high: float | None
    coverage: float | None
    kind: str = "cost"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Samples b held against samples a. words: one of the four above.

    change: median of b over median of a, less 1; change_interval: of the same, None below six jobs at either side;
    p_value: of the two-sided rank test, None where there are too few jobs; why: the test in one phrase.
    """

    words: str
    num_a: int
    num_b: int
    change: float
    change_interval: Interval | None
    p_value: float | None
    threshold: float
    why: str

    @property
    def differs(self) -> bool:
        return self.words in (MORE_TIME, LESS_TIME)


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Whether values rise or fall in an order. correlation: Spearman's, -1 to 1; None below six values.

    change: median of the last third over the median of the first third, less 1. shown: the test and the practical
    threshold agree that there is a trend.
    """

    num: int
    correlation: float | None
    p_value: float | None
    change: float | None
    shown: bool
    words: str


def median_interval_ranks(num_samples: int, confidence: float = CONFIDENCE) -> tuple[int, int, float] | None:
    """1-based order statistics bounding the median with at least ``confidence``, and their true coverage.

    None where no pair reaches it. Source: binomial distribution of the count below the median
    (Hoefler and Belli, SC15, section 3.1.3); no assumption on the distribution of the samples.
    """
    best, arrangements = None, 0  # of the signs of the samples, with fewer than ``lower`` below the median
    for lower in range(1, num_samples // 2 + 1):
        arrangements += math.comb(num_samples, lower - 1)
        coverage = 1 - 2 * (arrangements / 2**num_samples)
        if coverage < confidence:
            break
        best = (lower, num_samples + 1 - lower, coverage)
    return best


def summarize(samples: Sequence[float], kind: Literal["cost", "rate", "ratio"] = "cost") -> Summary:
    """Median, mean and, from six samples on, the 95 % order-statistic interval of the median.

    Rates (structures per second) are summarised through their costs, ratios (efficiency, percent of peak) not at all:
    rules 3 and 4 of Hoefler and Belli, SC15. Raises UserError for ratios, ValueError for no samples and for rates that
    are not above 0.
    """
    if kind == "ratio":
        raise UserError("ratios are not summarised: summarise the times (or rates) first and divide the medians")
    if kind not in ("cost", "rate"):
        raise ValueError(f"kind is {kind!r}: use 'cost', 'rate' or 'ratio'")
    if not samples:
        raise ValueError("summarize got no samples")
    if kind == "rate" and min(samples) <= 0:
        raise ValueError(f"the smallest rate is {min(samples)}: rates are above 0")
    ordered = sorted(samples)
    ranks = median_interval_ranks(len(ordered)) if len(ordered) >= MIN_SAMPLES_FOR_INTERVAL else None
    low, high, coverage = (ordered[ranks[0] - 1], ordered[ranks[1] - 1], ranks[2]) if ranks else (None, None, None)
    median, mean = statistics.median(ordered), statistics.fmean(ordered)
    if kind == "rate":
        median, mean = 1 / statistics.median(1 / rate for rate in ordered), statistics.harmonic_mean(ordered)
    return Summary(
        samples=tuple(samples), median=median, mean=mean, low=low, high=high, coverage=coverage, kind=kind
    )  # fmt: skip


def job_step_s(step_s: Sequence[float]) -> float:
    """The one value a job contributes: the median of its step times [s]."""
    return statistics.median(step_s)


def interval_within(samples: Sequence[float], percent: float) -> bool:
    """Whether the median's interval exists and both its ends lie within ``percent`` % of the median: the stop rule."""
    if len(samples) < MIN_SAMPLES_FOR_INTERVAL:
        return False
    summary = summarize(samples)
    assert summary.low is not None
    assert summary.high is not None
    return max(summary.high - summary.median, summary.median - summary.low) <= percent / 100 * summary.median


def bootstrap_ratio(
    numerator: Sequence[float], denominator: Sequence[float], *, factor: float = 1.0, seed: int = 0
) -> Interval | None:
    """95 % percentile interval of ``factor * median(numerator) / median(denominator)``; None below six jobs at either.

    The jobs of both sides are drawn again together, so the uncertainty of the one the ratio refers to is in it. An
    efficiency is the jobs of the base point [s] over those of the point [s], with factor 1 (weak), base ranks / ranks
    (strong), structures per step / those at the base point (throughput). The base is common to all points: their
    intervals are not independent. Known error: with six jobs the true coverage of a percentile interval of a ratio of
    medians is nearer 90 % than 95 %.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; medians of seeded draws.
    """
    if min(len(numerator), len(denominator)) < MIN_SAMPLES_FOR_INTERVAL:
        return None
    import numpy as np

    generator = np.random.default_rng(seed)

    def medians(samples: Sequence[float]) -> np.ndarray:
        values = np.asarray(samples, dtype=float)
        return np.median(values[generator.integers(0, len(values), (BOOTSTRAP_DRAWS, len(values)))], axis=1)

    ratios = factor * medians(numerator) / medians(denominator)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    method = f"joint bootstrap over jobs, {BOOTSTRAP_DRAWS} draws, percentiles"
    return Interval(low=float(low), high=float(high), confidence=CONFIDENCE, method=method)


def rank_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p-value of the Mann-Whitney rank test: twice the smaller tail, 1 at most.

    Exact by counting all arrangements, ties included, up to 20,000 of them (eight against eight); beyond that as
    ``scipy.stats.mannwhitneyu`` has it, exact for few and normal for many.
    Source: Mann and Whitney, Ann. Math. Stat. 18 (1947).
    """
    if math.comb(len(a) + len(b), len(a)) > MOST_ARRANGEMENTS:
        from scipy import stats

        return float(stats.mannwhitneyu(a, b, alternative="two-sided").pvalue)
    import numpy as np

    _, place, counts = np.unique([*a, *b], return_inverse=True, return_counts=True)
    doubled_ranks = (2 * np.cumsum(counts) - counts + 1)[place]  # whole numbers also where ties share a rank
    sums = doubled_ranks[_every_choice(len(a) + len(b), len(a))].sum(axis=1)
    found = doubled_ranks[: len(a)].sum()
    return min(1.0, 2 * float(min(np.mean(sums <= found), np.mean(sums >= found))))


@functools.cache
def _every_choice(num: int, chosen: int) -> np.ndarray:
    """Every choice of so many places out of so many, one per row."""
    import numpy as np

    return np.array(list(itertools.combinations(range(num), chosen)))


def compare(
    a: Sequence[float], b: Sequence[float], *, threshold: float = THRESHOLD, significance: float = SIGNIFICANCE
) -> Comparison:
    """Times ``b`` against times ``a`` [s], one value per job, in the only words a report may use for it.

    "took more time" and "took less time" need both: the rank test below ``significance`` and the medians further apart
    than ``threshold``. Below six jobs at either side nothing is said. Raises ValueError for no samples.
    """
    change = statistics.median(b) / statistics.median(a) - 1
    sizes = {"num_a": len(a), "num_b": len(b), "change": change, "threshold": threshold}
    if min(len(a), len(b)) < MIN_SAMPLES_FOR_INTERVAL:
        why = f"{len(a)} and {len(b)} jobs, {MIN_SAMPLES_FOR_INTERVAL} of each are needed"
        return Comparison(words=TOO_FEW, change_interval=None, p_value=None, why=why, **sizes)  # type: ignore[arg-type]
    p_value, interval = rank_test(a, b), bootstrap_ratio(b, a)
    assert interval is not None
    moved = Interval(low=interval.low - 1, high=interval.high - 1, confidence=CONFIDENCE, method=interval.method)
    why = (
        f"rank test p = {p_value:.2g} (limit {significance:g}), "
        f"change {100 * change:+.1f} % (limit {100 * threshold:g} %)"
    )
    words = NO_DIFFERENCE
    if p_value < significance and abs(change) > threshold:
        words = MORE_TIME if change > 0 else LESS_TIME
    return Comparison(words=words, change_interval=moved, p_value=p_value, why=why, **sizes)  # type: ignore[arg-type]


def order_effect(values: Sequence[float], started: Sequence[float | str]) -> Trend:
    """Whether jobs that started later took longer or shorter. started: times in any sortable form, one per value."""
    if len(values) != len(started):
        raise ValueError(f"{len(values)} values have {len(started)} times: one of each is needed")
    ordered = sorted(zip(started, values, strict=True), key=lambda pair: pair[0])
    return trend([value for _, value in ordered])


def trend(
    values: Sequence[float], *, threshold: float = THRESHOLD, significance: float = SIGNIFICANCE
) -> Trend:  # fmt: skip
    """Whether values rise or fall in the order given: the steps of a job after warm-up, the jobs of a point.

    Spearman's rank correlation with the position; its p-value is exact up to eight values without ties, else from
    Student's t. A trend is shown when it is below ``significance`` and the last third differs from the first by more
    than ``threshold``. Neighbouring steps resemble each other, so over steps the p-value is too small: the practical
    threshold is what keeps a chance wave from being called a trend.

    Source: Spearman (1904); scipy.stats.spearmanr.
    """
    if len(values) < MIN_SAMPLES_FOR_INTERVAL:
        words = f"too few to say (n={len(values)})"
        return Trend(num=len(values), correlation=None, p_value=None, change=None, shown=False, words=words)
    correlation, p_value = _rank_correlation(values)
    third = len(values) // 3
    change = statistics.median(values[-third:]) / statistics.median(values[:third]) - 1
    shown = p_value < significance and abs(change) > threshold
    words = f"{'rising' if change > 0 else 'falling'} by {100 * abs(change):.1f} %" if shown else "no trend shown"
    return Trend(num=len(values), correlation=correlation, p_value=p_value, change=change, shown=shown, words=words)


def _rank_correlation(values: Sequence[float]) -> tuple[float, float]:
    """Spearman's correlation of values with their position, and its two-sided p-value."""
    from scipy import stats

    num = len(values)
    if len(set(values)) == 1:
        return 0.0, 1.0
    found = stats.spearmanr(range(num), values)
    correlation = float(found.statistic)
    if num <= 8 and len(set(values)) == num:
        every = _every_rank_correlation(num)
        return correlation, sum(abs(value) >= abs(correlation) - 1e-9 for value in every) / len(every)
    return correlation, max(float(found.pvalue), LEAST_P_OF_T)


@functools.cache
def _every_rank_correlation(num: int) -> tuple[float, ...]:
    """Spearman's correlation of every arrangement of so many values, without ties."""
    scale = num * (num**2 - 1)
    return tuple(
        1 - 6 * sum((place - value) ** 2 for place, value in enumerate(arrangement)) / scale
        for arrangement in itertools.permutations(range(num))
    )
