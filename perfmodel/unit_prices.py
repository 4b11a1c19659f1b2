"""Seconds of the collectives of jobs of very many equal FS-3D units: one rank stands for the ranks of a unit in a node.

It owns that bundling. It does not own schedules and their prices (``network``) nor prices of smaller jobs (``prices``),
which give those inside a unit here too.

The ranks of a unit that lies in one node sum gradients at the same time, each its own shard with the equal ranks of the
other units. Over the NICs and the fabric that is one message of all their bytes, so one rank per unit with the unit's
bytes loads every link as all of them do; a unit has its share of the node's links and NICs. Exact but for what software
adds per message (tests hold it to ``FabricPrices``). Units over several nodes are priced rank by rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from janus.layout import AxisName, Layout
from perfmodel.machine import Machine
from perfmodel.network.algorithms import make_schedule
from perfmodel.network.closed_form import Price, price_together
from perfmodel.network.cluster import build_cluster
from perfmodel.network.routes import Transport
from perfmodel.prices import FabricPrices, Prices, group_array

Floats = NDArray[np.float64]

ALL_REDUCES = ("ring", "rabenseifner", "bine")  # the last is bandwidth-optimal at numbers that are no powers of two


class UnitPrices(Prices):
    """On a machine of the catalogue, one rank per device. all_reduces: tried between units, the fastest counts.

    Axes inside a unit are priced as in ``FabricPrices``, on ``NEAR_UNITS`` units that stand for all.
    """

    NEAR_UNITS = 4

    def __init__(self, machine: Machine, *, all_reduces: Sequence[str] = ALL_REDUCES) -> None:
        super().__init__()
        self._machine, self._names = machine, tuple(all_reduces)
        self._inside = FabricPrices(machine)
        self._transport = machine.transport or Transport()
        self._prices: dict[tuple[int, int], list[Price]] = {}

    def _seconds(self, layout: Layout, axis: AxisName, collective: str, sizes: Floats) -> Floats:
        units_apart = axis.endswith("_copies") or axis == "world"
        if not units_apart or layout.replicas == 1:
            near = replace(layout, replicas=min(layout.replicas, self.NEAR_UNITS))
            return self._inside.seconds(near, axis if not units_apart else "unit", collective, sizes)
        assert collective == "all_reduce", f"{collective} over {axis}: only sums cross units"
        if axis == "world":  # a few numbers: summed in the units, then over them
            inside = self._inside.seconds(replace(layout, replicas=1), "unit", collective, sizes)
            return inside + self._between(layout, sizes, ranks=1)
        degree = layout.shard_degree if axis == "shard_copies" else layout.expert_degree
        assert degree == layout.unit, f"{axis} of degree {degree} in units of {layout.unit}"
        return self._between(layout, sizes, ranks=layout.unit)

    def _between(self, layout: Layout, sizes: Floats, ranks: int) -> Floats:
        """An all-reduce of ``ranks`` ranks of every unit with the equal ranks of the others, all at once."""
        bundled = self._machine.devices_per_node % layout.unit == 0
        key = (layout.unit, layout.replicas)
        if key not in self._prices:
            self._prices[key] = self._bundled(layout) if bundled else self._apart(layout)
        factor = ranks if bundled else 1
        return np.asarray(
            np.min([price.time_s(sizes * factor, self._transport) for price in self._prices[key]], axis=0)
        )

    def _bundled(self, layout: Layout) -> list[Price]:
        """One rank per unit, with the links of all its ranks."""
        machine, network = self._machine, self._machine.network
        on_node = min(machine.devices_per_node // layout.unit, layout.replicas)
        each = network.node_bytes_per_s
        wide = replace(machine, network=replace(network, node_bytes_per_s=each and each * layout.unit))
        nodes = -(-layout.replicas // on_node)
        cluster = build_cluster(wide, num_nodes=nodes, ranks_per_node=on_node,
                                stripe=(network.nics_per_node or 1) > on_node)  # fmt: skip
        return self._of([np.arange(layout.replicas)], cluster)

    def _apart(self, layout: Layout) -> list[Price]:
        """Every rank of every unit."""
        on_node = self._machine.devices_per_node
        cluster = build_cluster(self._machine, num_nodes=-(-layout.world_size // on_node), ranks_per_node=on_node)
        return self._of(list(group_array(layout, "shard_copies")), cluster)

    def _of(self, groups: Sequence[NDArray[np.int64]], cluster: object) -> list[Price]:
        return [
            price_together(make_schedule("all_reduce", name, len(groups[0])), cluster, groups)  # type: ignore[arg-type]
            for name in self._names
        ]
