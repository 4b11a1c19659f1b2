"""Ranks on nodes: who shares which NIC, what stays inside a node, striping, rails, allocations, machines."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from janus.errors import UserError
from perfmodel.machine import Network, load_machine
from perfmodel.network.cluster import Cluster, build_cluster, random_nodes, spread_nodes
from perfmodel.network.fabric import build_fabric
from tests.perfmodel.network.small_fabrics import SMALL, hops, message_of_crossings, small


def switch(num_nodes, nics=1):
    return build_fabric(
        "single_switch", {"port_bytes_per_s": 10.0, "wire_latency_s": 1.0}, num_nodes=num_nodes, nics_per_node=nics
    )


def cluster(num_nodes=4, ranks_per_node=1, nics=1, fabric=None, **changes):
    numbers = {"fabric": fabric or switch(num_nodes, nics), "node_bytes_per_s": 50.0, "node_latency_s": 0.25}
    return Cluster(num_nodes=num_nodes, ranks_per_node=ranks_per_node, nics_per_node=nics, **numbers | changes)


def every_pair(job):
    return tuple(axis.ravel() for axis in np.indices((job.num_ranks, job.num_ranks)))


def test_one_rank_crosses_nothing():
    job = cluster(1)
    assert job.num_ranks == 1
    assert len(job.routes(np.array([0]), np.array([0])).links) == 0
    assert job.bisection_bytes_per_s() == np.inf
    assert job.looks_alike


def test_ranks_of_a_node_meet_inside_it():
    job = cluster(2, ranks_per_node=4)
    source, target = every_pair(job)
    routes = job.routes(source, target)
    inside = (source // 4 == target // 4) & (source != target)
    assert set(routes.latency_s[inside]) == {0.25}
    assert set(routes.latency_s[source // 4 != target // 4]) == {2.0}
    assert set(routes.latency_s[source == target]) == {0.0}
    message = message_of_crossings(routes)
    node_links = routes.links >= job.fabric.num_links
    assert set(message[node_links]) == set(np.flatnonzero(inside))
    assert set(job.capacity_bytes_per_s[routes.links[node_links]]) == {50.0}
    names = job.link_names()
    assert len(names) == job.num_links
    first = routes.links[routes.offsets[1] : routes.offsets[2]]  # rank 0 to rank 1
    assert [names[link] for link in first] == ["rank 0 > node", "node > rank 1"]


@pytest.mark.parametrize(
    ("ranks_per_node", "nics", "expected"),
    [(8, 4, [0, 0, 1, 1, 2, 2, 3, 3]), (4, 4, [0, 1, 2, 3]), (2, 4, [0, 2]), (3, 2, [0, 0, 1]), (1, 4, [0])],
)
def test_every_rank_has_its_share_of_the_nics(ranks_per_node, nics, expected):
    job = cluster(2, ranks_per_node, nics)
    routes = job.routes(np.arange(ranks_per_node), np.arange(ranks_per_node) + ranks_per_node)
    assert routes.links[routes.offsets[:-1]].tolist() == expected
    assert (routes.links[routes.offsets[:-1] + 1] - job.fabric.num_ports - nics).tolist() == expected


def test_ranks_that_share_a_nic_share_its_rate():
    job = cluster(2, ranks_per_node=4)
    load = job.routes(np.arange(4), np.arange(4, 8)).link_bytes(np.ones(4), job.num_links)
    assert load[0] == 4.0


def test_a_striping_rank_drives_all_nics():
    job = cluster(2, 1, 4, stripe=True)
    routes = job.routes(np.array([0, 1]), np.array([1, 0]))
    assert hops(routes).tolist() == [8, 8]
    assert set(routes.shares) == {0.25}
    assert routes.latency_s.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("name", [name for name, (*_, nodes, nics) in SMALL.items() if nodes * nics > 8])
def test_striping_keeps_flow_whole_on_every_fabric(name):
    """Two NICs per node: a byte leaves the source's ports and enters the target's, no link twice per message."""
    fabric = small(name)
    job = cluster(fabric.num_ports // 2, 1, 2, fabric=fabric, stripe=True)
    source, target = (ranks.astype(np.int64) for ranks in every_pair(job))
    moving = source != target
    routes = job.routes(source[moving], target[moving])
    message = message_of_crossings(routes)
    for first in (0, fabric.num_ports):
        chosen = (routes.links >= first) & (routes.links < first + fabric.num_ports)
        total = np.bincount(message[chosen], weights=routes.shares[chosen])
        np.testing.assert_allclose(total, 1.0)
    assert len(np.unique(message * job.num_links + routes.links)) == len(message)


def test_rails_take_a_message_to_the_nic_of_its_own_rail():
    fabric = build_fabric(
        "fat_tree", {"children": (4, 4), "parents": (1, 4), "link_bytes_per_s": 1.0, "rails": 4}, num_nodes=8,
        nics_per_node=4,
    )  # fmt: skip
    job = cluster(8, 4, 4, fabric=fabric)
    source, target = every_pair(job)
    outside = source // 4 != target // 4
    routes = job.routes(source[outside], target[outside])
    last = routes.links[routes.offsets[1:] - 1] - fabric.num_ports
    np.testing.assert_array_equal(last % 4, source[outside] % 4)
    np.testing.assert_array_equal(last // 4, target[outside] // 4)
    with pytest.raises(UserError, match="3 NICs per node on 4 rails"):
        cluster(8, 1, 3, fabric=fabric)


def test_a_slow_nic_lowers_the_ports_only():
    job = cluster(4, nic_bytes_per_s=3.0)
    assert set(job.capacity_bytes_per_s[:8]) == {3.0}
    assert cluster(4, nic_bytes_per_s=30.0).capacity_bytes_per_s[0] == 10.0


def test_bisection_counts_the_slow_nics():
    job = cluster(4, nic_bytes_per_s=3.0)
    assert job.bisection_bytes_per_s() == 6.0


def test_bisection_is_that_of_the_nodes_the_job_got():
    """Two nodes of one leaf have all of their links, whatever is tapered above; on two leaves they have the uplink."""
    tree = build_fabric(
        "fat_tree", {"children": (4, 4), "parents": (1, 1), "link_bytes_per_s": 1.0, "taper": 16.0}, num_nodes=16,
        nics_per_node=1,
    )  # fmt: skip
    assert cluster(2, fabric=tree, node_numbers=np.array([12, 13])).bisection_bytes_per_s() == 1.0
    assert cluster(2, fabric=tree, node_numbers=np.array([0, 13])).bisection_bytes_per_s() == 0.25


def test_bisection_counts_only_nics_that_ranks_use():
    assert cluster(4, 1, 4).bisection_bytes_per_s() == 20.0
    assert cluster(4, 2, 4).bisection_bytes_per_s() == 40.0
    assert cluster(4, 1, 4, stripe=True).bisection_bytes_per_s() == 80.0


def test_node_numbers_place_the_job():
    tree = build_fabric(
        "fat_tree", {"children": (4, 4), "parents": (1, 4), "link_bytes_per_s": 1.0}, num_nodes=16, nics_per_node=1
    )
    packed = cluster(4, fabric=tree)
    apart = cluster(4, fabric=tree, node_numbers=spread_nodes(4, 16))
    assert set(hops(packed.routes(np.arange(3), np.arange(1, 4)))) == {2}
    assert set(hops(apart.routes(np.arange(3), np.arange(1, 4)))) == {4}
    with pytest.raises(UserError, match="each node one of its own"):
        cluster(4, fabric=tree, node_numbers=np.array([0, 1, 1, 2]))
    with pytest.raises(UserError, match="node 16 on a fabric of 16 nodes"):
        cluster(1, fabric=tree, node_numbers=np.array([16]))


def test_allocations():
    assert spread_nodes(4, 10).tolist() == [0, 2, 5, 7]
    drawn = random_nodes(10, 100, seed=3)
    assert len(set(drawn)) == 10
    assert drawn.tolist() == sorted(drawn)
    assert drawn.tolist() == random_nodes(10, 100, seed=3).tolist() != random_nodes(10, 100, seed=4).tolist()
    for allocate in (spread_nodes, lambda n, m: random_nodes(n, m, seed=0)):
        with pytest.raises(UserError, match="ask for 1 to 10"):
            allocate(11, 10)


def test_looks_alike_only_where_it_is():
    assert cluster(4).looks_alike
    assert cluster(1, ranks_per_node=4).looks_alike
    assert not cluster(4, ranks_per_node=2).looks_alike
    assert not cluster(3, fabric=small("spread tree")).looks_alike


@pytest.mark.parametrize("changes", [{"node_bytes_per_s": 0.0}, {"node_latency_s": -1.0}])
def test_impossible_node_links_are_refused(changes):
    with pytest.raises(UserError, match="node links of"):
        cluster(**changes)


@dataclass(frozen=True)
class Described:
    """What build_cluster reads of a machine."""

    name: str
    network: Network
    fabric: Any


@dataclass(frozen=True)
class Family:
    family: str
    numbers: dict[str, Any]


NETWORK = Network(node_latency_s=1e-6, node_bytes_per_s=1e11, nic_bytes_per_s=25e9, nics_per_node=4)


def test_a_machine_with_a_fabric_becomes_a_cluster():
    machine = Described("frontier", NETWORK, Family("dragonfly", SMALL["dragonfly, minimal"][1]))
    job = build_cluster(machine, num_nodes=5, ranks_per_node=8)
    assert (job.num_ranks, job.fabric.num_ports, job.nics_per_node) == (40, 20, 4)
    far = build_cluster(machine, num_nodes=2, ranks_per_node=1, node_numbers=np.array([0, 10]))
    assert far.fabric.num_ports == 44
    other = build_cluster(machine, num_nodes=5, ranks_per_node=8, fabric_numbers={"routing": "valiant"})
    assert other.num_links > job.num_links


def test_what_a_machine_lacks_is_named():
    with pytest.raises(UserError, match=r"machine frontier has no \[fabric\] table"):
        build_cluster(Described("frontier", NETWORK, None), num_nodes=2, ranks_per_node=1)
    lame = Described("frontier", replace(NETWORK, nics_per_node=None), Family("single_switch", {"port_bytes_per_s": 1}))
    with pytest.raises(UserError, match=r"no network\.nics_per_node"):
        build_cluster(lame, num_nodes=2, ranks_per_node=1)


def test_machines_of_the_catalogue_without_a_fabric_say_so():
    machine = replace(
        load_machine("lineshine"), **{"fabric": None} if hasattr(load_machine("lineshine"), "fabric") else {}
    )
    with pytest.raises(UserError, match="machine lineshine has no"):
        build_cluster(machine, num_nodes=2, ranks_per_node=1)
