"""One switch, or one NVLink domain: every port one hop from every other, nothing shared but the ports.

It does not own anything inside the switch: a non-blocking crossbar.
"""

from __future__ import annotations

import math

import numpy as np

from perfmodel.network.fabric import Crossing, Fabric, Ints, port_bundles, require


class SingleSwitch(Fabric):
    """num_ports ports on one non-blocking switch.

    port_bytes_per_s: per direction. wire_latency_s: of each of the two cables; switch_latency_s: of the switch.
    """

    family = "single_switch"

    def __init__(
        self, *, num_ports: int, port_bytes_per_s: float, wire_latency_s: float = 0.0, switch_latency_s: float = 0.0
    ) -> None:
        require(self.family, num_ports >= 1, f"{num_ports} ports: give at least one")
        require(self.family, port_bytes_per_s > 0, f"port_bytes_per_s is {port_bytes_per_s}: it must be above 0")
        switch = np.full(num_ports, num_ports, dtype=np.int64)
        super().__init__(num_ports, port_bundles(num_ports, switch, port_bytes_per_s, wire_latency_s, switch_latency_s))
        self.looks_alike = True

    def crossings(self, source: Ints, target: Ints) -> list[Crossing]:
        return []

    def bisection_bytes_per_s(self, ports: Ints | None = None) -> float:
        half = len(self._halves(ports)[0])
        return half * float(self.capacity_bytes_per_s[0]) if half else math.inf
