"""Choices of libraries at points read in their sources, NCCL's estimates by hand, and the best by the closed form."""

import numpy as np
import pytest

from janus.errors import UserError
from perfmodel.network.algorithms import RECIPES, make_schedule
from perfmodel.network.closed_form import price
from perfmodel.network.cluster import Cluster
from perfmodel.network.fabric import build_fabric
from perfmodel.network.routes import Transport
from perfmodel.network.selection import (
    LIBRARIES,
    Choice,
    GpuNode,
    best,
    candidates,
    choose,
    mpich,
    nccl,
    open_mpi,
)

KIB, MIB = 1024, 1024**2
TRANSPORT = Transport(overhead_s=1e-6, latency_s=1e-6, gap_s=2e-7, reduction_bytes_per_s=1e10, copy_bytes_per_s=1e10)
HOPPER = GpuNode(
    generation="hopper", channels=16, channel_bytes_per_s=20e9, network_channel_bytes_per_s=12e9, amd_cpu=False
)


@pytest.mark.parametrize(
    ("collective", "num_ranks", "size", "algorithm"),
    [
        ("all_reduce", 8, 8191, "recursive_doubling"),
        ("all_reduce", 8, 8192, "rabenseifner"),
        ("all_reduce", 3, 100 * KIB, "segmented_ring"),
        ("all_reduce", 200, 64 * KIB, "reduce_broadcast"),
        ("all_reduce", 20480, MIB, "rabenseifner"),
        ("all_gather", 2, MIB, "ring"),
        ("all_gather", 16, 64 * MIB, "recursive_doubling"),
        ("all_gather", 64, 64 * 64 * KIB - 64, "neighbor_exchange"),
        ("all_gather", 64, 64 * 64 * KIB, "ring"),
        ("all_gather", 4096, 4096 * 8 * KIB, "neighbor_exchange"),
        ("reduce_scatter", 16, 128 * KIB, "recursive_halving"),
        ("reduce_scatter", 32, 64 * MIB, "ring"),
        ("reduce_scatter", 512, 64 * MIB, "recursive_distance_doubling"),
        ("all_to_all", 32, 32 * 511, "bruck"),
        ("all_to_all", 64, 64 * MIB, "pairwise"),
        ("all_to_all", 1024, 1024 * MIB, "linear_sync"),
        ("broadcast", 100, 64 * MIB, "knomial"),
        ("broadcast", 16, 64 * MIB, "scatter_allgather"),
        ("broadcast", 6, 64 * MIB, "chain"),
    ],
)
def test_open_mpi_at_its_switch_points(collective, num_ranks, size, algorithm):
    assert open_mpi(collective, num_ranks, size).algorithm == algorithm


@pytest.mark.parametrize(
    ("collective", "num_ranks", "size", "algorithm"),
    [
        ("all_reduce", 8, 2048, "recursive_doubling"),
        ("all_reduce", 8, 2049, "rabenseifner"),
        ("all_gather", 8, 512 * KIB - 1, "recursive_doubling"),
        ("all_gather", 6, 80 * KIB - 1, "bruck"),
        ("all_gather", 6, 80 * KIB, "ring"),
        ("reduce_scatter", 6, 512 * KIB, "pairwise"),
        ("broadcast", 7, MIB, "binomial"),
        ("broadcast", 8, 100 * KIB, "scatter_allgather"),
        ("broadcast", 12, 100 * KIB, "scatter_ring"),
        ("all_to_all", 8, 8 * 256, "bruck"),
        ("all_to_all", 7, 7 * 256, "linear_sync"),
        ("all_to_all", 8, 8 * 32769, "pairwise"),
    ],
)
def test_mpich_at_its_switch_points(collective, num_ranks, size, algorithm):
    assert mpich(collective, num_ranks, size).algorithm == algorithm


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("collective", RECIPES)
def test_every_choice_is_a_schedule(library, collective):
    for num_ranks in (1, 2, 3, 7, 8, 31, 64, 100, 200, 300):
        for size in 2.0 ** np.arange(0, 30, 3):
            one = choose(library, collective, num_ranks, size)
            assert make_schedule(collective, one.algorithm, num_ranks, **one.options).num_ranks == num_ranks


def test_unknown_names_are_said():
    with pytest.raises(UserError, match="open_mpi, mpich"):
        choose("intel", "all_reduce", 8, 1.0)
    with pytest.raises(UserError, match="all_gather"):
        open_mpi("gather", 8, 1.0)
    with pytest.raises(UserError, match="hopper"):
        GpuNode(generation="pascal", channels=1, channel_bytes_per_s=1.0, network_channel_bytes_per_s=1.0)
    with pytest.raises(UserError, match="all_to_all"):
        nccl("all_to_all", 4, 4, 1e6, HOPPER)


def test_nccl_by_hand():
    """1 GiB on 16 nodes of 4: ring, Simple: 30 steps between nodes of 14 us, 96 inside of 3.4; 4 KiB: tree, LL."""
    found = nccl("all_reduce", 16, 4, 2**30, HOPPER)
    assert (found.algorithm, found.protocol) == ("ring", "Simple")
    latency_s = 1e-6 * (8.4 + 96 * 3.4 + 30 * 14.0) * 1.4
    assert found.time_s == pytest.approx(latency_s + 2**30 / (16 * 12e9 * 64 / 126))
    small = nccl("all_reduce", 16, 4, 4 * KIB, HOPPER)
    assert (small.algorithm, small.protocol) == ("tree", "LL")
    bus = min(16 * 12e9 * 0.92, 16 * 36e9) / 3.8
    latency_s = 1e-6 * (6.8 + 2 * (3 * 0.6 + 4 * 5.0))
    assert small.time_s == pytest.approx(latency_s + 4 * KIB / (min(bus, 20.4e9) / 2 * 0.7))
    assert nccl("all_reduce", 1, 1, 1e6, HOPPER).time_s == 0


def test_nccl_goes_over_to_the_ring_at_larger_sizes_on_more_nodes():
    def first_ring(num_nodes):
        return next(
            size
            for size in 2.0 ** np.arange(10, 40)
            if nccl("all_reduce", num_nodes, 4, size, HOPPER).algorithm == "ring"
        )

    switches = [first_ring(num_nodes) for num_nodes in (4, 32, 256)]
    assert switches[0] < switches[1] < switches[2]


def switch(num_nodes, ranks_per_node=1, nics=1):
    fabric = build_fabric("single_switch", {"port_bytes_per_s": 1e10}, num_nodes=num_nodes, nics_per_node=nics)
    return Cluster(
        num_nodes=num_nodes, ranks_per_node=ranks_per_node, fabric=fabric, nics_per_node=nics,
        node_bytes_per_s=1e11, node_latency_s=5e-7,
    )  # fmt: skip


@pytest.mark.parametrize("collective", RECIPES)
def test_best_is_the_minimum_over_all_candidates(collective):
    cluster, sizes = switch(4, 4, 4), np.array([8.0, 1e4, 1e8])
    found = best(collective, cluster, sizes, TRANSPORT, ranks_per_node=4, shape=(4, 4))
    assert {one.algorithm for one in found.candidates} == set(RECIPES[collective])
    for one in candidates(collective, 16, 4, (4, 4)):
        schedule = make_schedule(collective, one.algorithm, 16, **one.options)
        assert np.all(price(schedule, cluster).time_s(sizes, TRANSPORT) >= found.time_s)
    assert len(found.choices) == 3


def test_best_changes_with_size_and_knows_nodes():
    found = best("all_reduce", switch(4, 4, 4), [8.0, 1e9], TRANSPORT, ranks_per_node=4).choices
    assert found[0].algorithm != found[1].algorithm
    assert found[1].algorithm in ("two_level", "multi_rail_ring")
    flat = best("all_reduce", switch(16), [8.0, 1e9], TRANSPORT)
    assert not {"two_level", "leader", "multi_rail_ring"} & {one.algorithm for one in flat.candidates}
    assert best("all_to_all", switch(32), [32 * 8.0], Transport(overhead_s=1e-6, gap_s=1e-6)).choices[0].algorithm in (
        "bruck",
        "bine",
    )
    only = best("all_reduce", switch(8), [1e6], TRANSPORT, group=[1, 3, 5], among=[Choice(algorithm="ring")])
    assert only.choices == [Choice(algorithm="ring")]
