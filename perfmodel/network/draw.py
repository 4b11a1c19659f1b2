"""Pictures of small fabrics: nodes, switches and every link with its capacity, as one offline SVG, PNG or PDF.

It owns the drawing of placed vertices and lines. It does not own where they are (``draw_layout``) nor any topology:
what is drawn are the links of the built fabric, both directions of a cable as one line, all NICs of a node as one box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError
from perfmodel.machine import FabricDescription, Machine
from perfmodel.network.catalogue import with_unit
from perfmodel.network.draw_layout import Drawing, count_of, lay_out
from perfmodel.network.fabric import build_fabric
from perfmodel.network.kinds import wrong_kinds

KIND_COLOURS = ("#7a7a7a", "#1f78b4", "#e66101", "#33a02c", "#8e44ad", "#222222", "#c2185b")
NODE_COLOUR, SWITCH_COLOUR, EMPTY_COLOUR = "#fdf3d8", "#dbe9f6", "#f2f2f2"
LARGEST_INCHES = 22.0
INCHES_PER_UNIT = 0.62
FAMILY_NAMES = {
    "single_switch": "single switch", "fat_tree": "fat tree", "rail_optimised": "rail-optimised tree",
    "dragonfly_plus": "dragonfly+", "tofu_d": "Tofu-D",
}  # fmt: skip


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
    title = f"{machine.name}: {family}, {count_of(num_nodes, 'node')} of {count_of(nics, 'NIC')}"
    subtitle = f"a model with {changed}" if changed else "the part of the machine that they need"
    _render(drawing, f"{title}\n{subtitle}; capacities per direction", out)
    return drawing.graph.num_vertices - drawing.graph.node_count, len(drawing.graph.ends)


def _shown(description: FabricDescription) -> dict[str, Any]:
    """The numbers to build by: trees with their single switches instead of the sum of what is spread over."""
    trees = ("fat_tree", "rail_optimised")
    return {**description.numbers, "routing": "d-mod-k"} if description.family in trees else dict(description.numbers)


def _short(value: Any) -> str:
    return "x".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)


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
    score = np.minimum(lengths, 4.0) + 2 * np.minimum(room, 1.2) + 4 * np.minimum(apart, 0.8)
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
