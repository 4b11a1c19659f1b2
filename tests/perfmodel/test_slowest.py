"""The expected slowest of many ranks: limits, known expectations of normal numbers, agreement with draws."""

import numpy as np
import pytest

from perfmodel.network.noise import Noise
from perfmodel.slowest import expected_slowest, normal_tail


def test_tail_of_the_normal_distribution():
    assert normal_tail(np.array([0.0, 1.0, 3.0, 6.0, -1.0])) == pytest.approx(
        [0.5, 0.158655254, 1.349898e-3, 9.865876e-10, 0.841344746], rel=1e-6
    )


def test_without_noise_the_slowest_is_the_slowest():
    assert expected_slowest(np.array([1.0, 3.0, 2.0]), 8, Noise()) == 3.0
    assert expected_slowest(np.array([]), 8, Noise()) == 0.0


def test_one_rank_has_its_mean():
    assert expected_slowest(np.array([2.0]), 1, Noise(compute_deviation=0.1)) == pytest.approx(2.0, rel=1e-4)


def test_known_expectations_of_alike_ranks():
    """Largest of 2 and of 100 standard normal numbers: 1/sqrt(pi) and 2.50759 (Tippett's table)."""
    small = Noise(compute_deviation=1e-3)
    assert expected_slowest(np.ones(1), 2, small) == pytest.approx(1 + 0.5641896e-3, rel=2e-6)
    assert expected_slowest(np.ones(100), 1, small) == pytest.approx(1 + 2.50759e-3, rel=2e-5)


def test_more_ranks_and_more_noise_are_never_faster():
    ranks = [
        expected_slowest(np.ones(1), number, Noise(compute_deviation=0.05)) for number in (1, 8, 64, 4096, 327_680)
    ]
    assert ranks == sorted(ranks)
    noise = [expected_slowest(np.ones(16), 4, Noise(compute_deviation=one)) for one in (0.0, 0.01, 0.05, 0.2)]
    assert noise == sorted(noise)


def test_it_is_the_mean_of_many_draws():
    seconds, noise = np.linspace(0.8, 1.0, 16), Noise(
        compute_deviation=0.05, straggler_fraction=0.02, straggler_slowdown=1.3
    )  # fmt: skip
    drawn = []
    for seed in range(4000):
        generator = np.random.default_rng(seed)
        width = np.sqrt(np.log1p(0.05**2))
        factor = np.exp(width * generator.standard_normal((16, 4)) - width**2 / 2)
        factor *= np.where(generator.random((16, 4)) < 0.02, 1.3, 1.0)
        drawn.append((seconds[:, None] * factor).max())
    assert expected_slowest(seconds, 4, noise) == pytest.approx(np.mean(drawn), rel=2e-3)


def test_many_different_seconds_are_binned_but_hardly_changed():
    seconds = np.random.default_rng(0).normal(1.0, 0.05, 5000)
    noise = Noise(compute_deviation=0.02)
    exact = expected_slowest(np.sort(seconds)[-200:], 1, noise)
    assert expected_slowest(seconds, 1, noise) == pytest.approx(exact, rel=2e-3)
