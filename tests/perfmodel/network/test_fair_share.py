"""Max-min fair rates: against plain progressive filling, by the bottleneck property, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from perfmodel.network.fair_share import Sharing, accept, fair_rates, join, leave, share_again, sharing_of
from perfmodel.network.routes import Routes
from tests.perfmodel.network.small_networks import routes_over


def plainly_filled(routes: Routes, capacity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Progressive filling as it is told: all rates grow together, links fill up one after the other."""
    use = np.zeros((len(capacity), len(routes)))
    for flow in range(len(routes)):
        row = slice(routes.offsets[flow], routes.offsets[flow + 1])
        use[routes.links[row], flow] = routes.shares[row]
    rates, growing = np.zeros(len(routes)), np.ones(len(routes), bool)
    while growing.any():
        load = use[:, growing].sum(axis=1)
        room = capacity - use @ np.where(np.isinf(rates), 0, rates)
        more = np.where(load > 1e-12, room / np.where(load > 1e-12, load, 1.0), np.inf)
        if np.isinf(more.min()):
            rates[growing] = np.inf
            break
        rates[growing] += max(more.min(), 0.0)
        full = more <= more.min() * (1 + 1e-9) + 1e-12
        growing &= ~(use[full] > 0).any(axis=0)
    return rates


def random_instance(seed: int) -> tuple[Routes, NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    num_links, num_flows = int(generator.integers(2, 30)), int(generator.integers(1, 80))
    paths = [generator.choice(num_links, int(generator.integers(1, min(6, num_links) + 1)), replace=False).tolist()
             for _ in range(num_flows)]  # fmt: skip
    shares = [generator.choice([1.0, 0.5, 0.25], len(path)).tolist() for path in paths]
    return routes_over(paths, shares), generator.choice([1.0, 2.0, 5.0, np.inf], num_links) * 1e9


def assert_has_bottlenecks(
    routes: Routes, capacity: NDArray[np.float64], rates: NDArray[np.float64], active: NDArray[np.bool_]
) -> None:
    """No link overfull; every active flow crosses a full link on which none is faster."""
    used, fastest = np.zeros(len(capacity)), np.zeros(len(capacity))
    rows = [slice(routes.offsets[flow], routes.offsets[flow + 1]) for flow in range(len(routes))]
    for flow in np.flatnonzero(active & np.isfinite(rates)):
        links = routes.links[rows[flow]]
        used[links] += routes.shares[rows[flow]] * rates[flow]
        fastest[links] = np.maximum(fastest[links], rates[flow])
    assert np.all(used <= capacity * (1 + 1e-9))
    for flow in np.flatnonzero(active):
        links = routes.links[rows[flow]]
        if np.isinf(rates[flow]):
            assert np.all(np.isinf(capacity[links]))
        else:
            held = (used[links] >= capacity[links] * (1 - 1e-9)) & (rates[flow] >= fastest[links] * (1 - 1e-9))
            assert held.any(), f"flow {flow} at {rates[flow]:.6g} has no bottleneck"


@pytest.mark.parametrize("seed", range(40))
def test_rates_equal_plain_progressive_filling(seed: int) -> None:
    routes, capacity = random_instance(seed)
    rates = fair_rates(routes, capacity)
    np.testing.assert_allclose(rates, plainly_filled(routes, capacity), rtol=1e-9)
    assert_has_bottlenecks(routes, capacity, rates, np.ones(len(routes), bool))


def solved(sharing: Sharing) -> int:
    count = share_again(sharing)
    for flow in sharing.listed[:count].copy():
        accept(sharing, flow)
    return count


@pytest.mark.parametrize("seed", range(20))
def test_solving_only_what_changed_equals_solving_all(seed: int) -> None:
    routes, capacity = random_instance(seed)
    generator = np.random.default_rng(seed)
    sharing, active = sharing_of(routes, capacity), np.zeros(len(routes), bool)
    for _ in range(60):
        for flow in generator.choice(len(routes), int(generator.integers(1, 4))):
            (leave if active[flow] else join)(sharing, int(flow))
            active[flow] = not active[flow]
        solved(sharing)
        here = np.flatnonzero(active)
        rows = [slice(routes.offsets[flow], routes.offsets[flow + 1]) for flow in here]
        alone = routes_over([routes.links[row].tolist() for row in rows], [routes.shares[row].tolist() for row in rows])
        np.testing.assert_allclose(sharing.flows["rate"][here], plainly_filled(alone, capacity), rtol=1e-8)


def test_a_change_far_away_is_not_solved_again() -> None:
    """Two flows that share nothing with the rest: only those two are looked at."""
    sharing = sharing_of(routes_over([[0], [0], [1], [1], [1]]), np.array([1e9, 1e9]))
    for flow in range(1, 5):
        join(sharing, flow)
    assert solved(sharing) == 4
    join(sharing, 0)
    assert solved(sharing) == 2
    assert sharing.flows["rate"].tolist() == [5e8, 5e8, 1e9 / 3, 1e9 / 3, 1e9 / 3]


def test_incast_shares_the_last_link() -> None:
    rates = fair_rates(routes_over([[flow, 7] for flow in range(7)]), np.full(8, 1e9))
    np.testing.assert_allclose(rates, 1e9 / 7, rtol=1e-15)


def test_parking_lot() -> None:
    """One long flow over three links, one short flow on each: links of 1, 2 and 4 GB/s."""
    rates = fair_rates(routes_over([[0, 1, 2], [0], [1], [2]]), np.array([1e9, 2e9, 4e9]))
    np.testing.assert_allclose(rates, [0.5e9, 0.5e9, 1.5e9, 3.5e9], rtol=1e-15)


def test_two_flows_cross_on_one_link() -> None:
    rates = fair_rates(routes_over([[0, 2], [1, 2]]), np.array([0.25e9, 1e9, 1e9]))
    np.testing.assert_allclose(rates, [0.25e9, 0.75e9], rtol=1e-15)


def test_a_flow_striped_over_two_links_takes_both() -> None:
    rates = fair_rates(routes_over([[0, 1], [0]], [[0.5, 0.5], [1.0]]), np.full(2, 1e9))
    np.testing.assert_allclose(rates, [2e9 / 3, 2e9 / 3], rtol=1e-15)


def test_nothing_limits_a_flow_without_finite_links() -> None:
    assert np.all(np.isinf(fair_rates(routes_over([[], [0]]), np.array([np.inf]))))
