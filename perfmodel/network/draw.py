"""Pictures of small fabrics: nodes, switches and every link with its capacity, as one offline SVG, PNG or PDF.

It owns where things are drawn. It does not own any topology: what is drawn are the links of the built fabric
(``fabric``), both directions of a cable as one line, and all NICs of a node as one box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError
from perfmodel.machine import FabricDescription, Machine
from perfmodel.network.catalogue import with_unit
from perfmodel.network.fabric import Fabric, build_fabric
from perfmodel.network.kinds import wrong_kinds

MOST_VERTICES, MOST_LINES = 600, 2000
KIND_COLOURS = ("#7a7a7a", "#1f78b4", "#e66101", "#33a02c", "#8e44ad", "#222222", "#c2185b")
NODE_COLOUR, SWITCH_COLOUR, EMPTY_COLOUR = "#fdf3d8", "#dbe9f6", "#f2f2f2"
LARGEST_INCHES = 22.0
INCHES_PER_UNIT = 0.62
FAMILY_NAMES = {
    "single_switch": "single switch", "fat_tree": "fat tree", "rail_optimised": "rail-optimised tree",
    "dragonfly_plus": "dragonfly+", "tofu_d": "Tofu-D",
}  # fmt: skip
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


def draw_machine(
    machine: Machine, num_nodes: int, out: Path, overrides: Mapping[str, Any] | None = None
) -> tuple[int, int]:
    """Draw what num_nodes nodes of a machine need of its fabric. Returns numbers of switches and of lines.

    overrides: numbers of the fabric to replace, for a small model of a large machine; they are named in the title.
    Raises UserError where the machine has no fabric, a picture would be illegible, or the file cannot be written.
    """
    description = machine.fabric
    nics = machine.network.nics_per_node
    if description is None or nics is None:
        raise UserError(f"machine {machine.name!r} has no [fabric] table with network.nics_per_node: nothing to draw")
    description = replace(description, numbers={**description.numbers, **(overrides or {})})
    if wrong := wrong_kinds(description.family, description.numbers):
        raise UserError(wrong[0])
    fabric = build_fabric(description.family, _shown(description), num_nodes=num_nodes, nics_per_node=nics)
    drawing = lay_out(description, fabric, num_nodes, nics)
    changed = ", ".join(f"{key} = {_short(value)}" for key, value in (overrides or {}).items())
    family = FAMILY_NAMES.get(description.family, description.family)
    title = f"{machine.name}: {family}, {_count(num_nodes, 'node')} of {_count(nics, 'NIC')}"
    subtitle = f"a model with {changed}" if changed else "the part of the machine that they need"
    _render(drawing, f"{title}\n{subtitle}; capacities per direction", out)
    return drawing.graph.num_vertices - drawing.graph.node_count, len(drawing.graph.ends)


def _shown(description: FabricDescription) -> dict[str, Any]:
    """The numbers to build by: trees with their single switches instead of the sum of what is spread over."""
    trees = ("fat_tree", "rail_optimised")
    return {**description.numbers, "routing": "d-mod-k"} if description.family in trees else dict(description.numbers)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _short(value: Any) -> str:
    return "x".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)


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
    _fan_nodes(graph, position, centre[np.maximum(group, 0)], 2.0)
    ends = graph.ends
    kind = np.where(ends[:, 0] < graph.node_count, 0, np.where(group[ends[:, 0]] == group[ends[:, 1]], 1, 2))
    kinds = ("node to switch", "inside a group", "between groups")
    if plus:
        numbers = description.numbers
        up = _whole(numbers["spines_per_group"]) * _whole(numbers.get("leaf_cables", 1))
        pair = _whole(numbers["links_per_group_pair"])
        kinds = ("node to leaf", f"leaf to spines, {_count(up, 'cable')}", f"between groups, {_count(pair, 'cable')}")
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
    graph: Graph, position: NDArray[np.float64], centre: NDArray[np.float64], distance: float
) -> None:  # fmt: skip
    """Nodes side by side beyond their first switch, seen from the middle of its group."""
    first = np.full(graph.node_count, -1)
    for node, switch in graph.ends[graph.ends[:, 0] < graph.node_count][::-1]:
        first[node] = switch
    for switch in np.unique(first):
        members = np.flatnonzero(first == switch)
        outward = position[switch] - centre[switch]
        length = float(np.hypot(*outward))
        outward = np.array([0.0, 1.0]) if length < 1e-9 else outward / length
        sideways = np.array([-outward[1], outward[0]])
        across = math.ceil(len(members) / 2) if len(members) > 4 else len(members)
        for number, node in enumerate(members):
            row, column = divmod(number, across)
            offset = (column - (across - 1) / 2) * 0.62
            position[node] = position[switch] + (distance + 0.6 * row) * outward + offset * sideways


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


def _render(drawing: Drawing, title: str, out: Path) -> None:
    from matplotlib.figure import Figure

    low, high = drawing.position.min(axis=0) - 0.9, drawing.position.max(axis=0) + 0.9
    span = np.maximum(high - low, 1.0)
    scale = min(1.0, LARGEST_INCHES / float(span.max() * INCHES_PER_UNIT))
    wide, tall = np.maximum(span * INCHES_PER_UNIT * scale, (4.5, 1.8))
    figure = Figure(figsize=(wide + (1.5 if drawing.rows else 0.3), tall + 1.6), layout="constrained")
    axes = figure.add_subplot(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set_axis_off()
    axes.set_aspect("equal")
    handles = _draw_lines(axes, drawing, scale) + _draw_vertices(axes, drawing, scale)
    for height, text in drawing.rows:
        axes.text(low[0], height, text, ha="right", va="center", fontsize=9)
    figure.suptitle(f"{title}\n{drawing.note}" if drawing.note else title, fontsize=10)
    columns = min(max(2, int(wide / 2.2)), len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=110, metadata={"Date": None} if out.suffix == ".svg" else None)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): choose another --out") from None


def _draw_lines(axes: Any, drawing: Drawing, scale: float) -> list[Any]:
    """All lines by class (kind, capacity), one of each labelled; returns a legend entry per class."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch

    graph, handles = drawing.graph, []
    taken = [np.array(place) for place in drawing.position]  # where a label would cover something
    slowest = float(graph.bytes_per_s.min()) if len(graph.ends) else 1.0
    classes = np.unique(np.stack([drawing.kind, np.round(graph.bytes_per_s), graph.cables], axis=1), axis=0)
    for kind, capacity, cables in classes:
        chosen = (drawing.kind == kind) & (np.round(graph.bytes_per_s) == capacity) & (graph.cables == cables)
        colour = KIND_COLOURS[int(kind) % len(KIND_COLOURS)]
        width = min(3.5, 0.7 * math.sqrt(capacity / slowest)) * max(0.45, scale)
        straight, bowed = np.flatnonzero(chosen & ~drawing.bows), np.flatnonzero(chosen & drawing.bows)
        thin = 1.0 if len(straight) < 150 else 0.55
        segments = drawing.position[graph.ends[straight]]
        axes.add_collection(LineCollection(list(segments), colors=colour, linewidths=width, alpha=thin, zorder=1))
        for line in bowed:
            start, end = drawing.position[graph.ends[line]]
            axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-", connectionstyle="arc3,rad=0.22", color=colour,
                                           linewidth=width, alpha=0.8, zorder=0.9))  # fmt: skip
        each = with_unit(float(capacity / cables), "B/s")
        text = f"{int(cables)} x {each}" if cables > 1 else each
        name = f"{drawing.kinds[int(kind)]}: {text}"
        handles.append(Line2D([], [], color=colour, linewidth=max(1.2, width), label=name))
        _label_one(axes, drawing.position[graph.ends[straight if len(straight) else bowed]], text, colour, taken)
    return handles


def _label_one(
    axes: Any, ends: NDArray[np.float64], text: str, colour: str, taken: list[NDArray[np.float64]]
) -> None:  # fmt: skip
    """The capacity along the line of a class that is longest and least hidden. ends: [lines, 2, 2]; taken: places."""
    middles = ends.mean(axis=1)
    lengths = np.hypot(*(ends[:, 1] - ends[:, 0]).T)
    crowd = np.array(taken)
    room = np.array([np.hypot(*(crowd - middle).T).min() for middle in middles])
    apart = np.ones(len(middles))
    if 1 < len(middles) <= 400:
        gaps = np.hypot(*(middles[:, None] - middles[None]).transpose(2, 0, 1)) + np.diag(np.full(len(middles), 9.0))
        apart = gaps.min(axis=1)
    score = np.minimum(lengths, 4.0) + 2 * np.minimum(room, 1.2) + 2 * np.minimum(apart, 0.5)
    line = int(np.argmax(score.round(6)))
    start, end = ends[line]
    angle = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
    angle = angle - 180 if angle > 90 else angle + 180 if angle < -90 else angle
    taken.append(middles[line])
    axes.text(
        *middles[line], text, color=colour, fontsize=7.5, ha="center", va="center", rotation=angle,
        rotation_mode="anchor", zorder=2, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9},
    )  # fmt: skip


def _draw_vertices(axes: Any, drawing: Drawing, scale: float) -> list[Any]:
    """Nodes as squares, switches as circles, a group's spines as one box, numbers inside; returns legend entries."""
    from matplotlib.lines import Line2D

    graph = drawing.graph
    size = max(3.5, 7.5 * scale)
    for vertex, (x, y) in enumerate(drawing.position):
        label = drawing.labels[vertex]
        is_node = vertex < graph.node_count
        empty = drawing.empty is not None and bool(drawing.empty[vertex])
        face = EMPTY_COLOUR if empty else NODE_COLOUR if is_node else SWITCH_COLOUR
        style = "square,pad=0.25" if is_node else "round,pad=0.3" if len(label) > 3 else "circle,pad=0.22"
        axes.text(x, y, label or " ", ha="center", va="center", fontsize=size, zorder=3,
                  bbox={"boxstyle": style, "facecolor": face, "edgecolor": "#555555", "linewidth": 0.7})  # fmt: skip
    has_switches = graph.num_vertices > graph.node_count
    marks = [("s", NODE_COLOUR, "node"), *([("o", SWITCH_COLOUR, "switch")] if has_switches else [])]
    return [Line2D([], [], linestyle="", marker=mark, markersize=8, markerfacecolor=colour, markeredgecolor="#555555",
                   label=name) for mark, colour, name in marks]  # fmt: skip
