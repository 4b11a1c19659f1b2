"""Closed form of schedules: exact limits, formulas of one switch, nodes, groups, contention, sampling."""

import math

import numpy as np
import pytest

from perfmodel.network import closed_form
from perfmodel.network.algorithms import ALGORITHMS, make_schedule
from perfmodel.network.closed_form import price, price_together, strata, times_s
from perfmodel.network.cluster import Cluster
from perfmodel.network.fabric import build_fabric
from perfmodel.network.routes import Transport
from tests.perfmodel.network import formulas
from tests.perfmodel.network.small_fabrics import TORUS, TREE

RATE, NODE_RATE = 1e9, 2e10
SIZES = np.array([1.0, 1e3, 1e6, 1e9])
TRANSPORT = Transport(
    overhead_s=1e-6, latency_s=2e-6, gap_s=1e-7, link_fraction=0.9, reduction_bytes_per_s=5e9, copy_bytes_per_s=1e10
)
EVERY = [(collective, algorithm) for collective, known in ALGORITHMS.items() for algorithm in known]


def switch(num_nodes, ranks_per_node=1, rate=RATE, nics=1, latency_s=0.0, node_rate=NODE_RATE):
    fabric = build_fabric(
        "single_switch", {"port_bytes_per_s": rate, "wire_latency_s": latency_s}, num_nodes=num_nodes,
        nics_per_node=nics,
    )  # fmt: skip
    return Cluster(
        num_nodes=num_nodes, ranks_per_node=ranks_per_node, fabric=fabric, nics_per_node=nics,
        node_bytes_per_s=node_rate, node_latency_s=2 * latency_s,
    )  # fmt: skip


def seconds(collective, algorithm, cluster, sizes=SIZES, transport=TRANSPORT, **options):
    return price(make_schedule(collective, algorithm, cluster.num_ranks, **options), cluster).time_s(sizes, transport)


@pytest.mark.parametrize(("collective", "algorithm"), EVERY)
def test_exact_limits_of_every_algorithm(collective, algorithm):
    assert np.all(seconds(collective, algorithm, switch(1)) == 0)
    cluster, without_bytes = switch(12, latency_s=1e-6), np.array([0.0])
    assert seconds(collective, algorithm, cluster, without_bytes) == 0
    times = seconds(collective, algorithm, cluster)
    assert np.all(np.diff(times) > 0), "not monotone in bytes"
    endless = switch(12, rate=math.inf, latency_s=1e-6)
    starts = seconds(collective, algorithm, endless, transport=Transport(overhead_s=1e-6))
    rounds = make_schedule(collective, algorithm, 12).num_rounds
    assert starts == pytest.approx(rounds * 3e-6)  # overhead and two wires, nothing that depends on bytes
    bytes_only = seconds(collective, algorithm, switch(12), transport=Transport(reduction_bytes_per_s=3e9))
    assert bytes_only == pytest.approx(bytes_only[-1] * SIZES / SIZES[-1])


@pytest.mark.parametrize("algorithm", ["pairwise", "linear", "linear_sync"])
def test_all_to_all_grows_with_the_ranks(algorithm):
    times = [seconds("all_to_all", algorithm, switch(n), np.array([1e6]))[0] for n in range(1, 40)]
    assert np.all(np.diff(times) > 0)


def test_all_reduce_is_reduce_scatter_and_all_gather():
    cluster = switch(16)
    whole = seconds("all_reduce", "ring", cluster)
    assert whole == pytest.approx(seconds("reduce_scatter", "ring", cluster) + seconds("all_gather", "ring", cluster))
    whole = seconds("all_reduce", "rabenseifner", cluster)
    parts = [("reduce_scatter", "recursive_halving"), ("all_gather", "recursive_doubling")]
    assert whole == pytest.approx(sum(seconds(*part, cluster) for part in parts))
    nodes = switch(4, 4)
    whole = seconds("all_reduce", "two_level", nodes, ranks_per_node=4, between="ring")
    parts = [(c, "two_level") for c in ("reduce_scatter", "all_gather")]
    assert whole == pytest.approx(sum(seconds(*part, nodes, ranks_per_node=4) for part in parts))


@pytest.mark.parametrize("num_ranks", [2, 3, 8, 24])
def test_one_switch_gives_the_formulas_of_collectives(num_ranks):
    transport = Transport(latency_s=3e-6)
    link = formulas.Link(latency_s=3e-6, bytes_per_s=RATE)
    cluster = switch(num_ranks)
    for collective, algorithm, form in (
        ("all_reduce", "ring", formulas.ring_all_reduce_s),
        ("all_gather", "ring", formulas.ring_all_gather_s),
        ("reduce_scatter", "ring", formulas.ring_reduce_scatter_s),
        ("all_to_all", "pairwise", formulas.pairwise_all_to_all_s),
    ):
        expected = [form(link, num_ranks, size) for size in SIZES]
        assert seconds(collective, algorithm, cluster, transport=transport) == pytest.approx(expected)
    if not num_ranks & (num_ranks - 1):
        expected = [formulas.tree_all_reduce_s(link, num_ranks, size) for size in SIZES]
        assert seconds("all_reduce", "rabenseifner", cluster, transport=transport) == pytest.approx(expected)


def test_two_levels_give_the_formula_of_collectives():
    transport = Transport(latency_s=3e-6)
    inside = formulas.Link(latency_s=3e-6, bytes_per_s=NODE_RATE)
    fabric = formulas.Link(latency_s=3e-6, bytes_per_s=RATE / 4)  # four ranks share a NIC
    expected = [
        formulas.two_level_all_reduce_s(inside, fabric, ranks_per_node=4, num_nodes=8, message_bytes=size)
        for size in SIZES
    ]
    assert seconds("all_reduce", "two_level", switch(8, 4), transport=transport, ranks_per_node=4) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(("collective", "algorithm"), EVERY)
def test_a_group_over_two_nodes_is_never_priced_at_the_speed_inside_one(collective, algorithm):
    cluster = switch(2, 4)
    schedule = make_schedule(collective, algorithm, 4, ranks_per_node=2)
    inside, across = price(schedule, cluster), price(schedule, cluster, [2, 3, 4, 5])
    assert across.time_s([1e8], TRANSPORT)[0] > 2 * inside.time_s([1e8], TRANSPORT)[0]
    pair = make_schedule(collective, algorithm, 2)
    assert price(pair, cluster, [3, 4]).time_s([1e8], Transport())[0] >= 1e8 / 2 / RATE


def test_groups_that_share_a_nic_wait_for_each_other():
    cluster = switch(2, 4)
    schedule = make_schedule("all_gather", "ring", 2)
    groups = [[rank, rank + 4] for rank in range(4)]
    alone = price(schedule, cluster, groups[0]).time_s([1e8], Transport())
    assert price_together(schedule, cluster, groups).time_s([1e8], Transport()) == pytest.approx(4 * alone)
    own_nics = switch(2, 4, nics=4)
    assert price_together(schedule, own_nics, groups).time_s([1e8], Transport()) == pytest.approx(alone)
    with pytest.raises(AssertionError, match="twice"):
        price_together(schedule, cluster, [[0, 4], [0, 5]])


def test_topology_and_allocation_change_the_price():
    def cluster(family, numbers, nodes=None, **rest):
        fabric = build_fabric(family, numbers, num_nodes=64, nics_per_node=1)
        return Cluster(num_nodes=16 if nodes is not None else 64, ranks_per_node=1, fabric=fabric, nics_per_node=1,
                       node_bytes_per_s=100.0, node_latency_s=0.0, node_numbers=nodes, **rest)  # fmt: skip

    full = cluster("fat_tree", TREE)
    tapered = cluster("fat_tree", TREE | {"taper": 4.0})
    torus = cluster("torus", TORUS | {"shape": (4, 4, 4)})
    times = [float(seconds("all_to_all", "pairwise", c, [1e6], Transport())[0]) for c in (full, tapered, torus)]
    assert times[0] == pytest.approx(63 / 64 * 1e6 / 10)
    assert times[1] > 3 * times[0]
    assert len({round(time, 3) for time in times}) == 3
    apart = cluster("fat_tree", TREE | {"taper": 4.0}, nodes=np.arange(16) * 4)
    near = cluster("fat_tree", TREE | {"taper": 4.0}, nodes=np.arange(16))
    assert seconds("all_to_all", "pairwise", apart, [1e6], Transport()) < seconds(
        "all_to_all", "pairwise", near, [1e6], Transport()
    )


def test_multi_rail_rings_use_every_nic():
    cluster = switch(4, 4, nics=4)
    one = seconds("all_reduce", "ring", cluster, [1e9], Transport())
    four = seconds("all_reduce", "multi_rail_ring", cluster, [1e9], Transport(), ranks_per_node=4)
    assert four == pytest.approx(one / 4, rel=0.25)


def test_what_a_transport_adds():
    cluster = switch(5, latency_s=1e-6)
    schedule = make_schedule("all_gather", "linear", 5)
    found = price(schedule, cluster)
    assert found.time_s([5e3], TRANSPORT)[0] == pytest.approx(3e-6 + 2e-6 + 3 * 1e-7 + 4e3 / (0.9 * RATE))
    long = Transport(rendezvous_s=1e-3, eager_bytes=1e3)  # blocks of m/5
    assert found.time_s([5e3, 5.1e3], long) == pytest.approx([2e-6 + 4e-6, 2e-6 + 1e-3 + 4.08e-6])
    copied = Transport(eager_copy_bytes_per_s=1e6)
    assert found.time_s([5e3], copied)[0] == pytest.approx(2e-6 + 4e-6 + 1e-3)
    skewed = Transport(entry_s=1e-3)
    assert found.time_s([5e3], skewed)[0] == pytest.approx(2e-6 + 4e-6 + 1e-3 * math.log2(5))
    shared = Transport(contended_fraction=0.5)  # four senders to each rank
    assert found.time_s([5e3], shared)[0] == pytest.approx(2e-6 + 8e-6)
    ring = price(make_schedule("all_gather", "ring", 5), cluster)
    assert ring.time_s([5e3], shared) == pytest.approx(ring.time_s([5e3], Transport()))
    half = Transport(exchange_fraction=0.5, exchange_bytes=0.0)
    assert found.time_s([5e3], half)[0] == pytest.approx(2e-6 + 8e-6)
    assert ring.time_s([5e3], half) == pytest.approx(ring.time_s([5e3], Transport()))  # no two exchange
    cached = Transport(reduction_bytes_per_s=4e9, cache_bytes=500.0, memory_reduction_bytes_per_s=1e9)
    reduced = seconds("reduce_scatter", "ring", switch(5), [1e3], cached)[0]
    assert reduced == pytest.approx(0.8e-6 + 800 * (0.5 / 4e9 + 0.5 / 1e9))


def test_many_calls_at_once_equal_calls_one_by_one():
    cluster = switch(12)
    prices = [price(make_schedule(*name, 12), cluster) for name in EVERY[:10]]
    generator = np.random.default_rng(5)
    which, sizes = generator.integers(0, 10, 300), generator.uniform(0, 1e7, 300)
    expected = [prices[i].time_s([size], TRANSPORT)[0] for i, size in zip(which, sizes, strict=True)]
    assert times_s(prices, which, sizes, TRANSPORT) == pytest.approx(expected)


def test_coefficients_are_computed_once():
    cluster = switch(6)
    assert price(make_schedule("all_reduce", "ring", 6), cluster) is price(
        make_schedule("all_reduce", "ring", 6), cluster
    )
    other = price(make_schedule("all_reduce", "ring", 3), cluster, [0, 2, 4])
    assert other is not price(make_schedule("all_reduce", "ring", 3), cluster, [0, 1, 2])


@pytest.mark.parametrize("algorithm", ["pairwise", "linear", "linear_sync"])
def test_sampled_exchanges_are_near_the_exact_sum(algorithm, monkeypatch):
    cluster = Cluster(
        num_nodes=384, ranks_per_node=1, fabric=build_fabric(
            "fat_tree", {"children": (16, 8, 8), "link_bytes_per_s": 1e10, "taper": 2.0}, num_nodes=384, nics_per_node=1
        ), nics_per_node=1, node_bytes_per_s=1e11, node_latency_s=0.0,
    )  # fmt: skip
    schedule = make_schedule("all_to_all", algorithm, 384)
    exact = price(schedule, cluster)
    monkeypatch.setattr(closed_form, "SAMPLED_SHIFTS", 64)
    sampled = price(schedule, cluster, exact_messages=1000)
    assert sampled.sampled
    assert not exact.sampled
    assert sampled.num_rounds == pytest.approx(exact.num_rounds)
    assert sampled.time_s(SIZES, TRANSPORT) == pytest.approx(exact.time_s(SIZES, TRANSPORT), rel=0.03)


@pytest.mark.parametrize(("count", "samples"), [(1, 5), (7, 7), (1000, 16), (20479, 256)])
def test_strata_cover_everything_once(count, samples):
    indices, weights = strata(count, samples)
    assert weights.sum() == pytest.approx(count)
    assert len(np.unique(indices)) == len(indices) == min(count, samples)
    assert indices.max() == count - 1


# SimGrid 3.32, network/model:CM02 without TCP's limits and cross traffic: taper, collective, algorithm, ms
SIMGRID_MS = [
    (1, "all_to_all", "pairwise", 3.184),
    (1, "all_to_all", "linear", 2.675),
    (1, "all_reduce", "rabenseifner", 5.372),
    (1, "all_reduce", "ring", 6.368),
    (4, "all_to_all", "pairwise", 10.70),
    (4, "all_reduce", "rabenseifner", 6.32),  # near partners first
]


@pytest.mark.parametrize(("taper", "collective", "algorithm", "expected_ms"), SIMGRID_MS)
def test_fat_tree_of_256_as_an_event_simulator_has_it(taper, collective, algorithm, expected_ms):
    """64 MiB per rank, 25 GB/s and 0.5 us per link, 16 x 16 ports."""
    tree = {"children": (16, 16), "link_bytes_per_s": 25e9, "taper": float(taper), "wire_latency_s": 5e-7}
    fabric = build_fabric("fat_tree", tree, num_nodes=256, nics_per_node=1)
    cluster = Cluster(
        num_nodes=256, ranks_per_node=1, fabric=fabric, nics_per_node=1, node_bytes_per_s=1e12, node_latency_s=0.0
    )
    found_s = seconds(collective, algorithm, cluster, [64 * 2**20], Transport())[0]
    assert 1e3 * found_s == pytest.approx(expected_ms, rel=0.01)


def test_partner_order_alone_costs_threefold_on_a_tapered_tree():
    """The same simulator: 20.5 ms with the far partners first, 6.32 ms with the near ones first."""
    tree = {"children": (16, 16), "link_bytes_per_s": 25e9, "taper": 4.0, "wire_latency_s": 5e-7}
    fabric = build_fabric("fat_tree", tree, num_nodes=256, nics_per_node=1)
    cluster = Cluster(
        num_nodes=256, ranks_per_node=1, fabric=fabric, nics_per_node=1, node_bytes_per_s=1e12, node_latency_s=0.0
    )
    far = seconds("reduce_scatter", "recursive_halving", cluster, [64 * 2**20], Transport())[0]
    assert 2e3 * far == pytest.approx(20.5, rel=0.01)  # and the same back
