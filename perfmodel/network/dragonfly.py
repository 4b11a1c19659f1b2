"""Dragonflies of fully joined groups (Slingshot, Aries-like), with minimal, Valiant and mixed routes.

It owns links and routes of the one kind of group in which every switch is joined to every other (Kim et al. 2008,
10.1109/ISCA.2008.19). It does not own leaf-spine groups (``dragonfly_plus``) nor adaptive routing's dynamics.
"""

from __future__ import annotations

import math

import numpy as np

from perfmodel.network.fabric import Crossing, Fabric, Floats, Ints, port_bundles, require

Hop = tuple[Ints, Floats | float]  # link of every message (-1: none), share
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

    def _local(self, switch: Ints, other: Ints) -> Ints:
        """The link between two switches (numbers over all groups) of one group; -1 where they are the same."""
        further = (other - switch - 1) % self._switches
        return np.where(switch == other, -1, self._first_local + switch * (self._switches - 1) + further)

    def _global(self, group: Ints, other: Ints, cable: Ints) -> Ints:
        further = (other - group - 1) % self._groups
        return self._first_global + (group * (self._groups - 1) + further) * self._cables + cable

    def crossings(self, source: Ints, target: Ints) -> list[Crossing]:
        here, there = source // self._ports_per_switch, target // self._ports_per_switch
        inside = here // self._switches == there // self._switches
        near, far = np.flatnonzero(inside & (here != there)), np.flatnonzero(~inside)
        turn = source % self._ports_per_switch
        hops = self._inside(here[near], there[near], turn[near]) if len(near) else []
        parts = [_part(near, link, share) for link, share in hops]
        hops = self._between(here[far], there[far], turn[far]) if len(far) else []
        return parts + [_part(far, link, share) for link, share in hops]

    def _inside(self, here: Ints, there: Ints, turn: Ints) -> list[Hop]:
        """Between two switches of one group: straight, and through others of its switches."""
        others = self._switches - 2
        direct = self._direct if others > 0 else 1.0
        used = min(self._paths or others, others) if direct < 1 else 0
        group, a, b = here // self._switches, here % self._switches, there % self._switches
        hops: list[Hop] = [(self._local(here, there), direct)] if direct > 0 else []
        for path in range(used):
            middle = group * self._switches + _skip((turn * used + path + a + b) % others, a, b)
            share = (1 - direct) / used
            hops += [(self._local(here, middle), share), (self._local(middle, there), share)]
        return hops

    def _between(self, here: Ints, there: Ints, turn: Ints) -> list[Hop]:
        """Between two groups: over their own cables, and through other groups."""
        others = self._groups - 2
        direct = self._direct if others > 0 else 1.0
        group, goal = here // self._switches, there // self._switches
        leaving: list[Hop] = []
        far: list[Hop] = []
        arriving: list[Hop] = []
        straight = min(self._paths or self._cables, self._cables) if direct > 0 else 0
        for path in range(straight):
            share = direct / straight
            leave, link, end = self._cross(here, goal, here + there + turn * straight + path)
            leaving.append((leave, share))
            far.append((link, share))
            arriving.append((self._local(end, there), share))
        used = min(self._paths or others, others) if direct < 1 else 0
        for path in range(used):
            share = (1 - direct) / used
            spin = turn * used + path
            middle = _skip((spin + here + there) % others, group, goal)
            leave, first, at = self._cross(here, middle, spin + here)
            turning, second, end = self._cross(at, goal, spin + there)
            leaving.append((leave, share))
            far += [(first, share), (turning, share), (second, share)]
            arriving.append((self._local(end, there), share))
        return [*_merged(leaving), *far, *_merged(arriving)]

    def _cross(self, here: Ints, other: Ints, turn: Ints) -> tuple[Ints, Ints, Ints]:
        """From switches to another group by one cable, chosen by turns: local link, cable, switch where it ends."""
        group, cable = here // self._switches, turn % self._cables
        leave = group * self._switches + self._gateway(group, other, cable)
        end = other * self._switches + self._gateway(other, group, cable)
        return self._local(here, leave), self._global(group, other, cable), end

    def bisection_bytes_per_s(self, ports: Ints | None = None) -> float:
        """Smallest cut into halves of the ports in their order, with the groups for detours on either side."""
        first, second = self._halves(ports)
        if not len(first):
            return math.inf
        switches = np.arange(self.num_vertices - self.num_ports)
        detour = switches >= self._used * self._switches
        edges = {int(first[-1]) // self._ports_per_switch + 1, int(second[0]) // self._ports_per_switch}
        sides = [switches < edge for edge in edges]
        return self._cut_between(first, second, [*sides, *(side | detour for side in sides)])


def _part(messages: Ints, link: Ints, share: Floats | float) -> Crossing:
    """Crossings of those messages that have a link (not -1) and a share there."""
    kept = np.flatnonzero((link >= 0) & (np.asarray(share) > 0))
    return messages[kept], link[kept], share[kept] if isinstance(share, np.ndarray) else share


def _merged(hops: list[Hop]) -> list[Hop]:
    """Hops of several paths with the shares of equal links added up on the first of them."""
    links = [link for link, _ in hops]
    shares = [np.full(len(link), share) for link, share in hops]
    for later in range(1, len(hops)):
        for earlier in range(later):
            same = np.flatnonzero(links[later] == links[earlier])
            shares[earlier][same] += shares[later][same]
            shares[later][same] = 0.0
    return list(zip(links, shares, strict=True))


def _skip(index: Ints, a: Ints, b: Ints) -> Ints:
    """The index-th whole number that is neither a nor b (a != b)."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    index = index + (index >= low)
    return index + (index >= high)
