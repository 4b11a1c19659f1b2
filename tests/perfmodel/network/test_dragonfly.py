"""Dragonflies: what minimal, Valiant and mixed routes cross, how evenly, and the tapers of real machines."""

import numpy as np
import pytest

from janus.errors import UserError
from perfmodel.network.dragonfly import Dragonfly
from perfmodel.network.dragonfly_plus import DragonflyPlus
from tests.perfmodel.network.small_fabrics import all_pairs, hops, link_load, message_of_crossings


def dragonfly(**changes):
    numbers = {"groups": 9, "switches_per_group": 4, "ports_per_switch": 2, "links_per_group_pair": 1,
               "port_bytes_per_s": 1.0, "routing": "minimal", "paths": 0, "num_ports": 72}  # fmt: skip
    return Dragonfly(**numbers | changes)


def plus(**changes):
    numbers = {"groups": 5, "leaves_per_group": 3, "ports_per_leaf": 4, "spines_per_group": 4, "num_ports": 60,
               "links_per_group_pair": 4, "port_bytes_per_s": 1.0, "routing": "minimal"}  # fmt: skip
    return DragonflyPlus(**numbers | changes)


def global_links(fabric, ports_per_group, switches_per_group):
    """Group left and group entered by the links that join two groups, and which links those are."""
    switches = np.arange(fabric.num_vertices) - fabric.num_ports
    group = np.where(switches < 0, np.arange(fabric.num_vertices) // ports_per_group, switches // switches_per_group)
    leaves, enters = group[fabric.link_source], group[fabric.link_target]
    links = np.flatnonzero(leaves != enters)
    return leaves[links], enters[links], links


def hops_of_kind(fabric, routes, links):
    """Share-weighted number of crossings of ``links`` by each message."""
    chosen = np.isin(routes.links, links)
    weight = routes.shares * chosen
    return np.bincount(message_of_crossings(routes), weights=weight, minlength=len(routes))


def test_every_two_groups_have_their_cables_and_no_switch_too_many():
    fabric = dragonfly(links_per_group_pair=2)
    leaves, enters, links = global_links(fabric, 8, 4)
    pairs, counts = np.unique(leaves * 9 + enters, return_counts=True)
    assert len(pairs) == 72
    assert set(counts) == {2}
    assert set(np.bincount(fabric.link_source[links] - 72)) == {4}  # 16 cables of a group on 4 switches
    assert sorted(fabric.link_source[links]) == sorted(fabric.link_target[links])


def test_minimal_is_local_global_local():
    fabric = dragonfly()
    source, target = all_pairs(fabric)
    routes = fabric.routes(source, target)
    *_, links = global_links(fabric, 8, 4)
    crossed = hops_of_kind(fabric, routes, links)
    np.testing.assert_array_equal(crossed, (source // 8 != target // 8).astype(float))
    inside = (source // 8 == target // 8) & (source // 2 != target // 2)
    assert set(hops(routes)[inside]) == {3}
    assert hops(routes).max() == 5


def test_valiant_passes_one_other_group_and_loads_all_cables_alike():
    """Group 0 sends to group 1 only: minimal has one cable for it, Valiant all those of the other groups."""
    fabric = dragonfly(routing="valiant")
    source, target = (axis.ravel() for axis in np.meshgrid(np.arange(8), np.arange(8, 16)))
    leaves, enters, links = global_links(fabric, 8, 4)
    np.testing.assert_allclose(hops_of_kind(fabric, fabric.routes(source, target), links), 2.0)
    load = link_load(fabric, source, target)
    out_of_0 = load[links[(leaves == 0) & (enters != 1)]]
    into_1 = load[links[(enters == 1) & (leaves != 0)]]
    np.testing.assert_allclose(out_of_0, 64 / 7)
    np.testing.assert_allclose(into_1, 64 / 7)
    assert load[links[(leaves == 0) & (enters == 1)]] == 0
    assert link_load(dragonfly(), source, target).max() == 64


@pytest.mark.parametrize("paths", [1, 2, 3, 0])
def test_few_paths_are_spread_over_all_by_turns(paths):
    """Whole groups that exchange load every detour and every cable the same, whatever one message uses."""
    fabric = dragonfly(routing="valiant", paths=paths, links_per_group_pair=2, groups=6, num_ports=48)
    source, target = all_pairs(fabric)
    *_, links = global_links(fabric, 8, 4)
    load = link_load(fabric, source, target)[links]
    assert load.max() <= 1.25 * load.mean()
    assert load.sum() == pytest.approx(2 * 48 * 40)


def test_adaptive_is_the_stated_mixture():
    source, target = all_pairs(dragonfly())
    loads = {
        name: link_load(dragonfly(routing=name, minimal_share=0.3), source, target)
        for name in ("minimal", "valiant", "adaptive")
    }
    alike = 2 * 72  # with groups for detours, all three have the same links
    mixed = 0.3 * link_load(dragonfly(routing="adaptive", minimal_share=1.0), source, target)
    mixed += 0.7 * link_load(dragonfly(routing="adaptive", minimal_share=0.0), source, target)
    np.testing.assert_allclose(loads["adaptive"], mixed, atol=1e-9)
    np.testing.assert_allclose(loads["adaptive"], 0.3 * loads["minimal"] + 0.7 * loads["valiant"], atol=1e-9)
    np.testing.assert_allclose(loads["adaptive"][:alike], loads["minimal"][:alike], rtol=1e-12)


def test_inside_a_group_valiant_spares_the_direct_link():
    fabric = dragonfly(num_ports=8, switches_per_group=4, routing="valiant")
    source, target = np.array([0, 1]), np.array([2, 3])
    assert link_load(fabric, source, target)[2 * 8 :].max() == 1.0
    assert link_load(dragonfly(num_ports=8), source, target)[2 * 8 :].max() == 2.0


def test_all_to_all_is_fastest_minimal_and_a_shift_of_groups_fastest_valiant():
    """Kim et al. 2008: minimal is best for uniform traffic, Valiant where whole groups send to one group."""
    everyone = all_pairs(dragonfly())
    ports = np.arange(72)
    shifted = ports, (ports + 8) % 72
    uniform = {name: link_load(dragonfly(routing=name), *everyone).max() for name in ("minimal", "valiant")}
    adverse = {name: link_load(dragonfly(routing=name), *shifted).max() for name in ("minimal", "valiant")}
    assert uniform["minimal"] < uniform["valiant"]
    assert adverse["valiant"] < adverse["minimal"] == 8.0


def test_global_cables_limit_the_bisection():
    """Halves of an even number of groups: groups^2 / 4 pairs of cables."""
    assert dragonfly(groups=8, num_ports=64, local_cables=9).bisection_bytes_per_s() == 16.0
    assert dragonfly(groups=8, num_ports=64, local_cables=9, links_per_group_pair=2).bisection_bytes_per_s() == 32.0
    assert plus(groups=4, num_ports=48, links_per_group_pair=2).bisection_bytes_per_s() == 8.0
    assert plus(groups=4, num_ports=48, links_per_group_pair=40).bisection_bytes_per_s() == 24.0


def test_only_jobs_of_several_groups_build_switches_for_detours():
    one = dragonfly(groups=74, num_ports=6, routing="adaptive")
    two = dragonfly(groups=74, num_ports=16, routing="adaptive")
    assert one.num_vertices == 6 + 4
    assert two.num_vertices == 16 + 74 * 4
    assert dragonfly(groups=74, num_ports=16).num_vertices == 16 + 2 * 4


def test_adaptive_fills_direct_and_detour_cables_alike_where_a_group_sends_to_one_other():
    """The default share 2 / n for n groups: all groups send to the next one, every cable has its part."""
    fabric = dragonfly(routing="adaptive", minimal_share=None)
    ports = np.arange(72)
    leaves, enters, links = global_links(fabric, 8, 4)
    load = link_load(fabric, ports, (ports + 8) % 72)[links]
    direct = load[(enters - leaves) % 9 == 1]
    np.testing.assert_allclose(direct, 8 * 2 / 9)
    assert load[(enters - leaves) % 9 != 1].mean() == pytest.approx(8 * 2 / 9)


def test_nics_of_a_node_on_several_switches():
    """Four NICs of a node on four switches: NIC k of every node of the block is on switch k."""
    numbers = {"num_ports": 16, "switches_per_group": 4, "ports_per_switch": 4, "nics_per_node": 4}
    spread = dragonfly(**numbers, switches_per_node=4)
    np.testing.assert_array_equal(spread.link_target[:16] - 16, np.arange(16) % 4)
    together = dragonfly(**numbers)
    np.testing.assert_array_equal(together.link_target[:16] - 16, np.arange(16) // 4)
    on_two = dragonfly(**numbers, switches_per_node=2)
    np.testing.assert_array_equal(on_two.link_target[:16] - 16, [0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3])
    with pytest.raises(UserError, match="4 NICs of a node on 3 switches"):
        dragonfly(**numbers, switches_per_node=3)


def test_a_part_of_the_machine_has_the_cables_of_the_whole():
    """The same two groups alone and among others: the same switches hold their cables."""
    whole, part = dragonfly(links_per_group_pair=2), dragonfly(links_per_group_pair=2, num_ports=16)
    few, all_ = (
        {
            (int(a - f.num_ports), int(b - f.num_ports))
            for a, b in zip(f.link_source[2 * f.num_ports :], f.link_target[2 * f.num_ports :], strict=True)
            if max(a, b) - f.num_ports < 8
        }
        for f in (part, whole)
    )
    assert few == all_


def test_dragonfly_plus_paths():
    fabric = plus()
    source, target = all_pairs(fabric)
    routes = fabric.routes(source, target)
    leaf, group = np.arange(60) // 4, np.arange(60) // 12
    expected = np.where(
        source == target, 0,
        np.where(leaf[source] == leaf[target], 2, np.where(group[source] == group[target], 4, 5)),
    )  # fmt: skip
    np.testing.assert_array_equal(hops(routes), expected)
    detours = plus(routing="valiant").routes(np.array([0]), np.array([59]))
    assert detours.shares.sum() == pytest.approx(6.0)


def taper(fabric, ports_per_group, switches_per_group):
    """Bytes/s of the ports of group 0 over those of its cables to other groups."""
    leaves, _, links = global_links(fabric, ports_per_group, switches_per_group)
    into = fabric.capacity_bytes_per_s[:ports_per_group].sum()
    return into / fabric.capacity_bytes_per_s[links[leaves == 0]].sum()


@pytest.mark.parametrize(
    ("machine", "groups", "links_per_group_pair", "published"),
    [("Frontier", 74, 4, 1.753), ("Frontier, 77 groups", 77, 4, 1.684), ("Aurora", 166, 2, 1.55)],
)
def test_published_tapers(machine, groups, links_per_group_pair, published):
    fabric = Dragonfly(
        num_ports=groups * 512, groups=groups, switches_per_group=32, ports_per_switch=16,
        links_per_group_pair=links_per_group_pair, port_bytes_per_s=25e9, routing="minimal",
    )  # fmt: skip
    assert taper(fabric, 512, 32) == pytest.approx(published, abs=2e-3), machine


def test_lumi_global_bandwidth():
    """276 TB/s between 24 groups (docs.lumi-supercomputer.eu): 20 links of 25 GB/s per pair of groups, both ways."""
    fabric = Dragonfly(
        num_ports=2978 * 4, groups=24, switches_per_group=32, ports_per_switch=16, links_per_group_pair=20,
        port_bytes_per_s=25e9, routing="minimal",
    )  # fmt: skip
    *_, links = global_links(fabric, 512, 32)
    assert fabric.capacity_bytes_per_s[links].sum() == pytest.approx(276e12)


def test_leonardo_groups():
    """Leaf 40 x 100G down and 18 x 200G up, spine 22 x 200G up: tapers of 10/9 below and 10/11 above."""
    fabric = DragonflyPlus(
        num_ports=23 * 720, groups=23, leaves_per_group=18, ports_per_leaf=40, spines_per_group=18,
        links_per_group_pair=18, port_bytes_per_s=12.5e9, leaf_bytes_per_s=25e9, global_bytes_per_s=25e9,
        routing="minimal",
    )  # fmt: skip
    up = fabric.capacity_bytes_per_s[2 * fabric.num_ports]
    assert 40 * 12.5e9 / up == pytest.approx(10 / 9)
    between = fabric.capacity_bytes_per_s[-22:].sum()
    assert 720 * 12.5e9 / between == pytest.approx(10 / 11)
