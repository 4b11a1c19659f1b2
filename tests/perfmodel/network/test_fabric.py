"""Rules that every family keeps: routes are connected flows, in bounds, the same in any order, and cut by bisection."""

import math

import numpy as np
import pytest

from janus.errors import UserError
from perfmodel.network.fabric import FAMILY_CLASSES, allowed_keys, build_fabric
from tests.perfmodel.network.small_fabrics import (
    DRAGONFLY,
    PLUS,
    SMALL,
    TORUS,
    TREE,
    all_pairs,
    link_load,
    message_of_crossings,
    small,
    smallest_balanced_cut,
)

every_fabric = pytest.mark.parametrize("name", SMALL)


def test_every_family_is_tried():
    assert {family for family, *_ in SMALL.values()} == set(FAMILY_CLASSES)


@every_fabric
def test_every_route_is_one_unit_of_flow_from_source_to_target(name):
    fabric = small(name)
    source, target = all_pairs(fabric)
    routes = fabric.routes(source, target)
    message = message_of_crossings(routes)
    surplus = np.zeros((len(routes), fabric.num_vertices))
    np.add.at(surplus, (message, fabric.link_source[routes.links]), routes.shares)
    np.subtract.at(surplus, (message, fabric.link_target[routes.links]), routes.shares)
    expected = np.zeros_like(surplus)
    moving = np.flatnonzero(source != target)
    expected[moving, source[moving]] = 1.0
    expected[moving, target[moving]] = -1.0
    np.testing.assert_allclose(surplus, expected, atol=1e-12)


@every_fabric
def test_no_link_twice_no_empty_share_and_nothing_to_oneself(name):
    fabric = small(name)
    source, target = all_pairs(fabric)
    routes = fabric.routes(source, target)
    key = message_of_crossings(routes) * fabric.num_links + routes.links
    assert len(np.unique(key)) == len(key)
    assert np.all(routes.shares > 0)
    assert np.all(routes.shares <= 1 + 1e-12)
    assert np.all(np.diff(routes.offsets)[source == target] == 0)
    assert np.all(np.diff(routes.offsets)[source != target] >= 2)


@every_fabric
def test_latency_is_that_of_the_links_weighted_by_share(name):
    fabric = small(name)
    source, target = all_pairs(fabric)
    routes = fabric.routes(source, target)
    expected = np.zeros(len(routes))
    np.add.at(expected, message_of_crossings(routes), routes.shares * fabric.latency_s[routes.links])
    np.testing.assert_allclose(routes.latency_s, expected, rtol=1e-12)


@every_fabric
def test_a_message_alone_has_the_route_it_has_among_others(name):
    fabric = small(name)
    source, target = all_pairs(fabric)
    routes = fabric.routes(source, target)
    for message in range(0, len(source), max(1, len(source) // 17)):
        alone = fabric.routes(source[message : message + 1], target[message : message + 1])
        among = slice(routes.offsets[message], routes.offsets[message + 1])
        np.testing.assert_array_equal(alone.links, routes.links[among])
        np.testing.assert_allclose(alone.shares, routes.shares[among], rtol=1e-12)


@every_fabric
def test_links_have_ends_names_and_capacity(name):
    fabric = small(name)
    ports = np.arange(fabric.num_ports)
    np.testing.assert_array_equal(fabric.link_source[: fabric.num_ports], ports)
    np.testing.assert_array_equal(fabric.link_target[fabric.num_ports : 2 * fabric.num_ports], ports)
    assert np.all(fabric.capacity_bytes_per_s > 0)
    assert len(fabric.link_names()) == fabric.num_links
    assert fabric.link_names()[0].startswith("port 0 > ")


@every_fabric
def test_looks_alike_means_that_a_shift_of_the_ports_changes_nothing(name):
    fabric = small(name)
    if not fabric.looks_alike:
        return
    ports = np.arange(fabric.num_ports)
    for step in range(1, fabric.num_ports):
        routes = fabric.routes(ports, (ports + step) % fabric.num_ports)
        assert np.ptp(routes.latency_s) == 0
        load = routes.link_bytes(np.ones(len(ports)), fabric.num_links) / fabric.capacity_bytes_per_s
        worst = np.maximum.reduceat(load[routes.links], routes.offsets[:-1])
        assert np.ptp(worst) == 0


@every_fabric
def test_all_to_all_is_never_faster_than_the_bisection_allows(name):
    """Half of the ports sends a byte to each of the other half: those bytes cross the cut one way."""
    fabric = small(name)
    if fabric.num_ports == 1:
        assert fabric.bisection_bytes_per_s() == math.inf
        return
    if fabric.rails > 1:
        pytest.skip("rails do not exchange messages")
    time_s = (link_load(fabric, *all_pairs(fabric)) / fabric.capacity_bytes_per_s).max()
    half = fabric.num_ports // 2
    assert time_s >= half * (fabric.num_ports - half) / fabric.bisection_bytes_per_s() * (1 - 1e-12)


SMALL_CUTS = {
    "switch": ("single_switch", {"port_bytes_per_s": 3.0}, 9),
    "tree": ("fat_tree", TREE | {"children": (3, 4)} | {"parents": (1, 3)}, 12),
    "tapered tree": ("fat_tree", TREE | {"children": (3, 4), "parents": (1, 3), "taper": 4.0}, 12),
    "slim static tree": ("fat_tree", TREE | {"children": (2, 2, 3), "parents": (1, 2, 1), "routing": "d-mod-k"}, 12),
    "tree, filled in part": ("fat_tree", TREE | {"children": (4, 4), "parents": (1, 4), "taper": 3.0}, 10),
    "both halves in one subtree": (
        "fat_tree", TREE | {"children": (2, 3, 2), "parents": (1, 1, 1), "taper": (1.0, 6.0)}, 8,
    ),
    "ring": ("torus", TORUS | {"shape": (12,)}, 12),
    "odd ring": ("torus", TORUS | {"shape": (7,)}, 7),
    "torus": ("torus", TORUS | {"shape": (4, 3)}, 12),
    "cube": ("torus", TORUS | {"shape": (2, 2, 2)}, 8),
    "mesh": ("torus", TORUS | {"shape": (3, 4), "wraps": False}, 12),
    "odd torus": ("torus", TORUS | {"shape": (3, 3)}, 9),
    "Tofu-D": ("tofu_d", TORUS | {"machine_shape": (24, 23, 24), "job_shape": (2, 3, 2)}, 12),
    "dragonfly": (
        "dragonfly",
        DRAGONFLY | {"groups": 4, "switches_per_group": 3, "ports_per_switch": 1, "routing": "minimal"}, 12,
    ),
    "dragonfly of few cables": (
        "dragonfly",
        DRAGONFLY | {"groups": 4, "switches_per_group": 2, "ports_per_switch": 2, "links_per_group_pair": 1,
                     "local_cables": 4, "routing": "minimal"}, 16,
    ),
    "one group": ("dragonfly", DRAGONFLY, 8),
    "dragonfly+": ("dragonfly_plus", PLUS | {"groups": 4, "routing": "minimal"}, 24),
    "dragonfly+, odd groups": ("dragonfly_plus", PLUS | {"groups": 3, "links_per_group_pair": 1}, 18),
    "dragonfly+, one group": ("dragonfly_plus", PLUS | {"leaf_bytes_per_s": 1.0}, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL_CUTS)
def test_bisection_is_the_smallest_of_all_balanced_cuts(name):
    family, numbers, num_nodes = SMALL_CUTS[name]
    fabric = build_fabric(family, numbers, num_nodes=num_nodes, nics_per_node=1)
    assert fabric.bisection_bytes_per_s() == pytest.approx(smallest_balanced_cut(fabric), rel=1e-12)


@pytest.mark.parametrize("family", FAMILY_CLASSES)
def test_errors_name_family_key_and_what_is_allowed(family):
    with pytest.raises(UserError, match=f"fabric {family}: no number 'colour'.*{next(iter(allowed_keys(family)))}"):
        build_fabric(family, {"colour": 1.0}, num_nodes=2, nics_per_node=1)
    required = [key for key, needed in allowed_keys(family).items() if needed]
    with pytest.raises(UserError, match=f"fabric {family}: {required[0]} is missing"):
        build_fabric(family, {}, num_nodes=2, nics_per_node=1)


def test_unknown_family_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'dragonfly'"):
        build_fabric("dragonfli", {}, num_nodes=2, nics_per_node=1)


@pytest.mark.parametrize(
    ("family", "numbers", "num_nodes", "message"),
    [
        ("fat_tree", TREE, 65, "65 ports need 65 places"),
        ("fat_tree", TREE | {"parents": (1, 4)}, 4, "3 children, 2 parents"),
        ("fat_tree", TREE | {"parents": (2, 4, 4)}, 4, "use planes"),
        ("fat_tree", TREE | {"routing": "magic"}, 4, "spread or d-mod-k"),
        ("fat_tree", TREE | {"taper": 0.0}, 4, "taper must be above 0"),
        ("torus", TORUS | {"shape": (2, 2)}, 5, "5 nodes on shape"),
        ("torus", TORUS | {"shape": (4, 4), "job_shape": (5, 1)}, 5, "must fit in every dimension"),
        ("dragonfly", DRAGONFLY, 49, "49 ports on 6 groups"),
        ("dragonfly", DRAGONFLY | {"minimal_share": 1.5}, 8, "between 0 and 1"),
        ("dragonfly_plus", PLUS | {"routing": "random"}, 8, "minimal, valiant, adaptive"),
        ("single_switch", {"port_bytes_per_s": 0.0}, 8, "must be above 0"),
    ],
)
def test_impossible_numbers_are_refused_in_one_sentence(family, numbers, num_nodes, message):
    with pytest.raises(UserError, match=message) as caught:
        build_fabric(family, numbers, num_nodes=num_nodes, nics_per_node=1)
    assert f"fabric {family}: " in str(caught.value)


def test_floats_of_a_file_that_are_whole_count():
    numbers = {key: float(value) if isinstance(value, int) else value for key, value in DRAGONFLY.items()}
    a = build_fabric("dragonfly", numbers, num_nodes=20, nics_per_node=1)
    b = build_fabric("dragonfly", DRAGONFLY, num_nodes=20, nics_per_node=1)
    np.testing.assert_array_equal(a.link_target, b.link_target)


FRONTIER = {"groups": 74, "switches_per_group": 32, "ports_per_switch": 16, "links_per_group_pair": 4,
            "port_bytes_per_s": 25e9}  # fmt: skip
WHOLE_MACHINES = {
    "fat_tree": {"children": (32, 32, 32), "parents": (1, 32, 32), "link_bytes_per_s": 50e9},
    "dragonfly": FRONTIER,
    "dragonfly_plus": {"groups": 27, "leaves_per_group": 15, "ports_per_leaf": 64, "spines_per_group": 16,
                       "links_per_group_pair": 16, "port_bytes_per_s": 25e9},
    "torus": TORUS | {"shape": (48, 69, 48)},
    "tofu_d": TORUS | {"machine_shape": (24, 23, 24)},
}  # fmt: skip


@pytest.mark.parametrize("family", WHOLE_MACHINES)
def test_a_job_of_few_nodes_does_not_build_the_whole_machine(family):
    few = build_fabric(family, WHOLE_MACHINES[family], num_nodes=16, nics_per_node=1)
    many = build_fabric(family, WHOLE_MACHINES[family], num_nodes=1024, nics_per_node=1)
    assert few.num_ports == 16
    assert few.num_links < 1100
    assert few.num_links < many.num_links


def test_the_topology_matters():
    """The same traffic of 64 ports takes another time on every fabric that is not the same."""
    fabrics = [
        build_fabric("single_switch", {"port_bytes_per_s": 1.0}, num_nodes=64, nics_per_node=1),
        *(build_fabric("fat_tree", TREE | {"link_bytes_per_s": 1.0, "taper": taper}, num_nodes=64, nics_per_node=1)
          for taper in (2.0, 4.0)),
        *(build_fabric("torus", {"shape": shape, "link_bytes_per_s": 1.0, "port_bytes_per_s": 1.0}, num_nodes=64,
                       nics_per_node=1) for shape in ((64,), (8, 8))),
    ]  # fmt: skip
    times = [(link_load(f, *all_pairs(f)) / f.capacity_bytes_per_s).max() for f in fabrics]
    assert len(set(times)) == len(times)
    assert times[0] == min(times)
