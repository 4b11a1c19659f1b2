"""What a fabric is: ports, directed links with ends, and routes between ports; and which families there are.

It owns the abstract class, the assembling of routes and ``build_fabric``. It does not own any topology (``switch``,
``fat_tree``, ``dragonfly``, ``dragonfly_plus``, ``torus``, ``tofu``) nor who sits on the ports (``cluster``).

*port*: one NIC of one node. *vertex*: a port (0 to P - 1) or a switch (P and up). *link*: one direction of a cable, or
of a bundle of parallel cables that traffic spreads over evenly. Links 0 to P - 1 leave the ports, links P to 2P - 1
enter them, in every family.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError
from perfmodel.network.routes import Routes

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Crossing = tuple[Ints, Ints, Floats | float]  # message, link, share


class Fabric(ABC):
    """Links and routes between ports.

    num_ports: P. capacity_bytes_per_s, latency_s: [L], of each link; the latency is the wire's and that of the switch
    behind it. link_source, link_target: [L], the vertices a link joins. rails: ports p and q reach each other only if
    p % rails == q % rails. looks_alike: the same from every port under a cyclic shift of the ports' numbers.
    """

    family: ClassVar[str]
    num_ports: int
    rails: int = 1
    looks_alike: bool = False

    def __init__(self, num_ports: int, bundles: Sequence[tuple[Ints, Ints, Floats | float, Floats | float]]) -> None:
        """bundles: (source vertices, target vertices, bytes/s, seconds) in the order of the links' numbers."""
        self.num_ports = num_ports
        self.link_source: Ints = np.concatenate([bundle[0] for bundle in bundles]).astype(np.int64)
        self.link_target: Ints = np.concatenate([bundle[1] for bundle in bundles]).astype(np.int64)
        self.capacity_bytes_per_s = _per_link(bundles, 2)
        self.latency_s = _per_link(bundles, 3)
        assert len(self.link_source) == len(self.link_target) == len(self.capacity_bytes_per_s)

    @property
    def num_links(self) -> int:
        return len(self.capacity_bytes_per_s)

    @property
    def num_vertices(self) -> int:
        return int(max(self.link_source.max(), self.link_target.max())) + 1

    @abstractmethod
    def crossings(self, source: Ints, target: Ints) -> list[Crossing]:
        """What messages between *different* ports cross between the first link and the last.

        Parts in path order, each with its messages in rising order; no link twice for one message.
        """

    @abstractmethod
    def bisection_bytes_per_s(self, ports: Ints | None = None) -> float:
        """One direction, between the halves of the ports (default: all) of the worst of the natural balanced cuts.

        math.inf for one port.
        """

    def vertex_names(self) -> list[str]:
        """A name for every vertex: ports first."""
        switches = range(self.num_vertices - self.num_ports)
        return [f"port {port}" for port in range(self.num_ports)] + [f"switch {number}" for number in switches]

    def link_names(self) -> list[str]:
        """'from > to' for every link."""
        names = self.vertex_names()
        return [f"{names[a]} > {names[b]}" for a, b in zip(self.link_source, self.link_target, strict=True)]

    def routes(self, source: Ints, target: Ints) -> Routes:
        """Routes of M messages between ports. source, target: int64 [M]. A port to itself crosses nothing."""
        source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
        assert source.shape == target.shape, f"{source.shape} sources, {target.shape} targets"
        if len(source):
            assert min(source.min(), target.min()) >= 0, "negative port"
            assert max(source.max(), target.max()) < self.num_ports, f"port beyond {self.num_ports}"
            assert np.all(source % self.rails == target % self.rails), "message between two rails"
        moving = np.flatnonzero(source != target)
        inner = self.crossings(source[moving], target[moving])
        parts: list[Crossing] = [(moving, source[moving], 1.0)]
        parts += [(moving[message], link, share) for message, link, share in inner]
        parts.append((moving, target[moving] + self.num_ports, 1.0))
        return assemble(len(source), parts, self.latency_s)

    def _halves(self, ports: Ints | None) -> tuple[Ints, Ints]:
        """The first and the second half of the ports in rising order (the middle one is in the second)."""
        chosen = np.arange(self.num_ports) if ports is None else np.unique(ports)
        return chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]

    def _cut_between(self, first: Ints, second: Ints, sides: Iterable[NDArray[np.bool_]]) -> float:
        """Smallest cut over sides that the switches may take; those ports are on their own side, the rest go along.

        sides: bool [switches] each.
        """
        cuts = [float(self.capacity_bytes_per_s[first].sum())]
        for switches in sides:
            side = np.concatenate([np.zeros(self.num_ports, dtype=bool), switches])
            side[: self.num_ports] = side[self.link_target[: self.num_ports]]
            side[first], side[second] = True, False
            cuts.append(self.cut_bytes_per_s(side))
        return min(cuts)

    def cut_bytes_per_s(self, side: NDArray[np.bool_]) -> float:
        """Capacity of the links from vertices with side True to those with False. side: bool [num_vertices]."""
        crossing = side[self.link_source] & ~side[self.link_target]
        return float(self.capacity_bytes_per_s[crossing].sum())


def _per_link(bundles: Sequence[tuple[Ints, Ints, Floats | float, Floats | float]], column: int) -> Floats:
    return np.concatenate([np.broadcast_to(np.asarray(b[column], np.float64), b[0].shape) for b in bundles])


def port_bundles(
    num_ports: int, switch_of_port: Ints, port_bytes_per_s: float, wire_latency_s: float, switch_latency_s: float
) -> list[tuple[Ints, Ints, Floats | float, Floats | float]]:
    """The first 2P links of every family: out of each port into its switch, and back."""
    ports = np.arange(num_ports)
    return [
        (ports, switch_of_port, port_bytes_per_s, wire_latency_s + switch_latency_s),
        (switch_of_port, ports, port_bytes_per_s, wire_latency_s),
    ]


def assemble(num_messages: int, parts: Sequence[Crossing], latency_s: Floats, *, merge: bool = False) -> Routes:
    """Compressed rows of crossings given part by part, each with its messages in rising order.

    merge: parts may cross the same link for one message; those are added up. The path latency is the mean over a
    message's paths, weighted by their shares.
    """
    counts = np.zeros(num_messages, np.int64)
    for message, _, _ in parts:
        counts += np.bincount(message, minlength=num_messages)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    cursor = offsets[:-1].copy()
    links, shares = np.empty(offsets[-1], np.int64), np.empty(offsets[-1])
    path_s = np.zeros(num_messages)
    for message, link, share in parts:
        place = cursor[message] + _turns(message)
        links[place] = link
        shares[place] = share
        cursor += np.bincount(message, minlength=num_messages)
        path_s += np.bincount(message, weights=latency_s[link] * share, minlength=num_messages)
    routes = Routes(offsets=offsets, links=links, shares=shares, latency_s=path_s)
    return _merged(routes, len(latency_s)) if merge else routes


def _turns(message: Ints) -> Ints | int:
    """How many times each entry's message occurred before it, in rising messages; 0 where none occurs twice."""
    new = np.diff(message, prepend=-1) != 0
    if new.all():
        return 0
    first = np.flatnonzero(new)
    counts: Ints = np.arange(len(message)) - np.repeat(first, np.diff(first, append=len(message)))
    return counts


def _merged(routes: Routes, num_links: int) -> Routes:
    """The same routes with every link once per message, in the order of the links' numbers."""
    message = np.repeat(np.arange(len(routes)), np.diff(routes.offsets))
    key = message * num_links + routes.links
    order = np.argsort(key, kind="stable")
    key, share = key[order], routes.shares[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    shares = np.add.reduceat(share, first) if len(first) else share
    counts = np.bincount(key[first] // num_links, minlength=len(routes))
    return Routes(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), links=key[first] % num_links, shares=shares,
        latency_s=routes.latency_s,
    )  # fmt: skip


FAMILY_CLASSES = {
    "single_switch": "switch.SingleSwitch",
    "fat_tree": "fat_tree.FatTree",
    "rail_optimised": "fat_tree.RailOptimised",
    "dragonfly": "dragonfly.Dragonfly",
    "dragonfly_plus": "dragonfly_plus.DragonflyPlus",
    "torus": "torus.Torus",
    "tofu_d": "tofu.TofuD",
}


def family_class(family: str) -> type[Fabric]:
    """The class of a family. Raises UserError for an unknown name, with the known ones."""
    if family not in FAMILY_CLASSES:
        near = difflib.get_close_matches(family, FAMILY_CLASSES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FAMILY_CLASSES)}"
        raise UserError(f"no fabric family {family!r}: {hint}")
    module, name = FAMILY_CLASSES[family].split(".")
    found: type[Fabric] = getattr(importlib.import_module(f"perfmodel.network.{module}"), name)
    return found


def allowed_keys(family: str) -> dict[str, bool]:
    """The numbers of a family's table: key -> whether it must be given (the number of ports is not one of them)."""
    parameters = inspect.signature(family_class(family)).parameters
    given = ("num_ports", "nics_per_node")
    return {key: value.default is inspect.Parameter.empty for key, value in parameters.items() if key not in given}


def build_fabric(
    family: str, numbers: Mapping[str, float | str | tuple[Any, ...]], *, num_nodes: int, nics_per_node: int
) -> Fabric:
    """The part of a fabric that num_nodes nodes of nics_per_node NICs need.

    numbers: keyword arguments of the family's class, floats where TOML has no other kind. Raises UserError naming the
    family, the key and the allowed keys.
    """
    keys = allowed_keys(family)
    for key in numbers:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"fabric {family}: no number {key!r}: {hint}allowed: {', '.join(keys)}")
    missing = [key for key, required in keys.items() if required and key not in numbers]
    if missing:
        raise UserError(f"fabric {family}: {missing[0]} is missing: required: {', '.join(k for k in keys if keys[k])}")
    if num_nodes < 1 or nics_per_node < 1:
        raise UserError(f"fabric {family}: {num_nodes} nodes of {nics_per_node} NICs: give at least one of each")
    arguments = {key: _plain(value) for key, value in numbers.items()}
    parameters = inspect.signature(family_class(family)).parameters
    if "nics_per_node" in parameters:
        arguments["nics_per_node"] = nics_per_node
    return family_class(family)(num_ports=num_nodes * nics_per_node, **arguments)


def _plain(value: Any) -> Any:
    """Whole floats as integers, lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(entry) for entry in value)
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def require(family: str, fits: bool, sentence: str) -> None:
    """Raise UserError naming the family unless the rule holds."""
    if not fits:
        raise UserError(f"fabric {family}: {sentence}")
