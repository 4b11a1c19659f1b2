"""Dragonflies of fully joined groups (Slingshot, Aries-like), with minimal, Valiant and mixed routes.

It owns links and routes of the one kind of group in which every switch is joined to every other (Kim et al. 2008,
10.1109/ISCA.2008.19). It does not own leaf-spine groups (``dragonfly_plus``) nor adaptive routing's dynamics.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from perfmodel.network.fabric import Crossing, Fabric, Floats, Ints, port_bundles, require

Hop = tuple[Ints, Floats | float]  # link of every message (-1: none), share
ROUTINGS = ("minimal", "valiant", "adaptive")


class Dragonfly(Fabric):
    """The part of a dragonfly that num_ports ports need: their group, or where they fill several, all switches.

    groups, switches_per_group, ports_per_switch: of the whole machine. links_per_group_pair: cables between any two
    groups; cable k to the j-th next group is on switch (j n + k) mod a of a switches (consecutive arrangement).
    local_bytes_per_s, global_bytes_per_s: of one cable, per direction (default: a port's). local_cables: parallel
    cables between two switches of a group. paths: over how many of a pair's cables, and how many detours, one message
    spreads (0: all); which ones follows from source and target, so that all are loaded evenly. switches_per_node: over
    how many switches in a row the nics_per_node NICs of a node are spread (NIC k on switch k mod switches_per_node).

    routing: "minimal" takes the direct way. "valiant" goes through another group (inside a group: through another
    switch; minimal where there is none). "adaptive" is a fixed mixture: minimal_share of the bytes minimal, the rest
    valiant. What adaptive routing settles on depends on the load, which routes do not know; the default of 2 / n for n
    groups (inside a group: n switches) fills direct and detour cables alike where all of a group send to one other
    (direct s, the two hops of detours 2 (1 - s) / (n - 2)). So it suits the shifts that schedules are made of and is up
    to twice too slow for evenly spread traffic, which "minimal" suits. With 4 paths the fullest link of one shift of
    1,024 to 9,408 nodes carries 1.2 to 1.4 times what it would with all (Slingshot's groups and cables).
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
        minimal_share: float | None = None,
        paths: int = 4,
        nics_per_node: int = 1,
        switches_per_node: int = 1,
        wire_latency_s: float = 0.0,
        global_wire_latency_s: float | None = None,
        switch_latency_s: float = 0.0,
    ) -> None:
        name, self._per_group = self.family, switches_per_group * ports_per_switch
        counts = (num_ports, groups, switches_per_group, ports_per_switch, links_per_group_pair, local_cables)
        require(name, min(counts) >= 1, "all counts must be at least 1")
        require(name, routing in ROUTINGS, f"routing {routing!r}: choose {', '.join(ROUTINGS)}")
        fits = minimal_share is None or 0 <= minimal_share <= 1
        require(name, fits, f"minimal_share is {minimal_share}: it must be between 0 and 1")
        self._nics, self._spread = nics_per_node, switches_per_node
        whole = not (nics_per_node % switches_per_node or switches_per_group % switches_per_node)
        whole = whole and (self._spread == 1 or switches_per_node * ports_per_switch % nics_per_node == 0)
        require(
            name, whole, f"{nics_per_node} NICs of a node on {switches_per_node} switches: they do not come out even"
        )
        room = groups * self._per_group
        require(name, num_ports <= room, f"{num_ports} ports on {groups} groups with room for {room}")
        require(name, port_bytes_per_s > 0, f"port_bytes_per_s is {port_bytes_per_s}: it must be above 0")
        self._direct = minimal_part(routing, minimal_share)
        self._switches, self._ports_per_switch, self._cables = (
            switches_per_group,
            ports_per_switch,
            links_per_group_pair,
        )
        self._all_groups, self._paths = groups, paths
        self._stride = _coprime(links_per_group_pair)
        place = self._place(np.arange(num_ports))
        self._used = int(place.max()) // self._per_group + 1
        self._groups = self._used if routing == "minimal" or self._used == 1 else groups
        hop_s = wire_latency_s + switch_latency_s
        far_s = (wire_latency_s if global_wire_latency_s is None else global_wire_latency_s) + switch_latency_s
        bundles = port_bundles(
            num_ports, num_ports + place // ports_per_switch, port_bytes_per_s, wire_latency_s, switch_latency_s
        )
        bundles.append((*self._local_ends(num_ports), (local_bytes_per_s or port_bytes_per_s) * local_cables, hop_s))
        bundles.append((*self._global_ends(num_ports), global_bytes_per_s or port_bytes_per_s, far_s))
        self._first_local = 2 * num_ports
        self._first_global = self._first_local + len(bundles[2][0])
        super().__init__(num_ports, bundles)
        self.looks_alike = num_ports <= ports_per_switch

    def _place(self, port: Ints) -> Ints:
        """Socket of ports: switch times ports per switch, plus the place on the switch."""
        if self._spread == 1:
            return port
        node, nic = port // self._nics, port % self._nics
        nodes = self._spread * self._ports_per_switch // self._nics
        switch = node // nodes * self._spread + nic % self._spread
        return switch * self._ports_per_switch + node % nodes * (self._nics // self._spread) + nic // self._spread

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
        place, goal = self._place(source), self._place(target)
        here, there = place // self._ports_per_switch, goal // self._ports_per_switch
        inside = here // self._switches == there // self._switches
        near, far = np.flatnonzero(inside & (here != there)), np.flatnonzero(~inside)
        hops = self._inside(here[near], there[near], place[near] % self._ports_per_switch) if len(near) else []
        parts = [_part(near, link, share) for link, share in hops]
        turn = place[far] % self._per_group - 2 * (goal[far] % self._per_group)  # runs through all in any shift
        hops = self._between(here[far], there[far], turn) if len(far) else []
        return parts + [_part(far, link, share) for link, share in hops]

    def _inside(self, here: Ints, there: Ints, turn: Ints) -> list[Hop]:
        """Between two switches of one group: straight, and through others of its switches."""
        others = self._switches - 2
        direct = self._direct(self._switches) if others > 0 else 1.0
        used = min(self._paths or others, others) if direct < 1 else 0
        group, a, b = here // self._switches, here % self._switches, there % self._switches
        hops: list[Hop] = [(self._local(here, there), direct)] if direct > 0 else []
        for path in range(used):
            middle = group * self._switches + _skip((turn + path * others // used + a + b) % others, a, b)
            share = (1 - direct) / used
            hops += [(self._local(here, middle), share), (self._local(middle, there), share)]
        return hops

    def _between(self, here: Ints, there: Ints, turn: Ints) -> list[Hop]:
        """Between two groups: over their own cables, and through other groups."""
        others = self._groups - 2
        direct = self._direct(self._all_groups) if others > 0 else 1.0
        group, goal = here // self._switches, there // self._switches
        leaving: list[Hop] = []
        far: list[Hop] = []
        arriving: list[Hop] = []
        straight = min(self._paths or self._cables, self._cables) if direct > 0 else 0
        for path in range(straight):
            share = direct / straight
            leave, link, end = self._cross(here, goal, (turn + path * self._cables // straight) % self._cables)
            leaving.append((leave, share))
            far.append((link, share))
            arriving.append((self._local(end, there), share))
        used = min(self._paths or others, others) if direct < 1 else 0
        for path in range(used):
            share = (1 - direct) / used
            middle = _skip((turn + path * others // used) % others, group, goal)
            shift = path * self._cables // used
            cable = (turn // others + shift) % self._cables
            onward = (self._stride * cable + turn // (others * self._cables) + shift) % self._cables
            leave, first, at = self._cross(here, middle, cable)
            turning, second, end = self._cross(at, goal, onward)
            leaving.append((leave, share))
            far += [(first, share), (turning, share), (second, share)]
            arriving.append((self._local(end, there), share))
        return [*_merged(leaving), *far, *_merged(arriving)]

    def _cross(self, here: Ints, other: Ints, cable: Ints) -> tuple[Ints, Ints, Ints]:
        """From switches to another group by one of its cables: local link, cable's link, switch where it ends."""
        group = here // self._switches
        leave = group * self._switches + self._gateway(group, other, cable)
        end = other * self._switches + self._gateway(other, group, cable)
        return self._local(here, leave), self._global(group, other, cable), end

    def bisection_bytes_per_s(self, ports: Ints | None = None) -> float:
        """Smallest cut into halves of the ports in their order, with the groups for detours on either side."""
        chosen = np.arange(self.num_ports) if ports is None else np.unique(ports)
        if len(chosen) < 2:
            return math.inf
        place = np.sort(self._place(chosen))
        chosen = chosen[np.argsort(self._place(chosen), kind="stable")]
        half = len(chosen) // 2
        switches = np.arange(self.num_vertices - self.num_ports)
        detour = switches >= self._used * self._switches
        edges = {int(place[half - 1]) // self._ports_per_switch + 1, int(place[half]) // self._ports_per_switch}
        sides = [switches < edge for edge in edges]
        return self._cut_between(chosen[:half], chosen[half:], [*sides, *(side | detour for side in sides)])


def minimal_part(routing: str, minimal_share: float | None) -> Callable[[int], float]:
    """Share of the bytes that goes the direct way, by the number of groups or switches to choose from."""
    if routing == "adaptive":
        return lambda count: min(1.0, 2 / count) if minimal_share is None else minimal_share
    return lambda count: 1.0 if routing == "minimal" else 0.0


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


def _coprime(count: int) -> int:
    """About 0.4 count, without a common divisor: taken in such strides, cables of a detour's two hops mix evenly."""
    return next(stride for stride in range(max(1, round(0.4 * count)), count + 2) if math.gcd(stride, count) == 1)


def _skip(index: Ints, a: Ints, b: Ints) -> Ints:
    """The index-th whole number that is neither a nor b (a != b)."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    index = index + (index >= low)
    return index + (index >= high)
