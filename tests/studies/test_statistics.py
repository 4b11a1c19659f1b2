"""Medians and intervals against published order statistics; tests and words against cases counted by hand."""

import itertools

import numpy as np
import pytest

from janus.errors import UserError
from scaling_studies.statistics import (
    LESS_TIME,
    MORE_TIME,
    NO_DIFFERENCE,
    TOO_FEW,
    bootstrap_ratio,
    compare,
    interval_within,
    job_step_s,
    median_interval_ranks,
    order_effect,
    rank_test,
    summarize,
    trend,
)

SIX = (1.00, 1.01, 1.02, 1.03, 1.04, 1.05)


@pytest.mark.parametrize(
    ("num_samples", "ranks", "coverage"),
    [(6, (1, 6), 0.969), (8, (1, 8), 0.992), (10, (2, 9), 0.979), (15, (4, 12), 0.965), (20, (6, 15), 0.959),
     (30, (10, 21), 0.957)],
)  # fmt: skip
def test_interval_ranks_match_the_binomial_table(num_samples, ranks, coverage):
    lower, upper, found = median_interval_ranks(num_samples)
    assert (lower, upper) == ranks
    assert found == pytest.approx(coverage, abs=5e-4)


def test_interval_ranks_are_the_narrowest_that_reach_the_confidence():
    """Against the binomial distribution of scipy, every pair tried."""
    from scipy import stats

    for num in (*range(1, 60), 300, 1000):
        covered = {low: stats.binom.cdf(num - low, num, 0.5) - stats.binom.cdf(low - 1, num, 0.5)
                   for low in range(1, num // 2 + 1)}  # fmt: skip
        enough = [low for low, share in covered.items() if share >= 0.95]
        found = median_interval_ranks(num)
        assert (found is None) == (not enough)
        if found is not None:
            assert found[:2] == (max(enough), num + 1 - max(enough))
            assert found[2] == pytest.approx(covered[max(enough)])


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5])
def test_no_interval_and_no_words_exist_below_six(num_samples):
    few = [1.0 + index for index in range(num_samples)]
    assert median_interval_ranks(num_samples) is None
    summary = summarize(few)
    assert summary.low is None
    assert summary.high is None
    assert summary.coverage is None
    assert bootstrap_ratio(few, SIX) is None
    assert bootstrap_ratio(SIX, few) is None
    assert not interval_within(few, 1e9)
    for comparison in (compare(few, SIX), compare(SIX, few)):
        assert comparison.words == TOO_FEW
        assert comparison.p_value is None
        assert comparison.change_interval is None
    assert trend(few).correlation is None
    assert not trend(few).shown


def test_interval_covers_the_median_as_often_as_it_says():
    draws = np.random.default_rng(0).lognormal(size=(4000, 10))  # skewed: a normal interval would not do
    summaries = [summarize(list(row)) for row in draws]
    hit = np.mean([summary.low <= 1.0 <= summary.high for summary in summaries])
    assert hit == pytest.approx(0.979, abs=0.01)  # 4 standard errors


def test_summary_keeps_all_samples_and_takes_the_median():
    summary = summarize([3.0, 1.0, 2.0, 10.0])
    assert summary.samples == (3.0, 1.0, 2.0, 10.0)
    assert (summary.median, summary.mean) == (2.5, 4.0)
    assert job_step_s((0.1, 0.5, 0.11)) == 0.11


def test_rates_are_summarised_through_their_costs_and_ratios_not_at_all():
    """Ten structures in 1, 2 and 5 s: 30 in 8 s are 3.75 a second, not the arithmetic mean of 10, 5 and 2."""
    summary = summarize([10.0, 5.0, 2.0], "rate")
    assert summary.mean == pytest.approx(30 / 8)
    assert summarize([10.0, 2.0], "rate").median == pytest.approx(20 / 6)
    assert summarize([10.0 / cost for cost in SIX], "rate").low == pytest.approx(10.0 / 1.05)
    with pytest.raises(UserError, match="divide the medians"):
        summarize([0.9, 0.8], "ratio")
    with pytest.raises(ValueError, match="above 0"):
        summarize([1.0, 0.0], "rate")
    with pytest.raises(ValueError, match="kind is 'speed'"):
        summarize([1.0], "speed")


def test_nothing_cannot_be_summarised():
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


def test_the_stop_rule_looks_at_the_farther_end():
    assert interval_within(SIX, 2.5)
    assert not interval_within(SIX, 2.4)
    assert not interval_within([1.0] * 5 + [2.0], 50.0), "one slow job is one end of the interval at six jobs"
    assert interval_within([1.0] * 9 + [2.0], 1.0), "at ten jobs it is not"


def test_the_bootstrap_is_exact_where_jobs_are_equal_and_repeats_with_its_seed():
    interval = bootstrap_ratio([2.0] * 6, [4.0] * 7, factor=1.5)
    assert (interval.low, interval.high) == (0.75, 0.75)
    base, point = SIX, [1.3 * value for value in SIX]
    assert bootstrap_ratio(base, point) == bootstrap_ratio(base, point)
    assert bootstrap_ratio(base, point) != bootstrap_ratio(base, point, seed=1)
    interval = bootstrap_ratio(base, point)
    assert 1.0 / (1.3 * 1.05) <= interval.low < 1 / 1.3 < interval.high <= 1.05 / 1.3


def test_the_bootstrap_knows_the_scatter_of_both_sides():
    steady, wild = [1.0] * 8, [0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2]
    for pair in ((steady, wild), (wild, steady)):
        interval = bootstrap_ratio(*pair)
        assert interval.high - interval.low > 0.1


def test_bootstrap_intervals_cover_the_ratio_of_medians_nearly_as_often_as_they_say():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        a, b = generator.lognormal(0, 0.1, 12), generator.lognormal(0.2, 0.1, 12)
        interval = bootstrap_ratio(list(a), list(b))
        hits += interval.low <= np.exp(-0.2) <= interval.high
    assert 0.88 <= hits / 200 <= 0.99  # 95 % less the known error, and 3 standard errors


def test_the_rank_test_counts_arrangements():
    """Six against six, fully apart: 2 of the 924 arrangements are as extreme; with ties they are counted as well."""
    assert rank_test(SIX, [value + 1 for value in SIX]) == pytest.approx(2 / 924)
    assert rank_test([1.0] * 6, [2.0] * 6) == pytest.approx(2 / 924)
    assert rank_test(SIX, SIX) == pytest.approx(1.0)
    assert rank_test([1.0] * 6, [1.0] * 6) == 1.0


def test_the_rank_test_with_ties_equals_a_count_of_all_arrangements():
    """Two-sided as scipy has it: twice the smaller tail."""
    a, b = [1.0, 2.0, 2.0, 3.0], [2.0, 3.0, 4.0]

    def statistic(first, second):
        return sum((x > y) + 0.5 * (x == y) for x in first for y in second)

    pool, values = a + b, []
    for chosen in itertools.combinations(range(7), 4):
        first = [pool[index] for index in chosen]
        second = [pool[index] for index in range(7) if index not in chosen]
        values.append(statistic(first, second))
    tails = np.mean(np.array(values) <= statistic(a, b)), np.mean(np.array(values) >= statistic(a, b))
    assert rank_test(a, b) == pytest.approx(2 * min(tails))


def test_the_rank_test_is_scipys():
    from scipy import stats

    generator = np.random.default_rng(4)
    for size in (6, 7, 8):
        a, b = generator.normal(0, 1, size), generator.normal(0.5, 1, size)
        assert rank_test(a, b) == pytest.approx(stats.mannwhitneyu(a, b, method="exact").pvalue)
        a, b = np.round(a), np.round(b)
        method = stats.PermutationMethod(n_resamples=20_000)
        assert rank_test(a, b) == pytest.approx(stats.mannwhitneyu(a, b, method=method).pvalue)


def test_large_samples_are_compared_too():
    assert rank_test(np.linspace(1, 2, 40), np.linspace(1.5, 2.5, 40)) < 1e-4
    assert rank_test([1.0, 2.0] * 20, [1.0, 2.0] * 20) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1.3, MORE_TIME), (0.7, LESS_TIME), (1.015, NO_DIFFERENCE)],
)
def test_words_need_the_rank_test_and_the_threshold(factor, words):
    tight = [1.0 + 1e-4 * index for index in range(6)]  # every job of the other side is beyond all of these
    comparison = compare(tight, [factor * value for value in tight])
    assert comparison.p_value < 0.01
    assert comparison.words == words
    assert comparison.change == pytest.approx(factor - 1)
    assert comparison.change_interval.low <= comparison.change <= comparison.change_interval.high


def test_a_large_change_that_the_rank_test_does_not_show_is_not_said():
    wild = [0.5, 0.7, 0.9, 1.1, 1.3, 1.5]
    comparison = compare(wild, [1.2 * value for value in wild])
    assert comparison.change == pytest.approx(0.2)
    assert comparison.words == NO_DIFFERENCE
    assert compare(SIX, [1.3 * value for value in SIX], threshold=0.5).words == NO_DIFFERENCE


def test_words_are_rarely_wrong_when_nothing_changed():
    generator = np.random.default_rng(2)
    said = [compare(*generator.lognormal(0, 0.1, (2, 8))).differs for _ in range(300)]
    assert np.mean(said) <= 0.03  # 1 %, and 3 standard errors


def test_order_effect_sorts_by_start_whatever_the_order_of_the_records():
    starts = ["2026-11-22T10:05", "2026-11-22T10:01", "2026-11-22T10:03", "2026-11-22T10:02", "2026-11-22T10:06",
              "2026-11-22T10:04"]  # fmt: skip
    found = order_effect([1.5, 1.1, 1.3, 1.2, 1.6, 1.4], starts)
    assert found.correlation == pytest.approx(1.0)
    assert found.p_value == pytest.approx(2 / 720)
    assert found.shown
    assert found.words.startswith("rising by")
    with pytest.raises(ValueError, match="2 values have 1 times"):
        order_effect([1.0, 2.0], [0.0])


def test_trend_needs_the_test_and_the_threshold():
    assert trend([1.0, 0.9, 0.8, 0.7, 0.6, 0.5]).words.startswith("falling by")
    assert not trend([1.0 + 1e-5 * step for step in range(20)]).shown, "significant, and of no interest"
    assert trend([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]).words == "no trend shown"
    assert trend([1.0] * 8).p_value == 1.0


def test_the_exact_trend_test_counts_arrangements_and_is_continued_by_students_t():
    """One swap of neighbours in eight values: itself, the other six swaps and perfect order, and all of it reversed."""
    eight, nine = trend([1, 2, 3, 4, 5, 6, 8, 7]), trend([1, 2, 3, 4, 5, 6, 7, 9, 8])
    assert eight.p_value == pytest.approx(2 * 8 / 40320)
    assert 1e-4 <= nine.p_value <= eight.p_value
    generator = np.random.default_rng(3)
    said = [trend(list(1 + generator.normal(0, 0.1, 9))).shown for _ in range(300)]
    assert np.mean(said) <= 0.03  # 1 %, and 3 standard errors
