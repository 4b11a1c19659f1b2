"""Ranks on the nodes of a fabric: what a message between two ranks crosses, inside a node or between nodes.

It owns the placing of ranks, NICs' sharing and striping, and allocations. It does not own the fabric's links
(``fabric``) nor any time (``closed_form``, ``flow_events``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from janus.errors import UserError
from perfmodel.machine import Machine
from perfmodel.network.fabric import Crossing, Fabric, Floats, Ints, assemble, build_fabric
from perfmodel.network.routes import Routes


class Cluster:
    """num_nodes nodes of ranks_per_node ranks on a fabric; rank r is on node r // ranks_per_node.

    Ranks of one node meet over a link out of and a link into each rank, of node_bytes_per_s each; the latency of such
    a message is node_latency_s. Between nodes rank l of a node uses NIC floor(l nics_per_node / ranks_per_node), the
    target the NIC nearest to its own that is on the same rail; with ``stripe`` every message divides evenly over all
    NICs of the node. nic_bytes_per_s: a NIC's own limit (lowers the capacity of the fabric's port links).
    node_numbers: int64 [num_nodes], nodes of the fabric that the job got (default the first). Links are those of the
    fabric, then one out of each rank, then one into each rank.
    """

    def __init__(
        self,
        *,
        num_nodes: int,
        ranks_per_node: int,
        fabric: Fabric,
        nics_per_node: int,
        node_bytes_per_s: float,
        node_latency_s: float,
        nic_bytes_per_s: float | None = None,
        stripe: bool = False,
        node_numbers: Ints | None = None,
    ) -> None:
        if num_nodes < 1 or ranks_per_node < 1 or nics_per_node < 1:
            raise UserError(f"{num_nodes} nodes of {ranks_per_node} ranks and {nics_per_node} NICs: give one or more")
        if node_bytes_per_s <= 0 or node_latency_s < 0:
            raise UserError(f"node links of {node_bytes_per_s} bytes/s and {node_latency_s} s: give a positive rate")
        if nics_per_node % fabric.rails:
            raise UserError(f"{nics_per_node} NICs per node on {fabric.rails} rails: give a multiple of the rails")
        numbers = np.arange(num_nodes) if node_numbers is None else np.asarray(node_numbers, np.int64)
        if len(numbers) != num_nodes or len(np.unique(numbers)) != num_nodes:
            raise UserError(f"{len(numbers)} node numbers for {num_nodes} nodes: give each node one of its own")
        if numbers.min() < 0 or (numbers.max() + 1) * nics_per_node > fabric.num_ports:
            raise UserError(f"node {numbers.max()} on a fabric of {fabric.num_ports // nics_per_node} nodes")
        self.num_nodes, self.ranks_per_node, self.nics_per_node = num_nodes, ranks_per_node, nics_per_node
        self.fabric, self.stripe, self.node_numbers = fabric, stripe, numbers
        self.num_ranks = num_nodes * ranks_per_node
        capacity = fabric.capacity_bytes_per_s.copy()
        if nic_bytes_per_s is not None:
            capacity[: 2 * fabric.num_ports] = np.minimum(capacity[: 2 * fabric.num_ports], nic_bytes_per_s)
        self.capacity_bytes_per_s: Floats = np.concatenate([capacity, np.full(2 * self.num_ranks, node_bytes_per_s)])
        ends_s = np.repeat([node_latency_s, 0.0], self.num_ranks)
        self.latency_s: Floats = np.concatenate([fabric.latency_s, ends_s])

    @property
    def num_links(self) -> int:
        return len(self.capacity_bytes_per_s)

    @property
    def looks_alike(self) -> bool:
        """The same from every rank under a cyclic shift of the ranks' numbers."""
        if self.num_nodes == 1:
            return True
        whole = self.num_nodes * self.nics_per_node == self.fabric.num_ports
        first = bool(np.all(self.node_numbers == np.arange(self.num_nodes)))
        return self.ranks_per_node == 1 and self.fabric.looks_alike and whole and first

    def link_names(self) -> list[str]:
        """'from > to' for every link."""
        out = [f"rank {rank} > node" for rank in range(self.num_ranks)]
        return self.fabric.link_names() + out + [f"node > rank {rank}" for rank in range(self.num_ranks)]

    def node_of(self, ranks: Ints) -> Ints:
        """Node of the fabric that ranks are on."""
        found: Ints = self.node_numbers[ranks // self.ranks_per_node]
        return found

    def routes(self, source_ranks: Ints, target_ranks: Ints) -> Routes:
        """Routes of M messages between ranks. source_ranks, target_ranks: int64 [M]. To itself: nothing."""
        source, target = np.asarray(source_ranks, np.int64), np.asarray(target_ranks, np.int64)
        here, there = self.node_of(source), self.node_of(target)
        inside = np.flatnonzero((here == there) & (source != target))
        outside = np.flatnonzero(here != there)
        if not len(inside) and not self.stripe:
            return self._between(source, target, outside, len(source))
        first = self.fabric.num_links
        parts: list[Crossing] = [
            (inside, first + source[inside], 1.0),
            (inside, first + self.num_ranks + target[inside], 1.0),
        ]
        parts += self._between_parts(source, target, outside)
        return assemble(len(source), parts, self.latency_s, merge=self.stripe)

    def _between(self, source: Ints, target: Ints, outside: Ints, num_messages: int) -> Routes:
        """The fast way: every message between nodes, over one NIC each."""
        if len(outside) == num_messages:
            return self.fabric.routes(*self._ports(source, target))
        return assemble(num_messages, self._between_parts(source, target, outside), self.latency_s)

    def _ports(self, source: Ints, target: Ints) -> tuple[Ints, Ints]:
        """Ports of a message: the source's own NIC, the target's nearest on the same rail."""
        local = source % self.ranks_per_node * self.nics_per_node // self.ranks_per_node
        other = target % self.ranks_per_node * self.nics_per_node // self.ranks_per_node
        other = other - other % self.fabric.rails + local % self.fabric.rails
        return self.node_of(source) * self.nics_per_node + local, self.node_of(target) * self.nics_per_node + other

    def _between_parts(self, source: Ints, target: Ints, outside: Ints) -> list[Crossing]:
        source, target = source[outside], target[outside]
        if not self.stripe:
            return [_part(outside, self.fabric.routes(*self._ports(source, target)), 1.0)]
        parts = []
        for nic in range(self.nics_per_node):
            start, end = (self.node_of(ranks) * self.nics_per_node + nic for ranks in (source, target))
            parts.append(_part(outside, self.fabric.routes(start, end), 1 / self.nics_per_node))
        return parts

    def bisection_bytes_per_s(self) -> float:
        """Of the fabric between the NICs that the job uses; of one node: what half of its ranks can send."""
        if self.num_nodes == 1:
            half = self.num_ranks // 2
            return half * float(self.capacity_bytes_per_s[-1]) if half else math.inf
        ranks = np.arange(self.num_ranks)
        ports = np.unique(self._ports(ranks, ranks)[0])
        if self.stripe:
            nics = np.arange(self.nics_per_node)
            ports = (self.node_numbers[:, None] * self.nics_per_node + nics).ravel()
        injection = len(ports) // 2 * float(self.capacity_bytes_per_s[ports].min())
        return min(injection, self.fabric.bisection_bytes_per_s(ports))


def _part(outside: Ints, routes: Routes, share: float) -> Crossing:
    message = outside[np.repeat(np.arange(len(routes)), np.diff(routes.offsets))]
    return message, routes.links, routes.shares * share


def spread_nodes(num_nodes: int, machine_nodes: int) -> Ints:
    """Node numbers at even distances over a machine of machine_nodes nodes."""
    if not 1 <= num_nodes <= machine_nodes:
        raise UserError(f"{num_nodes} nodes of a machine of {machine_nodes}: ask for 1 to {machine_nodes}")
    return np.arange(num_nodes, dtype=np.int64) * machine_nodes // num_nodes


def random_nodes(num_nodes: int, machine_nodes: int, seed: int) -> Ints:
    """Seeded random node numbers of a machine of machine_nodes nodes, in rising order."""
    if not 1 <= num_nodes <= machine_nodes:
        raise UserError(f"{num_nodes} nodes of a machine of {machine_nodes}: ask for 1 to {machine_nodes}")
    drawn = np.random.default_rng(seed).choice(machine_nodes, size=num_nodes, replace=False)
    return np.sort(drawn).astype(np.int64)


def build_cluster(
    machine: Machine,
    *,
    num_nodes: int,
    ranks_per_node: int,
    stripe: bool = False,
    node_numbers: Ints | None = None,
    fabric_numbers: Mapping[str, float | str | tuple[Any, ...]] | None = None,
) -> Cluster:
    """A job of num_nodes nodes on a machine's fabric.

    fabric_numbers: in place of those of the machine's [fabric] table, e.g. {"routing": "minimal"} or the job_shape of a
    torus. Raises UserError where the machine has no fabric, NICs or node links.
    """
    description = getattr(machine, "fabric", None)
    network = machine.network
    if description is None:
        raise UserError(f"machine {machine.name} has no [fabric] table: add one with its family and numbers")
    for name in ("nics_per_node", "node_bytes_per_s", "node_latency_s"):
        if getattr(network, name) is None:
            raise UserError(f"machine {machine.name} has no network.{name}: add it to use its fabric")
    nics, node_bytes_per_s, node_s = network.nics_per_node, network.node_bytes_per_s, network.node_latency_s
    assert nics is not None
    assert node_bytes_per_s is not None
    assert node_s is not None
    built_nodes = num_nodes if node_numbers is None else int(np.max(node_numbers)) + 1
    numbers = {**description.numbers, **(fabric_numbers or {})}
    fabric = build_fabric(description.family, numbers, num_nodes=built_nodes, nics_per_node=nics)
    return Cluster(
        num_nodes=num_nodes, ranks_per_node=ranks_per_node, fabric=fabric, nics_per_node=nics,
        node_bytes_per_s=node_bytes_per_s, node_latency_s=node_s, nic_bytes_per_s=network.nic_bytes_per_s,
        stripe=stripe, node_numbers=node_numbers,
    )  # fmt: skip
