"""Dragonflies of fully joined groups (Slingshot, Aries-like), with minimal, Valiant and mixed routes.

It owns links and routes of the one kind of group in which every switch is joined to every other (Kim et al. 2008,
10.1109/ISCA.2008.19). It does not own leaf-spine groups (``dragonfly_plus``) nor adaptive routing's dynamics.
"""

from __future__ import annotations

import math

import numpy as np

from perfmodel.network.fabric import Crossing, Fabric, Floats, Ints, port_bundles, require

ROUTINGS = ("minimal", "valiant", "adaptive")


class Dragonfly(Fabric):
    """The part of a dragonfly that num_ports ports need: their groups, and groups for detours without ports.

    groups, switches_per_group, ports_per_switch: of the whole machine. links_per_group_pair: cables between any two
    groups; cable k to the j-th next group is on switch (j n + k) mod a of a switches (consecutive arrangement).
    local_bytes_per_s, global_bytes_per_s: of one cable, per direction (default: a port's). local_cables: parallel
    cables between two switches of a group. paths: over how many of a pair's cables, and how many detours, one message
    spreads (0: all); which ones follows from source and target, so that all are loaded evenly.

    routing: "minimal" takes the direct way. "valiant" goes through another group (inside a group: through another
    switch; minimal where there is none). "adaptive" is a fixed mixture: minimal_share of the bytes minimal, the rest
    valiant; what UGAL would settle on depends on the load and is not modelled (assumed: the default share).
    """

    family = "dragonfly"

    def __init__(
        self,
        *,
        num_ports: int,
        groups: int,
        switches_per_group: int,
        ports_per_switch: int,
        links_per_group_pair: int,
        port_bytes_per_s: float,
        local_bytes_per_s: float | None = None,
        global_bytes_per_s: float | None = None,
        local_cables: int = 1,
        routing: str = "adaptive",
        minimal_share: float = 0.5,
        paths: int = 4,
        wire_latency_s: float = 0.0,
        global_wire_latency_s: float | None = None,
        switch_latency_s: float = 0.0,
    ) -> None:
        name, self._per_group = self.family, switches_per_group * ports_per_switch
        counts = (num_ports, groups, switches_per_group, ports_per_switch, links_per_group_pair, local_cables)
        require(name, min(counts) >= 1, "all counts must be at least 1")
        require(name, routing in ROUTINGS, f"routing {routing!r}: choose {', '.join(ROUTINGS)}")
        require(name, 0 <= minimal_share <= 1, f"minimal_share is {minimal_share}: it must be between 0 and 1")
        room = groups * self._per_group
        require(name, num_ports <= room, f"{num_ports} ports on {groups} groups with room for {room}")
        require(name, port_bytes_per_s > 0, f"port_bytes_per_s is {port_bytes_per_s}: it must be above 0")
        self._direct = {"minimal": 1.0, "valiant": 0.0, "adaptive": minimal_share}[routing]
        self._switches, self._ports_per_switch, self._cables = (
            switches_per_group,
            ports_per_switch,
            links_per_group_pair,
        )
        self._all_groups, self._paths = groups, paths
        self._used = -(-num_ports // self._per_group)
        detours = 0 if routing == "minimal" or self._used == 1 else (paths or groups)
        self._groups = min(groups, self._used + detours)
        ports = np.arange(num_ports)
        hop_s = wire_latency_s + switch_latency_s
        far_s = (wire_latency_s if global_wire_latency_s is None else global_wire_latency_s) + switch_latency_s
        bundles = port_bundles(
            num_ports, num_ports + ports // ports_per_switch, port_bytes_per_s, wire_latency_s, switch_latency_s
        )
        bundles.append((*self._local_ends(num_ports), (local_bytes_per_s or port_bytes_per_s) * local_cables, hop_s))
        bundles.append((*self._global_ends(num_ports), global_bytes_per_s or port_bytes_per_s, far_s))
        self._first_local = 2 * num_ports
        self._first_global = self._first_local + len(bundles[2][0])
        super().__init__(num_ports, bundles)
        self.looks_alike = num_ports <= ports_per_switch

    def _local_ends(self, first_switch: int) -> tuple[Ints, Ints]:
        """Links inside groups, by group, switch and how many switches further on the target is."""
        shape = (self._groups, self._switches, max(self._switches - 1, 0))
        group, switch, further = (axis.ravel() for axis in np.indices(shape))
        first = first_switch + group * self._switches
        return first + switch, first + (switch + further + 1) % self._switches

    def _global_ends(self, first_switch: int) -> tuple[Ints, Ints]:
        """Links between groups, by group, how many groups further on the target is, and cable."""
        shape = (self._groups, max(self._groups - 1, 0), self._cables)
        group, further, cable = (axis.ravel() for axis in np.indices(shape))
        other = (group + further + 1) % self._groups
        leaving = group * self._switches + self._gateway(group, other, cable)
        arriving = other * self._switches + self._gateway(other, group, cable)
        return first_switch + leaving, first_switch + arriving

    def _gateway(self, group: Ints, other: Ints, cable: Ints) -> Ints:
        """Switch (within ``group``) that holds the cable to ``other``."""
        further = (other - group - 1) % self._all_groups
        return (further * self._cables + cable) % self._switches

    def _local(self, message: Ints, switch: Ints, other: Ints, share: Floats) -> Crossing:
        """Hops between two switches (numbers over all groups) of one group; nothing where they are the same."""
        moves = np.flatnonzero(switch != other)
        switch, other = switch[moves], other[moves]
        further = (other - switch - 1) % self._switches
        return message[moves], self._first_local + switch * (self._switches - 1) + further, share[moves]

    def _global(self, message: Ints, group: Ints, other: Ints, cable: Ints, share: Floats) -> Crossing:
        further = (other - group - 1) % self._groups
        link = self._first_global + (group * (self._groups - 1) + further) * self._cables + cable
        return message, link, share

    def crossings(self, source: Ints, target: Ints) -> list[Crossing]:
        here, there = source // self._ports_per_switch, target // self._ports_per_switch
        inside = here // self._switches == there // self._switches
        near, far = np.flatnonzero(inside & (here != there)), np.flatnonzero(~inside)
        turn = source % self._ports_per_switch
        parts = self._inside_parts(near, here[near], there[near], turn[near]) if len(near) else []
        return parts + (self._between_parts(far, here[far], there[far], turn[far]) if len(far) else [])

    def _inside_parts(self, message: Ints, here: Ints, there: Ints, turn: Ints) -> list[Crossing]:
        others = self._switches - 2
        direct = self._direct if others > 0 else 1.0
        parts = [self._local(message, here, there, np.full(len(message), direct))]
        used = min(self._paths or others, others)
        for path in range(used if direct < 1 else 0):
            share = np.full(len(message), (1 - direct) / used)
            middle = self._other_than(here, there, turn * used + path)
            parts += [self._local(message, here, middle, share), self._local(message, middle, there, share)]
        return parts

    def _other_than(self, here: Ints, there: Ints, turn: Ints) -> Ints:
        """A switch of the group that is neither of two, by turns. All are numbers over all groups."""
        group, a, b = here // self._switches, here % self._switches, there % self._switches
        return group * self._switches + _skip((turn + a + b) % (self._switches - 2), a, b)

    def _between_parts(self, message: Ints, here: Ints, there: Ints, turn: Ints) -> list[Crossing]:
        others = self._groups - 2
        direct = self._direct if others > 0 else 1.0
        cables = min(self._paths or self._cables, self._cables)
        parts: list[Crossing] = []
        for path in range(cables if direct > 0 else 0):
            share = np.full(len(message), direct / cables)
            end, more = self._cross(message, here, there // self._switches, here + there + turn * cables + path, share)
            parts += [*more, self._local(message, end, there, share)]
        used = min(self._paths or others, others)
        group, goal = here // self._switches, there // self._switches
        for path in range(used if direct < 1 else 0):
            share = np.full(len(message), (1 - direct) / used)
            spin = turn * used + path
            middle = _skip((spin + here + there) % others, group, goal)
            at, first = self._cross(message, here, middle, spin + here, share)
            end, second = self._cross(message, at, goal, spin + there, share)
            parts += [*first, *second, self._local(message, end, there, share)]
        return parts

    def _cross(self, message: Ints, here: Ints, other: Ints, turn: Ints, share: Floats) -> tuple[Ints, list[Crossing]]:
        """From switches to another group over one cable, chosen by turns: where that ends, and what it crosses."""
        group, cable = here // self._switches, turn % self._cables
        leave = group * self._switches + self._gateway(group, other, cable)
        end = other * self._switches + self._gateway(other, group, cable)
        return end, [
            self._local(message, here, leave, share),
            self._global(message, group, other, cable, share),
        ]

    def bisection_bytes_per_s(self) -> float:
        """Smaller of two cuts into halves of the ports: with the detour groups on one side, and on the other."""
        if self.num_ports < 2:
            return math.inf
        half = self.num_ports // 2
        ports = half * float(self.capacity_bytes_per_s[0])
        side = np.zeros(self.num_vertices, dtype=bool)
        side[:half] = True
        side[self.num_ports : self.num_ports + -(-half // self._ports_per_switch)] = True
        first = self.cut_bytes_per_s(side)
        side[self.num_ports + self._used * self._switches :] = True
        return min(ports, first, self.cut_bytes_per_s(side))


def _skip(index: Ints, a: Ints, b: Ints) -> Ints:
    """The index-th whole number that is neither a nor b (a != b)."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    index = index + (index >= low)
    return index + (index >= high)
