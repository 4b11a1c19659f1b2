"""Lower bounds: exact values, and no schedule on any fabric below them."""

import math

import numpy as np
import pytest

from perfmodel.network.algorithms import ALGORITHMS, make_schedule
from perfmodel.network.bounds import (
    Hockney,
    all_to_all_matrix_bound_s,
    bisection_bound_s,
    injection_bound_s,
    links_of,
    lower_bound_s,
)
from perfmodel.network.closed_form import price
from perfmodel.network.cluster import Cluster
from perfmodel.network.routes import Transport
from perfmodel.network.schedule import COLLECTIVES
from tests.perfmodel.network.small_fabrics import SMALL, small

LINKS = Hockney(alpha_s=1e-6, beta_s_per_byte=1e-9, gamma_s_per_byte=2e-9)
SIZES = np.array([1.0, 1e3, 1e6, 1e9])
TRANSPORT = Transport(overhead_s=0.5, latency_s=1.0, gap_s=0.1, reduction_bytes_per_s=7.0, copy_bytes_per_s=9.0)


def cluster_on(name, ranks_per_node=1, node_bytes_per_s=100.0):
    fabric = small(name)
    nics = SMALL[name][3]
    return Cluster(
        num_nodes=fabric.num_ports // nics, ranks_per_node=ranks_per_node, fabric=fabric, nics_per_node=nics,
        node_bytes_per_s=node_bytes_per_s, node_latency_s=0.5,
    )  # fmt: skip


def test_the_formulas_of_chan_et_al():
    large, eight = 1e9, 8
    assert lower_bound_s("broadcast", eight, large, LINKS) == pytest.approx(1.0)
    assert lower_bound_s("all_gather", eight, large, LINKS) == pytest.approx(7 / 8)
    assert lower_bound_s("all_to_all", eight, large, LINKS) == pytest.approx(7 / 8)
    assert lower_bound_s("reduce_scatter", eight, large, LINKS) == pytest.approx(2 * 7 / 8)  # gamma is the largest
    no_sums = Hockney(alpha_s=1e-6, beta_s_per_byte=1e-9)
    assert lower_bound_s("all_reduce", eight, large, no_sums) == pytest.approx(2 * 7 / 8)
    assert lower_bound_s("all_reduce", 9, 1.0, no_sums) == pytest.approx(4e-6)
    assert lower_bound_s("all_reduce", 9, 1.0, no_sums, posted=2) == pytest.approx(2e-6)


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_one_rank_and_no_bytes_cost_nothing(collective):
    assert lower_bound_s(collective, 1, 1e6, LINKS) == 0
    assert lower_bound_s(collective, 8, 0.0, LINKS) == 0
    assert injection_bound_s(collective, 1, 4, 1e6, 1e9) == 0


def test_nics_of_a_node_and_cuts():
    assert injection_bound_s("all_to_all", 4, 8, 1e6, 1e9) == pytest.approx(8 * 0.75e-3)
    assert injection_bound_s("all_reduce", 4, 8, 1e6, 1e9) == pytest.approx(1.5e-3)
    assert bisection_bound_s(4, 1e6, 2e9) == pytest.approx(4 / 4 * 1e6 / 2e9)
    assert bisection_bound_s(5, 1e6, 1e9) == pytest.approx(6 / 5 * 1e-3)
    assert bisection_bound_s(8, 1e6, math.inf) == 0
    matrix = np.array([[9.0, 1.0], [4.0, 0.0]])
    assert all_to_all_matrix_bound_s(matrix, 10.0, 2.0) == pytest.approx(4 / 10 * 10 / 2)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "one port" and SMALL[name][3] == 1])
def test_no_schedule_is_below_the_bounds_on_any_fabric(name):
    cluster = cluster_on(name)
    n = cluster.num_ranks
    latency_s = min(cluster.routes(np.zeros(n - 1, np.int64), np.arange(1, n)).latency_s)
    links = links_of(TRANSPORT, cluster.fabric.capacity_bytes_per_s[0], latency_s)
    for collective, known in ALGORITHMS.items():
        for algorithm in known:
            found = price(make_schedule(collective, algorithm, n), cluster)
            bound_s = lower_bound_s(collective, n, SIZES, links, posted=int(found.messages.max()))
            assert np.all(found.time_s(SIZES, TRANSPORT) >= bound_s * (1 - 1e-12)), algorithm


FULL = ["switch", "spread tree", "static tree", "tapered tree", "planes", "ring", "torus", "mesh",
        "dragonfly, minimal", "dragonfly, Valiant", "dragonfly+, minimal", "dragonfly+, Valiant"]  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_no_all_to_all_is_faster_than_the_cut(name):
    cluster = cluster_on(name)
    bound_s = bisection_bound_s(cluster.num_ranks, SIZES, cluster.bisection_bytes_per_s())
    assert bound_s[-1] > 0
    for algorithm in ("pairwise", "linear", "linear_sync", "bruck"):
        found = price(make_schedule("all_to_all", algorithm, cluster.num_ranks), cluster)
        assert np.all(found.time_s(SIZES, Transport()) >= bound_s * (1 - 1e-12)), algorithm


@pytest.mark.parametrize("name", ["switch", "spread tree", "torus", "dragonfly, adaptive"])
def test_nothing_leaves_a_node_faster_than_its_nics(name):
    cluster = cluster_on(name, ranks_per_node=3)
    nic = float(cluster.fabric.capacity_bytes_per_s[0])
    for collective, known in ALGORITHMS.items():
        bound_s = injection_bound_s(collective, cluster.num_nodes, 3, SIZES, nic)
        for algorithm in known:
            schedule = make_schedule(collective, algorithm, cluster.num_ranks, ranks_per_node=3)
            assert np.all(price(schedule, cluster).time_s(SIZES, Transport()) >= bound_s * (1 - 1e-12)), algorithm
