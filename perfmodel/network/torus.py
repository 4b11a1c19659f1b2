"""n-dimensional tori and meshes with dimension-order routes.

It does not own how a job is laid out on a machine's larger torus (``tofu``, ``cluster``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from perfmodel.network.fabric import Crossing, Fabric, Floats, Ints, port_bundles, require


class Torus(Fabric):
    """A router per node, joined to the next and the previous one of each dimension.

    shape: routers of the machine per dimension. job_shape: of the block that the ports are in (default: the most
    compact block with room for them); the last dimension runs fastest, router r has ports r * nics_per_node onwards.
    wraps: whether each dimension of the machine closes to a ring (a ring of 2 has two cables, a mesh of 2 one); a
    block is closed only where it spans the machine.
    link_bytes_per_s: of one direction of one cable between routers; port_bytes_per_s: of a port. Routes correct the
    dimensions in order (the first first), each the shortest way; at equal distance half goes each way.
    """

    family = "torus"

    def __init__(
        self,
        *,
        num_ports: int,
        shape: Sequence[int] | int,
        link_bytes_per_s: float,
        port_bytes_per_s: float,
        job_shape: Sequence[int] | int | None = None,
        wraps: Sequence[bool] | bool = True,
        nics_per_node: int = 1,
        wire_latency_s: float = 0.0,
        switch_latency_s: float = 0.0,
    ) -> None:
        machine = (int(shape),) if isinstance(shape, int | float) else tuple(int(size) for size in shape)
        closed = (bool(wraps),) * len(machine) if isinstance(wraps, bool | int) else tuple(map(bool, wraps))
        require(self.family, min(machine) >= 1, f"shape {machine}: every dimension has at least 1")
        require(self.family, len(closed) == len(machine), f"{len(closed)} wraps for shape {machine}")
        require(self.family, min(link_bytes_per_s, port_bytes_per_s) > 0, "link and port bytes/s must be above 0")
        self._nics = nics_per_node
        self.shape = job_block(self.family, -(-num_ports // nics_per_node), machine, job_shape)
        self.wraps = tuple(
            wrap and size == whole for wrap, size, whole in zip(closed, self.shape, machine, strict=True)
        )
        self._strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        self._first_router = num_ports
        ports = np.arange(num_ports)
        bundles = port_bundles(
            num_ports, num_ports + self.router_of(ports), port_bytes_per_s, wire_latency_s, switch_latency_s
        )
        bundles += self._cables(num_ports, link_bytes_per_s, wire_latency_s + switch_latency_s)
        super().__init__(num_ports, bundles)
        self.looks_alike = len(self.shape) == 1 and self.wraps[0] and num_ports == self.shape[0]

    def router_of(self, port: Ints) -> Ints:
        """Router (0 to prod(shape) - 1) of ports."""
        return port // self._nics

    def _cables(
        self, num_ports: int, link_bytes_per_s: float, hop_s: float
    ) -> list[tuple[Ints, Ints, Floats | float, Floats | float]]:
        """Per dimension: the links to the next routers, then to the previous ones, by the router they leave."""
        self._link_out: list[dict[int, Ints]] = []  # per dimension and way (+1, -1): link out of each router, or -1
        routers = np.arange(math.prod(self.shape))
        bundles: list[tuple[Ints, Ints, Floats | float, Floats | float]] = []
        link = 2 * num_ports
        for size, stride, wraps in zip(self.shape, self._strides, self.wraps, strict=True):
            coordinate = routers // stride % size
            following = routers + ((coordinate + 1) % size - coordinate) * stride
            preceding = routers + ((coordinate - 1) % size - coordinate) * stride
            self._link_out.append({})
            for way, other, edge in ((+1, following, size - 1), (-1, preceding, 0)):
                exists = np.flatnonzero((wraps | (coordinate != edge)) & (size > 1))
                self._link_out[-1][way] = np.full(len(routers), -1)
                self._link_out[-1][way][exists] = link + np.arange(len(exists))
                link += len(exists)
                ends = self._first_router + exists, self._first_router + other[exists]
                bundles.append((*ends, link_bytes_per_s, hop_s))
        return bundles

    def crossings(self, source: Ints, target: Ints) -> list[Crossing]:
        here, goal = self.router_of(source), self.router_of(target)
        parts: list[Crossing] = []
        ties = False
        for axis, (size, stride) in enumerate(zip(self.shape, self._strides, strict=True)):
            start, end = here // stride % size, goal // stride % size
            up = (end - start) % size if self.wraps[axis] else np.where(end > start, end - start, 0)
            down = (start - end) % size if self.wraps[axis] else np.where(start > end, start - end, 0)
            tie = (up == down) & (up > 0)
            ties = ties or bool(tie.any())
            rises = (up > 0) & ((up <= down) | (down == 0))
            falls = (down > 0) & ((down <= up) | (up == 0))
            share = np.where(tie, 0.5, 1.0)
            parts.append(self._steps(axis, +1, np.flatnonzero(rises), up, here, start, share))
            parts.append(self._steps(axis, -1, np.flatnonzero(falls), down, here, start, share))
            here = here + (end - start) * stride
        return parts if ties else [(message, link, 1.0) for message, link, _ in parts]

    def _steps(
        self, axis: int, way: int, message: Ints, hops: Ints, here: Ints, start: Ints, share: Floats
    ) -> Crossing:
        """Links crossed in one dimension one way by the messages, each ``hops`` of them."""
        count = hops[message]
        owner = np.repeat(message, count)
        step = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        coordinate = (start[owner] + way * step) % self.shape[axis]
        router = here[owner] + (coordinate - start[owner]) * self._strides[axis]
        return owner, self._link_out[axis][way][router], share[owner]

    def bisection_bytes_per_s(self, ports: Ints | None = None) -> float:
        """Smallest of the cuts into halves of the ports in row order, each dimension once as the slowest."""
        chosen = np.arange(self.num_ports) if ports is None else np.unique(ports)
        if len(chosen) < 2:
            return math.inf
        routers = np.arange(math.prod(self.shape)).reshape(self.shape)
        cuts = []
        for axis in range(len(self.shape)):
            order = np.argsort(np.moveaxis(routers, axis, 0).ravel())  # place of each router in this order
            ranked = chosen[np.argsort(order[self.router_of(chosen)], kind="stable")]
            first, second = ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]
            side = order < order[self.router_of(second[:1])]
            cuts.append(self._cut_between(first, second, [side]))
        return min(cuts)


def job_block(
    family: str, num_routers: int, machine: tuple[int, ...], job_shape: Sequence[int] | int | None,
    sides: Sequence[Sequence[int]] | None = None,
) -> tuple[int, ...]:  # fmt: skip
    """Shape of the block that a job of num_routers gets: the given one, or the most compact one that is hardly larger.

    Compact: least (volume x sum of the sides). sides: the lengths that a default block may have, ascending, by
    dimension (default: all up to the machine's). Raises UserError where it does not fit the machine or the job.
    """
    if job_shape is not None:
        block = (int(job_shape),) if isinstance(job_shape, int | float) else tuple(int(size) for size in job_shape)
        fits = len(block) == len(machine) and all(1 <= a <= b for a, b in zip(block, machine, strict=True))
        require(family, fits, f"job_shape {block} on shape {machine}: it must fit in every dimension")
        room = math.prod(block)
        require(family, num_routers <= room, f"{num_routers} nodes in a job_shape {block} of {room}")
        return block
    room = math.prod(machine)
    require(family, 1 <= num_routers <= room, f"{num_routers} nodes on shape {machine} with room for {room}")
    if num_routers == room:
        return machine
    blocks = _blocks(num_routers, sides or [range(1, whole + 1) for whole in machine])
    return min(blocks, key=lambda block: (math.prod(block) * sum(block), block))


def _blocks(num_routers: int, sides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Blocks with room for num_routers: all sides but the last free, the last as short as it can be."""
    first, *others = sides
    if not others:
        enough = next((side for side in first if side >= num_routers), None)
        return [] if enough is None else [(enough,)]
    return [
        (side, *rest)
        for side in first
        if side == first[0] or side <= num_routers
        for rest in _blocks(-(-num_routers // side), others)
    ]
