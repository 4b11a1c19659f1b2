"""Tofu-D, Fugaku's 6-D mesh/torus, and the virtual 3-D torus on it that a job sees.

It owns the fold of a virtual torus into six dimensions. It does not own Fujitsu's routing (which may first change the
small dimensions): routes here are dimension-ordered in X, Y, Z, a, b, c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from perfmodel.network.fabric import Ints, require
from perfmodel.network.torus import Torus, job_block

UNIT = (2, 3, 2)  # a, b, c


class TofuD(Torus):
    """A job's virtual torus of nodes, each virtual axis a ring folded into a large and a small dimension.

    Six dimensions X, Y, Z, a, b, c with a, b, c of 2, 3, 2 nodes; X, Y, Z of machine_shape (24 x 23 x 24 on Fugaku),
    a ring where a job spans it and else a mesh; b is a ring, a and c have one cable (Ajima et al. 2018,
    10.1109/CLUSTER.2018.00090: ten ports per node). job_shape: the virtual x, y, z, nodes numbered with z fastest
    (default: the most compact block whose axes fold). A virtual axis takes the small dimension where its length is a
    multiple of it, so that its ring closes over neighbours; else the largest divisor of its length below (assumed: a
    mesh of 2 for b, as a length of 4 or 8 on y needs). link_bytes_per_s: of one direction of a cable; port_bytes_per_s:
    what a node can inject over all its interfaces.
    """

    family = "tofu_d"

    def __init__(
        self,
        *,
        num_ports: int,
        machine_shape: Sequence[int],
        link_bytes_per_s: float,
        port_bytes_per_s: float,
        job_shape: Sequence[int] | None = None,
        nics_per_node: int = 1,
        wire_latency_s: float = 0.0,
        switch_latency_s: float = 0.0,
    ) -> None:
        large = tuple(int(size) for size in machine_shape)
        require(self.family, len(large) == 3, f"machine_shape {large}: give X, Y and Z")
        room = tuple(size * unit for size, unit in zip(large, UNIT, strict=True))
        sides = [
            [
                side
                for side in range(1, most + 1)
                if side == 1 or (_small(side, unit) > 1 and side // _small(side, unit) <= whole)
            ]
            for most, whole, unit in zip(room, large, UNIT, strict=True)
        ]
        self.job_shape = job_block(self.family, -(-num_ports // nics_per_node), room, job_shape, sides)
        small = tuple(_small(size, unit) for size, unit in zip(self.job_shape, UNIT, strict=True))
        folded = tuple(size // part for size, part in zip(self.job_shape, small, strict=True))
        for size, whole, axis in zip(folded, large, "XYZ", strict=True):
            require(self.family, size <= whole, f"job_shape {self.job_shape} takes {size} of {whole} in {axis}")
        self._router = _fold(self.job_shape, folded, small)
        super().__init__(
            num_ports=num_ports, shape=(*large, *UNIT), job_shape=(*folded, *small), link_bytes_per_s=link_bytes_per_s,
            port_bytes_per_s=port_bytes_per_s, wraps=(True, True, True, False, True, False),
            nics_per_node=nics_per_node, wire_latency_s=wire_latency_s, switch_latency_s=switch_latency_s,
        )  # fmt: skip

    def router_of(self, port: Ints) -> Ints:
        found: Ints = self._router[port // self._nics]
        return found


def _small(size: int, unit: int) -> int:
    return max(part for part in range(1, unit + 1) if size % part == 0)


def _ring(large: int, small: int) -> list[tuple[int, int]]:
    """Cells (large, small) of one virtual axis in order; neighbours in the order are neighbours in the machine."""
    if small == 1:
        return [(cell, 0) for cell in range(large)]
    there = [(cell, part if cell % 2 == 0 else small - part) for cell in range(large) for part in range(1, small)]
    order = there + [(cell, 0) for cell in reversed(range(large))]
    assert all(abs(a[0] - b[0]) <= 1 for a, b in pairwise(order)), f"{large} x {small}"
    return order


def _fold(job: tuple[int, ...], large: tuple[int, ...], small: tuple[int, ...]) -> Ints:
    """Router in six dimensions of every node of the virtual torus (z fastest)."""
    rings = [np.array(_ring(*sizes)) for sizes in zip(large, small, strict=True)]
    place = np.unravel_index(np.arange(math.prod(job)), job)
    cells = [ring[position] for ring, position in zip(rings, place, strict=True)]
    six = [cell[:, 0] for cell in cells] + [cell[:, 1] for cell in cells]
    return np.ravel_multi_index(six, (*large, *small)).astype(np.int64)
