"""What the shaped network looks like: hosts in racks, the links between them, and what path a packet takes.

It does not own how packets travel (``switch.py``) nor the namespaces (``network.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

MEGABIT_BYTES = 125_000.0
STATISTICS = ("packets", "bytes", "dropped", "largest_lateness_s", "busy_s")  # what the switch counts


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Racks of hosts under one core switch. Each cable is two links, one per direction.

    Links, H hosts and R racks: host h out h, host h in H + h, rack r out 2H + r, rack r in 2H + R + r.
    packet_bytes: largest IP packet.
    """

    racks: int = 2
    hosts_per_rack: int = 2
    host_bytes_per_s: float = 80 * MEGABIT_BYTES
    rack_bytes_per_s: float = 40 * MEGABIT_BYTES
    cable_delay_s: float = 250e-6
    packet_bytes: int = 4000

    @property
    def num_hosts(self) -> int:
        return self.racks * self.hosts_per_rack

    @property
    def num_links(self) -> int:
        return 2 * (self.num_hosts + self.racks)

    @property
    def oversubscription(self) -> float:
        """What a rack's hosts can send together, over what its uplink carries."""
        return self.hosts_per_rack * self.host_bytes_per_s / self.rack_bytes_per_s

    def rates(self) -> list[float]:
        """Bytes per second of every link."""
        return [self.host_bytes_per_s] * (2 * self.num_hosts) + [self.rack_bytes_per_s] * (2 * self.racks)

    def delays(self) -> list[float]:
        """Seconds from the start of a link to its end."""
        return [self.cable_delay_s] * self.num_links

    def path(self, source: int, target: int) -> list[int]:
        """Links from a host to another one; a rack's cable only where the racks differ."""
        from_rack, to_rack = source // self.hosts_per_rack, target // self.hosts_per_rack
        up = 2 * self.num_hosts
        between = [up + from_rack, up + self.racks + to_rack] if from_rack != to_rack else []
        return [source, *between, self.num_hosts + target]

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def host_name(self, host: int) -> str:
        return f"shaped{host}"
