"""Small fabrics of every family that tests try their rules on, and what all tests ask of routes."""

import numpy as np

from perfmodel.network.fabric import build_fabric

TREE = {"children": (4, 4, 4), "parents": (1, 4, 4), "link_bytes_per_s": 10.0}
TORUS = {"link_bytes_per_s": 2.0, "port_bytes_per_s": 9.0}
DRAGONFLY = {"groups": 6, "switches_per_group": 4, "ports_per_switch": 2, "links_per_group_pair": 3,
             "port_bytes_per_s": 4.0}  # fmt: skip
PLUS = {"groups": 6, "leaves_per_group": 2, "ports_per_leaf": 3, "spines_per_group": 2, "links_per_group_pair": 2,
        "port_bytes_per_s": 4.0}  # fmt: skip
LATENCIES = {"wire_latency_s": 1.0, "switch_latency_s": 10.0}

# name -> family, numbers, nodes, NICs per node
SMALL = {
    "one port": ("single_switch", {"port_bytes_per_s": 3.0}, 1, 1),
    "switch": ("single_switch", {"port_bytes_per_s": 3.0}, 7, 1),
    "spread tree": ("fat_tree", TREE, 64, 1),
    "spread tree, filled in part": ("fat_tree", TREE, 37, 1),
    "static tree": ("fat_tree", TREE | {"routing": "d-mod-k"}, 64, 1),
    "static tree, filled in part": ("fat_tree", TREE | {"routing": "d-mod-k"}, 22, 1),
    "slim static tree": ("fat_tree", TREE | {"routing": "d-mod-k", "parents": (1, 2, 3)}, 64, 1),
    "tapered tree": ("fat_tree", TREE | {"taper": (2.0, 1.5)}, 40, 1),
    "planes": ("fat_tree", TREE | {"planes": 2}, 32, 1),
    "rail-optimised": (
        "rail_optimised",
        {"unit_nodes": 4, "children": (8,), "parents": (1, 2), "link_bytes_per_s": 2.0, "routing": "d-mod-k"}, 7, 4,
    ),
    "ring": ("torus", TORUS | {"shape": (6,)}, 6, 1),
    "torus": ("torus", TORUS | {"shape": (4, 5, 2)}, 40, 1),
    "mesh": ("torus", TORUS | {"shape": (4, 3), "wraps": False}, 12, 1),
    "block of a torus": ("torus", TORUS | {"shape": (16, 16, 16)}, 24, 1),
    "two NICs per router": ("torus", TORUS | {"shape": (3, 3)}, 9, 2),
    "Tofu-D": ("tofu_d", TORUS | {"machine_shape": (24, 23, 24), "job_shape": (4, 6, 2)}, 48, 1),
    "dragonfly, minimal": ("dragonfly", DRAGONFLY | {"routing": "minimal"}, 48, 1),
    "dragonfly, Valiant": ("dragonfly", DRAGONFLY | {"routing": "valiant", "paths": 0}, 48, 1),
    "dragonfly, adaptive": ("dragonfly", DRAGONFLY | {"routing": "adaptive"}, 29, 1),
    "dragonfly, all detours": ("dragonfly", DRAGONFLY | {"paths": 0, "links_per_group_pair": 4}, 48, 1),
    "dragonfly, NICs on two switches": ("dragonfly", DRAGONFLY | {"switches_per_node": 2}, 17, 2),
    "dragonfly, one group": ("dragonfly", DRAGONFLY, 8, 1),
    "dragonfly+, minimal": ("dragonfly_plus", PLUS | {"routing": "minimal"}, 36, 1),
    "dragonfly+, Valiant": ("dragonfly_plus", PLUS | {"routing": "valiant", "paths": 0}, 36, 1),
    "dragonfly+, adaptive": ("dragonfly_plus", PLUS, 14, 1),
}  # fmt: skip


def small(name):
    family, numbers, num_nodes, nics = SMALL[name]
    latencies = {} if name == "one port" else LATENCIES
    return build_fabric(family, numbers | latencies, num_nodes=num_nodes, nics_per_node=nics)


def all_pairs(fabric):
    """Source and target of every pair of ports that can reach each other, itself included."""
    source, target = (axis.ravel() for axis in np.indices((fabric.num_ports, fabric.num_ports)))
    meet = source % fabric.rails == target % fabric.rails
    return source[meet], target[meet]


def message_of_crossings(routes):
    return np.repeat(np.arange(len(routes)), np.diff(routes.offsets))


def link_load(fabric, source, target):
    """Bytes over every link when every message has one byte."""
    return fabric.routes(source, target).link_bytes(np.ones(len(source)), fabric.num_links)


def hops(routes):
    return np.diff(routes.offsets)


def shortest_hops(fabric):
    """Links of a shortest path between any two ports, by breadth-first search over the links. [P, P]"""
    reach = np.full((fabric.num_ports, fabric.num_vertices), -1)
    front = np.eye(fabric.num_ports, fabric.num_vertices, dtype=bool)
    step = 0
    while front.any():
        reach[front] = step
        onward = np.zeros_like(front)
        for a, b in zip(fabric.link_source, fabric.link_target, strict=True):
            onward[:, b] |= front[:, a]
        front = onward & (reach < 0)
        step += 1
    return reach[:, : fabric.num_ports]


def smallest_balanced_cut(fabric):
    """Least capacity between any two halves of the ports (one direction), over all sides that the switches can take.

    A port on the other side than its switch costs its link; so for given sides of the switches the best halves are
    reached by moving as few ports as balance needs. Exact where every port has one switch and all links of ports have
    one capacity.
    """
    first = fabric.num_ports
    num_switches = fabric.num_vertices - first
    assert num_switches <= 16, f"{num_switches} switches are too many to enumerate"
    inner = slice(2 * first, None)
    below = np.bincount(fabric.link_target[:first] - first, minlength=num_switches)
    sides = (np.arange(2**num_switches)[:, None] >> np.arange(num_switches)) & 1 == 1
    source, target = fabric.link_source[inner] - first, fabric.link_target[inner] - first
    cut = (sides[:, source] & ~sides[:, target]) @ fabric.capacity_bytes_per_s[inner]
    moved = np.minimum(abs(sides @ below - first // 2), abs(sides @ below - (first + 1) // 2))
    return float((cut + moved * fabric.capacity_bytes_per_s[0]).min())
