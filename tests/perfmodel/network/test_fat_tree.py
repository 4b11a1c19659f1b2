"""Fat trees: full bisection, taper, static routing's evenness, and the published clusters."""

import numpy as np
import pytest

from perfmodel.network.fat_tree import FatTree, RailOptimised
from perfmodel.network.switch import SingleSwitch
from tests.perfmodel.network.small_fabrics import all_pairs, hops, link_load, shortest_hops


def tree(**changes):
    return FatTree(**{"num_ports": 64, "children": (4, 4, 4), "parents": (1, 4, 4), "link_bytes_per_s": 1.0} | changes)


def shift_loads(fabric, step):
    """Largest bytes per capacity over the links when every port sends a byte to the one ``step`` further on."""
    ports = np.arange(fabric.num_ports)
    return (link_load(fabric, ports, (ports + step) % fabric.num_ports) / fabric.capacity_bytes_per_s).max()


@pytest.mark.parametrize("routing", ["spread", "d-mod-k"])
@pytest.mark.parametrize("num_ports", [64, 50, 17])
def test_paths_are_shortest(routing, num_ports):
    fabric = tree(routing=routing, num_ports=num_ports)
    source, target = all_pairs(fabric)
    expected = shortest_hops(fabric)[source, target]
    np.testing.assert_array_equal(hops(fabric.routes(source, target)), expected)


@pytest.mark.parametrize("routing", ["spread", "d-mod-k"])
def test_shifts_of_a_full_tree_are_free_of_contention(routing):
    """Zahavi 2012: d-mod-k loads no link twice in any shift of all ports of a full tree."""
    fabric = tree(routing=routing)
    assert [shift_loads(fabric, step) for step in range(1, 64)] == [1.0] * 63


@pytest.mark.parametrize("routing", ["spread", "d-mod-k"])
def test_all_to_all_loads_all_links_of_a_level_alike(routing):
    fabric = tree(routing=routing, parents=(1, 2, 4))
    load = link_load(fabric, *all_pairs(fabric))
    first = 2 * fabric.num_ports
    for level in range(1, fabric.height):
        ends = fabric._ends(level)[0]
        for links in (slice(first, first + len(ends)), slice(first + len(ends), first + 2 * len(ends))):
            assert load[links].min() > 0
            assert np.ptp(load[links]) == 0
        first += 2 * len(ends)


def test_static_routes_contend_where_spread_ones_do_not():
    """Ports of one leaf that send to targets of one residue share one uplink under d-mod-k."""
    source, target = np.arange(4), np.array([16, 32, 48, 20])
    assert link_load(tree(routing="d-mod-k"), source, target).max() == 4.0
    spread = tree()
    assert (link_load(spread, source, target) / spread.capacity_bytes_per_s).max() == 1.0


@pytest.mark.parametrize("routing", ["spread", "d-mod-k"])
def test_bisection_is_full_and_falls_with_the_taper(routing):
    assert tree(routing=routing).bisection_bytes_per_s() == 32.0
    for taper in (1.0, 2.0, 4.0):
        assert tree(routing=routing, taper=taper).bisection_bytes_per_s() == pytest.approx(32.0 / taper, rel=1e-12)
    both = tree(routing=routing, taper=(2.0, 1.5))
    assert both.bisection_bytes_per_s() == pytest.approx(32.0 / 3, rel=1e-12)


def test_half_of_the_parents_is_a_taper_of_two():
    assert tree(parents=(1, 2, 4)).bisection_bytes_per_s() == tree(taper=2.0).bisection_bytes_per_s() == 16.0


def test_cables_and_planes_multiply():
    assert tree(cables=(2, 2, 2)).bisection_bytes_per_s() == tree(planes=2).bisection_bytes_per_s() == 64.0
    slim = tree(parents=(1, 2, 2), cables=(1, 2, 4), routing="d-mod-k")
    assert slim.bisection_bytes_per_s() == 32.0


def test_rails_are_apart():
    fabric = tree(rails=2, num_ports=128, routing="d-mod-k")
    assert fabric.bisection_bytes_per_s() == 64.0
    even, odd = (fabric.routes(np.full(62, r), np.arange(r + 2, 126, 2)).links for r in (0, 1))
    assert not set(even) & set(odd)
    with pytest.raises(AssertionError, match="between two rails"):
        fabric.routes(np.array([0]), np.array([1]))


def test_one_level_is_a_switch():
    leaf = tree(num_ports=4)
    switch = SingleSwitch(num_ports=4, port_bytes_per_s=1.0)
    assert leaf.looks_alike
    assert leaf.num_links == switch.num_links
    assert leaf.bisection_bytes_per_s() == switch.bisection_bytes_per_s()


def test_rail_optimised_keeps_a_rail_of_a_unit_on_its_leaf():
    fabric = RailOptimised(
        num_ports=16 * 4, nics_per_node=4, unit_nodes=8, children=(8,), parents=(1, 8), link_bytes_per_s=1.0,
        wire_latency_s=1.0, switch_latency_s=0.0,
    )  # fmt: skip
    node, rail = np.arange(64) // 4, np.arange(64) % 4
    source, target = all_pairs(fabric)
    other = source != target
    same_leaf = (rail[source] == rail[target]) & (node[source] // 8 == node[target] // 8)
    np.testing.assert_array_equal(hops(fabric.routes(source, target))[other], np.where(same_leaf, 2, 4)[other])


@pytest.mark.parametrize(("num_nodes", "leaves", "spines"), [(31, 8, 4), (63, 16, 8), (95, 24, 16), (127, 32, 16)])
def test_superpods_are_not_blocking_in_64_port_switches(num_nodes, leaves, spines):
    """NVIDIA DGX H100 SuperPOD reference architecture: 64-port switches, 32 ports down on each leaf, NDR 50 GB/s."""
    cables = 32 // spines
    fabric = RailOptimised(
        num_ports=8 * num_nodes, nics_per_node=8, unit_nodes=32, children=(leaves,), parents=(1, spines),
        cables=(1, cables), link_bytes_per_s=50e9, routing="d-mod-k",
    )  # fmt: skip
    assert fabric.num_vertices - fabric.num_ports == leaves + spines
    assert leaves * cables <= 64
    assert fabric.bisection_bytes_per_s() == pytest.approx(num_nodes * 4 * 50e9, rel=1e-12)


def test_oceanlight_tapers_sixteen_to_three_above_256_nodes():
    """New Sunway: super-nodes of 256 nodes, 16:3 above (G, garden notes on New-Sunway)."""
    numbers = {"children": (256, 420), "link_bytes_per_s": 25e9, "taper": 16 / 3}
    inside = FatTree(num_ports=256, **numbers)
    across = FatTree(num_ports=512, **numbers)
    assert inside.bisection_bytes_per_s() / 256 == pytest.approx(25e9 / 2)
    assert across.bisection_bytes_per_s() / 512 == pytest.approx(25e9 / 2 * 3 / 16)
