"""k-level fat trees, tapered, in planes and rails, and the rail-optimised tree of GPU clusters.

It owns the trees' links and their routes, static or spread. It does not own adaptive routing's dynamics: "spread" is
its ideal.

A tree is an extended generalised fat tree XGFT(h; m1..mh; w1..wh) (Ohring et al. 1995, 10.1109/IPPS.1995.395925): a
switch of level l has m_l children and w_(l+1) parents. A subtree of level l holds M_l = m1..ml ports and has
W_l = w1..wl switches at its top. d-mod-k routing (Zahavi 2012, 10.1002/cpe.1777): at level l a message to port d goes
up through parent floor(d / W_l) mod w_(l+1), so that on a full tree every shift of the ports is free of contention.
"spread": every message divides evenly over all shortest paths; then all W_(l+1) uplinks of a subtree carry the same
and are one link here (exact, not an approximation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.fabric import Crossing, Fabric, Floats, Ints, require

ROUTINGS = ("spread", "d-mod-k")


class FatTree(Fabric):
    """The part of a fat tree that num_ports ports need (levels above the one where all meet are not built).

    children, parents: per level from the ports up; parents[0] is 1 (a port has one leaf switch; see planes). cables:
    parallel cables per link and level (default 1). link_bytes_per_s: of one cable, per direction. taper: bytes in from
    below over bytes out above, of a switch: a number for the leaf switches (1 above), or one per level that has a level
    above; it sets the uplinks' capacity in place of cables. planes: copies of the tree that every port is joined to and
    every message is striped over; being alike, they are one tree of so many times the capacity. rails: copies of which
    port p has the one of number p % rails. routing: "spread" or "d-mod-k". Latencies: of one cable, of one switch.
    """

    family = "fat_tree"

    def __init__(
        self,
        *,
        num_ports: int,
        children: Sequence[int] | int,
        link_bytes_per_s: float,
        parents: Sequence[int] | int | None = None,
        cables: Sequence[int] | int | None = None,
        taper: float | Sequence[float] | None = None,
        planes: int = 1,
        rails: int = 1,
        routing: str = "spread",
        wire_latency_s: float = 0.0,
        switch_latency_s: float = 0.0,
    ) -> None:
        down = _per_level(children, None, 1)
        up, width = _per_level(parents, len(down), 1), _per_level(cables, len(down), 1)
        self._check(num_ports, down, up, width, planes, rails, routing)
        require(self.family, link_bytes_per_s > 0, f"link_bytes_per_s is {link_bytes_per_s}: it must be above 0")
        self.rails, self.routing = rails, routing
        extent = int(self._place(np.arange(num_ports)).max()) + 1
        sizes = list(accumulate(down, mul))
        require(self.family, extent <= sizes[-1], f"{num_ports} ports need {extent} places per rail, the tree has "
                f"{sizes[-1]}: add children or ask for fewer nodes")  # fmt: skip
        self.height = next(level for level, size in enumerate(sizes, 1) if size >= extent)
        down, up = down[: self.height], up[: self.height]
        each = _capacities(down, up, width, link_bytes_per_s * planes, _tapers(self.family, taper, len(sizes)))
        if routing == "spread":
            each = [capacity * total for capacity, total in zip(each, accumulate(up, mul), strict=True)]
            up = [1] * self.height
        self._up = up
        self._ports_below = [1, *accumulate(down, mul)]
        self._tops = [1, *accumulate(up, mul)]
        self._subtrees = [-(-extent // size) for size in self._ports_below]
        super().__init__(num_ports, self._bundles(num_ports, each, wire_latency_s, switch_latency_s))
        self.looks_alike = self.height == 1 and rails == 1

    def _check(
        self, num_ports: int, down: list[int], up: list[int], width: list[int], planes: int, rails: int, routing: str
    ) -> None:
        name = self.family
        require(name, len(down) == len(up) == len(width), f"{len(down)} children, {len(up)} parents and {len(width)} "
                "cables: give one of each per level")  # fmt: skip
        require(name, min(*down, *up, *width, planes, rails, num_ports) >= 1, "all counts must be at least 1")
        require(name, up[0] == 1, f"parents[0] is {up[0]}: a port has one leaf switch; use planes for more")
        require(name, routing in ROUTINGS, f"routing {routing!r}: choose {' or '.join(ROUTINGS)}")

    def _bundles(
        self, num_ports: int, each: list[float], wire_s: float, switch_s: float
    ) -> list[tuple[Ints, Ints, Floats | float, Floats | float]]:
        """Ports' links, then per level the links up and the links down."""
        self._first_switch, self._first_link = [0], [0]
        vertex = num_ports
        for level in range(1, self.height + 1):
            self._first_switch.append(vertex)
            vertex += self.rails * self._subtrees[level] * self._tops[level]
        ports = np.arange(num_ports)
        leaf = self._switch(1, ports % self.rails, self._place(ports), np.zeros_like(ports))
        bundles: list[tuple[Ints, Ints, Floats | float, Floats | float]] = [
            (ports, leaf, each[0], wire_s + switch_s),
            (leaf, ports, each[0], wire_s),
        ]
        link = 2 * num_ports
        for level in range(1, self.height):
            lower, upper = self._ends(level)
            self._first_link.append(link)
            link += 2 * len(lower)
            bundles += [(lower, upper, each[level], wire_s + switch_s), (upper, lower, each[level], wire_s + switch_s)]
        return bundles

    def _ends(self, level: int) -> tuple[Ints, Ints]:
        """Lower and upper vertices of the links from ``level`` to the next, in the order of their numbers."""
        shape = (self.rails, self._subtrees[level], self._tops[level], self._up[level])
        rail, subtree, top, parent = (axis.ravel() for axis in np.indices(shape))
        first = subtree * self._ports_below[level]
        lower = self._switch(level, rail, first, top)
        return lower, self._switch(level + 1, rail, first, top + parent * self._tops[level])

    def _place(self, port: Ints) -> Ints:
        """Position of ports among those of their rail, in the order in which the tree's leaves are filled."""
        return port // self.rails

    def _switch(self, level: int, rail: Ints, place: Ints, top: Ints) -> Ints:
        subtree = rail * self._subtrees[level] + place // self._ports_below[level]
        return self._first_switch[level] + subtree * self._tops[level] + top

    def _uplink(self, level: int, rail: Ints, place: Ints, target: Ints) -> Ints:
        """The link up from ``level`` out of the subtree of ``place`` on the way to ``target``."""
        subtree = rail * self._subtrees[level] + place // self._ports_below[level]
        parent = target // self._tops[level] % self._up[level]
        return (
            self._first_link[level]
            + (subtree * self._tops[level] + target % self._tops[level]) * self._up[level]
            + parent
        )

    def crossings(self, source: Ints, target: Ints) -> list[Crossing]:
        rail, here, there = source % self.rails, self._place(source), self._place(target)
        ups: list[Crossing] = []
        downs: list[Crossing] = []
        for level in range(1, self.height):
            size = self._ports_below[level]
            message = np.flatnonzero(here // size != there // size)
            links = self.rails * self._subtrees[level] * self._tops[level] * self._up[level]
            ups.append((message, self._uplink(level, rail[message], here[message], there[message]), 1.0))
            down = self._uplink(level, rail[message], there[message], there[message]) + links
            downs.append((message, down, 1.0))
        return ups + downs[::-1]

    def bisection_bytes_per_s(self, ports: Ints | None = None) -> float:
        """Smallest cut between the first and the second half of the ports, as the tree is filled (exact: a tree)."""
        chosen = np.arange(self.num_ports) if ports is None else np.unique(ports)
        if len(chosen) < 2:
            return math.inf
        chosen = chosen[np.argsort(self._place(chosen), kind="stable")]
        first_half = np.arange(len(chosen)) < len(chosen) // 2
        members = [chosen % self.rails == rail for rail in range(self.rails)]
        return sum(self._smallest_cut(first_half[one], self._place(chosen[one])) for one in members if one.any())

    def _smallest_cut(self, first_half: NDArray[np.bool_], place: Ints) -> float:
        """Least capacity between two sets of one rail's ports: dynamic programming from the leaves to the root."""
        here = np.where(first_half, 0.0, math.inf)  # cost of a subtree whose top is on the first half's side
        there = np.where(first_half, math.inf, 0.0)
        parent = place // self._ports_below[1]
        capacity = float(self.capacity_bytes_per_s[0])
        for level in range(1, self.height + 1):
            count = int(parent.max()) + 1
            here, there = (
                np.bincount(parent, weights=np.minimum(here, there + capacity), minlength=count),
                np.bincount(parent, weights=np.minimum(there, here + capacity), minlength=count),
            )
            if level < self.height:
                capacity = float(self.capacity_bytes_per_s[self._first_link[level]]) * self._tops[level + 1]
                parent = np.arange(count) * self._ports_below[level] // self._ports_below[level + 1]
        return float(min(here.min(), there.min()))


class RailOptimised(FatTree):
    """A tree whose leaf switches each hold one rail: NIC r of all nodes of a unit meets on one leaf switch.

    unit_nodes: nodes of a scalable unit (32 in a DGX SuperPOD: NVIDIA reference architecture, 2023). nics_per_node:
    rails, here joined above the leaves. children[0] is unit_nodes; the others as of FatTree.
    """

    family = "rail_optimised"

    def __init__(
        self,
        *,
        num_ports: int,
        nics_per_node: int,
        unit_nodes: int,
        link_bytes_per_s: float,
        children: Sequence[int] | int = (),
        parents: Sequence[int] | int | None = None,
        cables: Sequence[int] | int | None = None,
        taper: float | Sequence[float] | None = None,
        planes: int = 1,
        routing: str = "spread",
        wire_latency_s: float = 0.0,
        switch_latency_s: float = 0.0,
    ) -> None:
        require(self.family, num_ports % nics_per_node == 0, f"{num_ports} ports are no whole nodes of {nics_per_node}")
        self._unit_nodes = unit_nodes
        self._nics = nics_per_node
        super().__init__(
            num_ports=num_ports, link_bytes_per_s=link_bytes_per_s, parents=parents, cables=cables, taper=taper,
            children=(unit_nodes, *((children,) if isinstance(children, int) else children)), planes=planes,
            routing=routing, wire_latency_s=wire_latency_s, switch_latency_s=switch_latency_s,
        )  # fmt: skip

    def _place(self, port: Ints) -> Ints:
        node, rail = port // self._nics, port % self._nics
        return (node // self._unit_nodes * self._nics + rail) * self._unit_nodes + node % self._unit_nodes


def _per_level(values: Sequence[int] | int | None, levels: int | None, default: int) -> list[int]:
    if values is None:
        return [default] * (levels or 1)
    return [int(values)] if isinstance(values, int | float) else [int(value) for value in values]


def _tapers(family: str, taper: float | Sequence[float] | None, levels: int) -> list[float] | None:
    """One taper per level that has a level above, or None."""
    if taper is None:
        return None
    values = [float(taper), *[1.0] * levels] if isinstance(taper, int | float) else [float(value) for value in taper]
    require(family, len(values) >= levels - 1, f"{len(values)} tapers for {levels} levels: give {levels - 1}")
    require(family, min(values, default=1.0) > 0, "a taper must be above 0")
    return values


def _capacities(
    down: list[int], up: list[int], cables: list[int], link_bytes_per_s: float, tapers: list[float] | None
) -> list[float]:
    """Bytes/s of one link out of a port (first) and out of a switch of each level but the last."""
    each = [link_bytes_per_s * cables[0]]
    for level in range(1, len(down)):
        if tapers is None:
            each.append(link_bytes_per_s * cables[level])
        else:
            each.append(down[level - 1] * each[-1] / up[level] / tapers[level - 1])
    return each
