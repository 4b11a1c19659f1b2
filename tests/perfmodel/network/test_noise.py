"""Disturbances: reproducible, independent of each other, mean-preserving where they say so, felt by the events."""

from __future__ import annotations

import numpy as np
import pytest

from janus.errors import UserError
from perfmodel.network.algorithms import make_schedule
from perfmodel.network.flow_events import simulate
from perfmodel.network.noise import Noise
from perfmodel.network.routes import Transport
from tests.perfmodel.network.small_networks import OneSwitch

LOUD = Noise(compute_deviation=0.1, straggler_fraction=0.05, straggler_slowdown=2.0, degraded_links=0.1,
             degraded_capacity=0.5, latency_deviation=0.3, entry_s=1e-5, seed=3)  # fmt: skip


def test_equal_seeds_give_equal_draws_and_others_do_not() -> None:
    again = Noise(**{**vars(LOUD)})
    other = Noise(**{**vars(LOUD), "seed": 4})
    assert np.array_equal(LOUD.compute_factor(100), again.compute_factor(100))
    assert not np.array_equal(LOUD.compute_factor(100), other.compute_factor(100))
    assert not np.array_equal(LOUD.compute_factor(100), LOUD.compute_factor(100, step=1))
    assert np.array_equal(LOUD.compute_factor(1000)[:100], LOUD.compute_factor(100))


def test_kinds_do_not_disturb_each_other() -> None:
    without = Noise(**{**vars(LOUD), "straggler_fraction": 0.0, "degraded_links": 0.0})
    same = LOUD.compute_factor(200) == without.compute_factor(200)
    assert 0 < np.count_nonzero(~same) < 30
    first, second = LOUD.disturbances(50, 50), without.disturbances(50, 50)
    assert first.start_delay_s is not None
    assert second.start_delay_s is not None
    assert np.array_equal(first.start_delay_s, second.start_delay_s)


@pytest.mark.parametrize("deviation", [0.02, 0.3, 1.0])
def test_compute_noise_keeps_the_mean(deviation: float) -> None:
    factor = Noise(compute_deviation=deviation, seed=1).compute_factor(200_000)
    assert factor.mean() == pytest.approx(1, abs=5 * deviation / np.sqrt(200_000))
    assert factor.std() == pytest.approx(deviation, rel=0.05)
    assert factor.min() > 0


def test_fractions_are_hit() -> None:
    assert np.mean(LOUD.link_factor(100_000) == 0.5) == pytest.approx(0.1, abs=0.005)
    stragglers = Noise(straggler_fraction=0.05, straggler_slowdown=3.0, seed=9).compute_factor(100_000)
    assert np.mean(stragglers == 3.0) == pytest.approx(0.05, abs=0.003)
    assert np.all((stragglers == 3.0) | (stragglers == 1.0))


def test_a_quiet_machine_is_exactly_as_without_noise() -> None:
    cluster, schedule = OneSwitch(6), make_schedule("all_to_all", "pairwise", 6)
    quiet = Noise(seed=5)
    assert np.all(quiet.compute_factor(10) == 1)
    disturbed = simulate(schedule, cluster, Transport(overhead_s=1e-6), 1e6, disturbances=quiet.disturbances(6, 12))
    assert disturbed.time_s == simulate(schedule, cluster, Transport(overhead_s=1e-6), 1e6).time_s


def test_the_events_feel_each_kind() -> None:
    cluster, schedule = OneSwitch(6), make_schedule("all_to_all", "pairwise", 6)
    transport = Transport(overhead_s=1e-5)
    quiet_s = simulate(schedule, cluster, transport, 1e6).time_s
    for kind in ({"degraded_links": 0.5, "degraded_capacity": 0.1}, {"latency_deviation": 0.5}, {"entry_s": 1e-3}):
        draw = Noise(seed=2, **kind).disturbances(6, 12)
        assert simulate(schedule, cluster, transport, 1e6, disturbances=draw).time_s > quiet_s * 1.001, kind


@pytest.mark.parametrize(
    "wrong",
    [{"compute_deviation": -1}, {"straggler_fraction": 2}, {"straggler_slowdown": 0.5}, {"degraded_capacity": 0}],
)
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Noise(**wrong)
