"""Where nodes, switches and links of a small fabric are drawn: trees in rows, dragonflies in circles, tori on grids.

It owns places and what each line is called. It does not own any topology (the lines are the links of the built fabric)
nor the drawing itself (``draw``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError
from perfmodel.machine import FabricDescription
from perfmodel.network.catalogue import with_unit
from perfmodel.network.fabric import Fabric

MOST_VERTICES, MOST_LINES = 600, 2000
SMALL_MODELS = {
    "fat_tree": "--set children=[4,4,2] --set parents=[1,4,4]",
    "rail_optimised": "--set unit_nodes=2 --set children=16 --set parents=[1,4]",
    "dragonfly": "--set groups=4 --set switches_per_group=4 --set ports_per_switch=8",
    "dragonfly_plus": "--set groups=4 --set leaves_per_group=3 --set ports_per_leaf=4",
}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What is drawn: V vertices (nodes first), E undirected lines between them.

    ends: int64 [E, 2]. bytes_per_s: float64 [E], one direction, of all cables of a line. cables: int64 [E], parallel
    links of a line. node_count: how many of the vertices are nodes; the rest are switches, in the fabric's order.
    """

    node_count: int
    ends: NDArray[np.int64]
    bytes_per_s: NDArray[np.float64]
    cables: NDArray[np.int64]
    num_vertices: int


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A graph with places: position float64 [V, 2]; kind of each line [E] (index into kinds); bows: lines that curve.

    labels: text in each vertex. rows: (height, text) at the left of a tree. empty: routers without a node.
    """

    graph: Graph
    position: NDArray[np.float64]
    kind: NDArray[np.int64]
    kinds: tuple[str, ...]
    labels: tuple[str, ...]
    bows: NDArray[np.bool_]
    rows: tuple[tuple[float, str], ...] = ()
    empty: NDArray[np.bool_] | None = None
    note: str = ""


def count_of(number: int, noun: str) -> str:
    """ "1 node", "2 nodes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def lay_out(description: FabricDescription, fabric: Fabric, num_nodes: int, nics_per_node: int) -> Drawing:
    """Places of a fabric's vertices. Raises UserError where there are too many to read."""
    if fabric.num_vertices - fabric.num_ports + num_nodes > 4 * MOST_VERTICES:
        raise _too_large(description.family, fabric.num_vertices - fabric.num_ports + num_nodes, fabric.num_links // 2)
    torus = description.family in ("torus", "tofu_d")
    graph = torus_graph(fabric) if torus else node_graph(fabric, num_nodes, nics_per_node)
    if graph.num_vertices > MOST_VERTICES or len(graph.ends) > MOST_LINES:
        raise _too_large(description.family, graph.num_vertices, len(graph.ends))
    if torus:
        return _torus(graph, fabric, description.family)
    if description.family in ("dragonfly", "dragonfly_plus"):
        return _dragonfly(graph, description)
    return _tree(graph)


def _too_large(family: str, vertices: int, lines: int) -> UserError:
    model = SMALL_MODELS.get(family, "")
    return UserError(
        f"{vertices:,} nodes and switches with {lines:,} lines are too many to read: take fewer --nodes"
        + (f", or a small model of the fabric, as with {model}" if model else "")
    )


def node_graph(fabric: Fabric, num_nodes: int, nics_per_node: int) -> Graph:
    """Nodes and switches: the ports of a node are one vertex."""
    place = np.concatenate([
        np.arange(fabric.num_ports) // nics_per_node,
        num_nodes + np.arange(fabric.num_vertices - fabric.num_ports),
    ])  # fmt: skip
    return _merged(fabric, place, num_nodes)


def torus_graph(fabric: Fabric) -> Graph:
    """Routers only: each is drawn together with its node."""
    first = fabric.num_ports
    place = np.concatenate([np.full(first, -1), np.arange(fabric.num_vertices - first)])
    return _merged(fabric, place, fabric.num_vertices - first)


def _merged(fabric: Fabric, place: NDArray[np.int64], node_count: int) -> Graph:
    """Links between two vertices added up, the direction from the lower number to the higher one."""
    source, target = place[fabric.link_source], place[fabric.link_target]
    kept = (source >= 0) & (source < target)
    size = int(place.max()) + 1
    key, inverse = np.unique(source[kept] * size + target[kept], return_inverse=True)
    total = np.bincount(inverse, weights=fabric.capacity_bytes_per_s[kept], minlength=len(key))
    return Graph(
        node_count=node_count, ends=np.stack([key // size, key % size], axis=1).astype(np.int64),
        bytes_per_s=total.astype(np.float64), cables=np.bincount(inverse, minlength=len(key)).astype(np.int64),
        num_vertices=size,
    )  # fmt: skip


def _tree(graph: Graph) -> Drawing:
    """Nodes in the lowest row, switches above by their distance from the nodes."""
    level = _levels(graph)
    top = int(level.max())
    names = ["nodes", "leaf switches"] + [f"switches of level {number}" for number in range(2, top + 1)]
    width = max(np.count_nonzero(level == row) * (1.0 if row == 0 else 1.6) for row in range(top + 1))
    height = 0.9 * max(2.2, width / 7)
    position = np.zeros((graph.num_vertices, 2))
    position[:, 1] = level * height
    for row in range(top + 1):
        members = np.flatnonzero(level == row)
        position[members, 0] = (np.arange(len(members)) + 0.5) * width / len(members)
    lower = np.minimum(level[graph.ends[:, 0]], level[graph.ends[:, 1]])
    between = ("node to leaf", "leaf to level 2", *[f"level {row} to level {row + 1}" for row in range(2, top)])
    return Drawing(
        graph=graph, position=position, kind=lower, kinds=between[: max(1, top)],
        labels=_numbered(graph), bows=np.zeros(len(graph.ends), dtype=bool),
        rows=tuple((row * height, names[row]) for row in range(top + 1)),
    )  # fmt: skip


def _levels(graph: Graph) -> NDArray[np.int64]:
    """Distance of each vertex from the nearest node."""
    level = np.where(np.arange(graph.num_vertices) < graph.node_count, 0, graph.num_vertices)
    for _ in range(graph.num_vertices):
        near = level.copy()
        np.minimum.at(near, graph.ends[:, 0], level[graph.ends[:, 1]] + 1)
        np.minimum.at(near, graph.ends[:, 1], level[graph.ends[:, 0]] + 1)
        if np.array_equal(near, level):
            break
        level = near
    return np.minimum(level, 9).astype(np.int64)


def _numbered(graph: Graph) -> tuple[str, ...]:
    switches = graph.num_vertices - graph.node_count
    return tuple(str(number) for number in (*range(graph.node_count), *range(switches)))


def _dragonfly(graph: Graph, description: FabricDescription) -> Drawing:
    """Groups around a circle, their switches around smaller ones, nodes outside their switch."""
    group, hub = _groups(graph, description)
    plus = description.family == "dragonfly_plus"
    count = int(group.max()) + 1
    members = [np.flatnonzero((group == one) & ~hub) for one in range(count)]
    small = max(1.9, 0.4 * max(len(one) for one in members))
    apart = 2 * small + 2.4 if plus else 2 * (small + 2.0) + 2.0
    large = 0.0 if count == 1 else max(2.2 * small, apart / (2 * math.sin(math.pi / count)))
    position = np.zeros((graph.num_vertices, 2))
    angle = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    centre = large * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for one in range(count):
        spread = min(2 * np.pi, 0.75 * len(members[one])) if plus and count > 1 else 2 * np.pi
        steps = (np.arange(len(members[one])) + 0.5) / max(1, len(members[one])) - 0.5
        turn = angle[one] - spread * steps
        position[members[one]] = centre[one] + small * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        position[np.flatnonzero((group == one) & hub)] = centre[one]
    _fan_nodes(graph, position, group, centre, small)
    ends = graph.ends
    kind = np.where(ends[:, 0] < graph.node_count, 0, np.where(group[ends[:, 0]] == group[ends[:, 1]], 1, 2))
    kinds = ("node to switch", "inside a group", "between groups")
    if plus:
        numbers = description.numbers
        up = _whole(numbers["spines_per_group"]) * _whole(numbers.get("leaf_cables", 1))
        pair = _whole(numbers["links_per_group_pair"])
        kinds = (
            "node to leaf",
            f"leaf to spines, {count_of(up, 'cable')}",
            f"between groups, {count_of(pair, 'cable')}",
        )
    labels = np.array(_numbered(graph), dtype=object)
    labels[hub] = [f"spines {one}" for one in range(int(np.count_nonzero(hub)))]
    note = "all spines of a group are one vertex, for messages spread over them" if plus else ""
    return Drawing(
        graph=graph, position=position, kind=kind.astype(np.int64), kinds=kinds,
        labels=tuple(labels), bows=np.zeros(len(ends), dtype=bool), note=note,
    )  # fmt: skip


def _groups(graph: Graph, description: FabricDescription) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Group of each switch (-1 for nodes), and which vertices stand for a group's spines."""
    numbers = description.numbers
    group = np.full(graph.num_vertices, -1)
    hub = np.zeros(graph.num_vertices, dtype=bool)
    switches = np.arange(graph.num_vertices - graph.node_count)
    if description.family == "dragonfly":
        group[graph.node_count :] = switches // _whole(numbers["switches_per_group"])
        return group.astype(np.int64), hub
    leaf = np.zeros(graph.num_vertices, dtype=bool)
    leaf[graph.ends[graph.ends[:, 0] < graph.node_count, 1]] = True
    leaves = int(np.count_nonzero(leaf))
    group[leaf] = np.arange(leaves) // _whole(numbers["leaves_per_group"])
    hub[graph.node_count + leaves :] = True
    group[hub] = np.arange(int(np.count_nonzero(hub)))
    return group.astype(np.int64), hub


def _whole(value: object) -> int:
    assert isinstance(value, int | float), f"{value!r} is no number"
    return int(value)


def _fan_nodes(
    graph: Graph, position: NDArray[np.float64], group: NDArray[np.int64], centre: NDArray[np.float64], reach: float
) -> None:  # fmt: skip
    """Nodes side by side beyond their switch, or beyond the group where they have several, seen from its middle.

    group: of each vertex; centre: of each group [groups, 2]; reach: from a group's middle to its switches.
    """
    switches: list[list[int]] = [[] for _ in range(graph.node_count)]
    for node, switch in graph.ends[graph.ends[:, 0] < graph.node_count]:
        switches[node].append(int(switch))
    for own in sorted({tuple(found) for found in switches}):
        members = [node for node in range(graph.node_count) if tuple(switches[node]) == own]
        middle = centre[group[own[0]]]
        outward = position[list(own)].mean(axis=0) - middle
        if np.hypot(*outward) < 0.2 * reach:
            outward = middle if np.hypot(*middle) > 0 else np.array([0.0, 1.0])
        outward = outward / np.hypot(*outward)
        sideways = np.array([-outward[1], outward[0]])
        across = math.ceil(len(members) / (2 if len(own) == 1 else 3)) if len(members) > 4 else len(members)
        for number, node in enumerate(members):
            row, column = divmod(number, across)
            offset = (column - (across - 1) / 2) * 0.62 * len(own) ** 0.5
            position[node] = middle + (reach + 2.0 + 0.6 * row) * outward + offset * sideways


def _torus(graph: Graph, fabric: Fabric, family: str) -> Drawing:
    """Routers on a grid, further dimensions slanted or in steps; a link that closes a ring is a bow."""
    shape: tuple[int, ...] = fabric.shape  # type: ignore[attr-defined]
    coordinates = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=1)
    names = ("X", "Y", "Z", "a", "b", "c") if family == "tofu_d" else tuple("xyz"[: len(shape)])
    if len(names) < len(shape):
        names = tuple(f"dimension {axis + 1}" for axis in range(len(shape)))
    difference = coordinates[graph.ends[:, 0]] != coordinates[graph.ends[:, 1]]
    kind = difference.argmax(axis=1)
    step = np.abs(coordinates[graph.ends[:, 0]] - coordinates[graph.ends[:, 1]]).max(axis=1)
    router: NDArray[np.int64] = fabric.router_of(np.arange(fabric.num_ports))  # type: ignore[attr-defined]
    used = np.unique(router)
    labels = np.full(len(coordinates), "", dtype=object)
    labels[router] = [str(port * len(used) // fabric.num_ports) for port in range(fabric.num_ports)]
    empty = np.ones(len(coordinates), dtype=bool)
    empty[used] = False
    port = with_unit(float(fabric.capacity_bytes_per_s[0]), "B/s")
    note = f"each router with its node, joined at {port}" + ("; grey: routers without a node" if empty.any() else "")
    return Drawing(
        graph=graph, position=coordinates @ _axes(shape), kind=kind.astype(np.int64),
        kinds=tuple(f"along {name}" for name in names), labels=tuple(labels), bows=step > 1, empty=empty, note=note,
    )  # fmt: skip


def _axes(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Steps on paper of each dimension [D, 2]: right, up, slanted; then the same further apart, outer ones first."""
    plain = np.array([(1.0, 0.0), (0.0, 1.0), (0.6, 0.45)])
    steps = np.zeros((len(shape), 2))
    active = [axis for axis in reversed(range(len(shape))) if shape[axis] > 1]
    extent = np.zeros(2)
    for number, axis in enumerate(active):
        direction = plain[(0, 1, 2)[number % 3]]
        if number < 3:
            steps[axis] = 2.0 * direction
        else:
            steps[axis] = direction * np.where(direction > 0, extent + 2.0, 0) if number % 3 < 2 else extent + 1.5
        extent = np.maximum(extent, 0) + np.abs(steps[axis]) * (shape[axis] - 1)
    return steps
