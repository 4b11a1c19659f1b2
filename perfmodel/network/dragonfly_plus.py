"""Dragonfly+: groups of leaf and spine switches, every spine joined to the spines of other groups.

It owns the InfiniBand kind of dragonfly (Shpiner et al. 2017, 10.1109/HiPINEB.2017.11): Leonardo, JUPITER. It does not
own fully joined groups (``dragonfly``) nor static routing over single spines: messages spread evenly over a group's
spines, which are therefore one vertex here, and the cables of a leaf, or of a pair of groups, one link.
"""

from __future__ import annotations

import math

import numpy as np

from perfmodel.network.dragonfly import ROUTINGS, minimal_part
from perfmodel.network.fabric import Crossing, Fabric, Ints, port_bundles, require


class DragonflyPlus(Fabric):
    """The part of a dragonfly+ that num_ports ports need: their leaves, and all groups where they fill several.

    groups, leaves_per_group, ports_per_leaf, spines_per_group: of the whole machine. links_per_group_pair: cables
    between any two groups, over all spines. port_bytes_per_s, leaf_bytes_per_s, global_bytes_per_s: of one cable of a
    port, between a leaf and a spine, between groups (default: a port's). leaf_cables: parallel cables of each leaf to
    each spine. routing, minimal_share and paths as of Dragonfly; a detour passes one spine of a third group.
    """

    family = "dragonfly_plus"

    def __init__(
        self,
        *,
        num_ports: int,
        groups: int,
        leaves_per_group: int,
        ports_per_leaf: int,
        spines_per_group: int,
        links_per_group_pair: int,
        port_bytes_per_s: float,
        leaf_bytes_per_s: float | None = None,
        global_bytes_per_s: float | None = None,
        leaf_cables: int = 1,
        routing: str = "adaptive",
        minimal_share: float | None = None,
        paths: int = 4,
        wire_latency_s: float = 0.0,
        global_wire_latency_s: float | None = None,
        switch_latency_s: float = 0.0,
    ) -> None:
        name, self._per_group = self.family, leaves_per_group * ports_per_leaf
        counts = (num_ports, groups, leaves_per_group, ports_per_leaf, spines_per_group, links_per_group_pair)
        require(name, min(*counts, leaf_cables) >= 1, "all counts must be at least 1")
        require(name, routing in ROUTINGS, f"routing {routing!r}: choose {', '.join(ROUTINGS)}")
        fits = minimal_share is None or 0 <= minimal_share <= 1
        require(name, fits, f"minimal_share is {minimal_share}: it must be between 0 and 1")
        room = groups * self._per_group
        require(name, num_ports <= room, f"{num_ports} ports on {groups} groups with room for {room}")
        require(name, port_bytes_per_s > 0, f"port_bytes_per_s is {port_bytes_per_s}: it must be above 0")
        self._direct = minimal_part(routing, minimal_share)(groups)
        self._ports_per_leaf, self._paths = ports_per_leaf, paths
        self._used = -(-num_ports // self._per_group)
        self._groups = self._used if routing == "minimal" or self._used == 1 else groups
        self._leaves = -(-num_ports // ports_per_leaf)
        self._leaves_per_group = leaves_per_group
        ports, leaves = np.arange(num_ports), np.arange(self._leaves)
        self._first_group = num_ports + self._leaves
        core = self._first_group + leaves // leaves_per_group
        hop_s = wire_latency_s + switch_latency_s
        far_s = (wire_latency_s if global_wire_latency_s is None else global_wire_latency_s) + switch_latency_s
        bundles = port_bundles(
            num_ports, num_ports + ports // ports_per_leaf, port_bytes_per_s, wire_latency_s, switch_latency_s
        )
        up = (leaf_bytes_per_s or port_bytes_per_s) * leaf_cables * spines_per_group
        bundles += [(num_ports + leaves, core, up, hop_s), (core, num_ports + leaves, up, hop_s)]
        between = (global_bytes_per_s or port_bytes_per_s) * links_per_group_pair
        bundles.append((*self._global_ends(), between, far_s))
        super().__init__(num_ports, bundles)
        self.looks_alike = num_ports <= ports_per_leaf

    def _global_ends(self) -> tuple[Ints, Ints]:
        """Links between groups, by group and how many groups further on the target is."""
        group, further = (axis.ravel() for axis in np.indices((self._groups, max(self._groups - 1, 0))))
        return self._first_group + group, self._first_group + (group + further + 1) % self._groups

    def _global(self, group: Ints, other: Ints) -> Ints:
        first = 2 * self.num_ports + 2 * self._leaves
        return first + group * (self._groups - 1) + (other - group - 1) % self._groups

    def crossings(self, source: Ints, target: Ints) -> list[Crossing]:
        here, there = source // self._ports_per_leaf, target // self._ports_per_leaf
        rises = np.flatnonzero(here != there)
        group, goal = here // self._leaves_per_group, there // self._leaves_per_group
        far = np.flatnonzero(group != goal)
        up = 2 * self.num_ports
        parts: list[Crossing] = [(rises, up + here[rises], 1.0)]
        parts += self._between(far, group[far], goal[far], source[far])
        parts.append((rises, up + self._leaves + there[rises], 1.0))
        return parts

    def _between(self, message: Ints, group: Ints, goal: Ints, turn: Ints) -> list[Crossing]:
        others = self._groups - 2
        direct = self._direct if others > 0 else 1.0
        parts: list[Crossing] = [(message, self._global(group, goal), direct)] if direct > 0 else []
        used = min(self._paths or others, others) if direct < 1 else 0
        for path in range(used):
            low, high = np.minimum(group, goal), np.maximum(group, goal)
            middle = (turn + path * others // used) % others
            middle = middle + (middle >= low)
            middle = middle + (middle >= high)
            share = (1 - direct) / used
            parts += [(message, self._global(group, middle), share), (message, self._global(middle, goal), share)]
        return parts

    def bisection_bytes_per_s(self, ports: Ints | None = None) -> float:
        """Smallest cut between the halves of the ports, over the sides that middle leaf and groups can take."""
        first, second = self._halves(ports)
        if not len(first):
            return math.inf
        last, following = int(first[-1]), int(second[0])
        leaves, groups = np.arange(self._leaves), np.arange(self._groups)
        sides = []
        for leaf in {last // self._ports_per_leaf + 1, following // self._ports_per_leaf}:
            for group in {last // self._per_group + 1, following // self._per_group}:
                for detours in (False, True):
                    on_first = (groups < group) | (detours & (groups >= self._used))
                    sides.append(np.concatenate([leaves < leaf, on_first]))
        return self._cut_between(first, second, sides)
