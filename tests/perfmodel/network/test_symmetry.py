"""Classes of messages that cannot be told apart: played once they give the times of playing all."""

from __future__ import annotations

import numpy as np
import pytest

from perfmodel.network.algorithms import make_schedule
from perfmodel.network.cluster import Cluster
from perfmodel.network.dragonfly import Dragonfly
from perfmodel.network.fat_tree import FatTree
from perfmodel.network.flow_events import simulate
from perfmodel.network.noise import Disturbances
from perfmodel.network.routes import Transport
from perfmodel.network.schedule import Round
from perfmodel.network.symmetry import find_classes
from tests.perfmodel.network.small_networks import OneSwitch, Racks, routes_over, schedule_of, shifts

TRANSPORT = Transport(overhead_s=1e-6, gap_s=1e-7, link_fraction=0.9, reduction_bytes_per_s=5e9, copy_bytes_per_s=9e9)


def cluster_of(family: str) -> Cluster:
    if family == "fat_tree":
        fabric = FatTree(num_ports=16, children=(4, 4), parents=(1, 4), link_bytes_per_s=1e9, taper=2.0,
                         routing="d-mod-k", wire_latency_s=1e-7)  # fmt: skip
    else:
        fabric = Dragonfly(num_ports=16, groups=4, switches_per_group=2, ports_per_switch=2, links_per_group_pair=1,
                           port_bytes_per_s=1e9, routing=family, wire_latency_s=1e-7)  # fmt: skip
    return Cluster(num_nodes=16, ranks_per_node=1, fabric=fabric, nics_per_node=1, node_bytes_per_s=1e10,
                   node_latency_s=1e-6)  # fmt: skip


@pytest.mark.parametrize("family", ["fat_tree", "minimal", "adaptive"])
@pytest.mark.parametrize(
    ("collective", "algorithm"),
    [("all_to_all", "pairwise"), ("all_to_all", "linear"), ("all_to_all", "bruck"), ("all_reduce", "ring"),
     ("all_reduce", "rabenseifner"), ("all_gather", "recursive_doubling"), ("broadcast", "binomial"),
     ("all_reduce", "double_binary_tree")],
)  # fmt: skip
def test_classes_give_the_same_times(family: str, collective: str, algorithm: str) -> None:
    schedule, cluster = make_schedule(collective, algorithm, 16), cluster_of(family)
    whole = simulate(schedule, cluster, TRANSPORT, 1e6, symmetry=False)
    classes = simulate(schedule, cluster, TRANSPORT, 1e6, symmetry=True)
    np.testing.assert_allclose(classes.finish_s, whole.finish_s, rtol=1e-11)


@pytest.mark.parametrize("seed", range(5))
def test_a_degraded_link_and_a_late_rank_are_told_apart(seed: int) -> None:
    cluster, generator = Racks(4, 4, 0.5), np.random.default_rng(seed)
    factor, delay_s = np.ones(len(cluster.capacity_bytes_per_s)), np.zeros(16)
    factor[generator.integers(len(factor))] = 0.3
    delay_s[generator.integers(16)] = 2e-3
    disturbances = Disturbances(link_factor=factor, start_delay_s=delay_s)
    schedule = make_schedule("all_to_all", "linear", 16)
    whole, classes, quiet = (
        simulate(schedule, cluster, TRANSPORT, 1e6, symmetry=symmetry, disturbances=given)
        for symmetry, given in ((False, disturbances), (True, disturbances), (True, None))
    )
    np.testing.assert_allclose(classes.finish_s, whole.finish_s, rtol=1e-11)
    assert classes.time_s > quiet.time_s * 1.01


def test_one_switch_needs_one_rank_and_one_message_per_shift() -> None:
    cluster, ranks = OneSwitch(8), np.arange(8)
    source, target = np.tile(ranks, 7), np.concatenate([(ranks + shift) % 8 for shift in range(1, 8)])
    rounds = np.repeat(np.arange(7.0), 8)
    routes = cluster.routes(source, target)
    classes = find_classes(rounds[None], source, target, routes, cluster.capacity_bytes_per_s, np.zeros(8))
    assert classes is not None
    assert len(classes.ranks) == 1
    assert len(classes.messages) == 7
    assert len(classes.links) == 1  # links in and out carry the same
    assert np.all(classes.routes.shares == 1)
    together = find_classes(np.zeros((1, 56)), source, target, routes, cluster.capacity_bytes_per_s, np.zeros(8))
    assert together is not None
    assert len(together.messages) == 1
    assert np.all(together.routes.shares == 7)
    assert together.received.tolist() == [7]


def test_ranks_that_all_differ_are_left_as_they_are() -> None:
    source, target = np.array([0, 1, 2]), np.array([1, 2, 0])
    routes = routes_over([[0], [1], [2]])
    given = (np.array([[1.0, 2.0, 3.0]]), source, target, routes, np.full(3, 1e9), np.zeros(3))
    assert find_classes(*given) is None


def test_a_rank_reduces_every_message_of_a_class() -> None:
    """Each of 6 ranks reduces what 5 others send at once: five reductions one after the other."""
    entries = shifts(6, 1.0, range(1, 6), reduced=1.0)
    together = Round(
        source=np.concatenate([entry.source for entry in entries]),
        target=np.concatenate([entry.target for entry in entries]), fraction=np.ones(30), reduced=np.ones(30),
    )  # fmt: skip
    transport, cluster = Transport(reduction_bytes_per_s=1e9), OneSwitch(6, latency_s=0.0)
    for symmetry in (False, True):
        outcome = simulate(schedule_of(6, [together]), cluster, transport, 1e6, symmetry=symmetry)
        np.testing.assert_allclose(outcome.finish_s, 5e-3 + 5e-3, rtol=1e-12)


def test_ranks_are_told_apart_by_what_they_receive() -> None:
    """0 to 2 to 4 beside 1 to 3 to 5, and rank 0 late: 2 and 3 send alike but receive at different times."""
    steps = [
        Round(source=np.array([2 * k, 2 * k + 1]), target=np.array([2 * k + 2, 2 * k + 3]), fraction=np.ones(2),
              reduced=np.zeros(2))
        for k in range(2)
    ]  # fmt: skip
    delays = Disturbances(start_delay_s=np.array([5e-3, 0, 0, 0, 0, 0]))
    cluster = OneSwitch(6, latency_s=0.0)
    outcome = simulate(schedule_of(6, steps), cluster, Transport(), 1e6, disturbances=delays, symmetry=True)
    np.testing.assert_allclose(outcome.finish_s, np.array([6, 1, 7, 2, 7, 2]) * 1e-3, rtol=1e-12)
