"""Medians and intervals against published order statistics."""

import numpy as np
import pytest

from scaling_studies.statistics import job_step_s, median_interval_ranks, summarize


@pytest.mark.parametrize(
    ("num_samples", "ranks", "coverage"),
    [(6, (1, 6), 0.969), (8, (1, 8), 0.992), (10, (2, 9), 0.979), (15, (4, 12), 0.965), (20, (6, 15), 0.959),
     (30, (10, 21), 0.957)],
)  # fmt: skip
def test_interval_ranks_match_the_binomial_table(num_samples, ranks, coverage):
    lower, upper, found = median_interval_ranks(num_samples)
    assert (lower, upper) == ranks
    assert found == pytest.approx(coverage, abs=5e-4)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5])
def test_no_interval_exists_below_six(num_samples):
    assert median_interval_ranks(num_samples) is None
    summary = summarize([1.0 + index for index in range(num_samples)])
    assert summary.low is None
    assert summary.high is None
    assert summary.interval_text == f"no CI (n={num_samples})"


def test_interval_covers_the_median_as_often_as_it_says():
    draws = np.random.default_rng(0).lognormal(size=(4000, 10))  # skewed: a normal interval would not do
    summaries = [summarize(list(row)) for row in draws]
    hit = np.mean([summary.low <= 1.0 <= summary.high for summary in summaries])
    assert hit == pytest.approx(0.979, abs=0.01)  # 4 standard errors


def test_summary_keeps_all_samples_and_takes_the_median():
    summary = summarize([3.0, 1.0, 2.0, 10.0])
    assert summary.samples == (3.0, 1.0, 2.0, 10.0)
    assert summary.median == 2.5
    assert job_step_s((0.1, 0.5, 0.11)) == 0.11


def test_nothing_cannot_be_summarised():
    with pytest.raises(ValueError, match="no samples"):
        summarize([])
