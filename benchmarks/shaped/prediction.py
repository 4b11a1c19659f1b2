"""What the model says of a collective on the shaped network, from rates, delays and a calibration that judges nothing.

The cluster is built from the shape's numbers alone. The library's constants come from messages between two ranks, one
pair within a rack and one across racks, never from the collectives that are judged. ``StepPrices`` prices the
collectives of whole training steps so. It measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus.layout import AxisName, Layout
from perfmodel.network.algorithms import make_schedule
from perfmodel.network.closed_form import Price, price_together
from perfmodel.network.cluster import Cluster
from perfmodel.network.fat_tree import FatTree
from perfmodel.network.flow_events import simulate
from perfmodel.network.routes import Transport
from perfmodel.prices import Prices, group_array
from shaped.shape import Shape

# What the libraries do, by the name of the setting. gloo as torch 2.13 calls it (gloo/allreduce.cc, allgather.cc,
# alltoallv.cc; its reduce-scatter is an all-reduce). MPICH 5: as ``MPI_SETTINGS`` in shaped_network.py forces it.
ALGORITHMS: dict[str, dict[str, tuple[str, str]]] = {
    "gloo": {
        "all_reduce": ("all_reduce", "ring"), "all_gather": ("all_gather", "ring"),
        "reduce_scatter": ("all_reduce", "ring"), "all_to_all": ("all_to_all", "linear"),
    },
    "mpi halving": {
        "all_reduce": ("all_reduce", "rabenseifner"), "all_gather": ("all_gather", "recursive_doubling"),
        "reduce_scatter": ("reduce_scatter", "recursive_halving"), "all_to_all": ("all_to_all", "linear"),
    },
    "mpi ring": {
        "all_reduce": ("all_reduce", "ring"), "all_gather": ("all_gather", "ring"),
        "reduce_scatter": ("reduce_scatter", "pairwise"), "all_to_all": ("all_to_all", "linear"),
    },
}  # fmt: skip


def make_cluster(shape: Shape) -> Cluster:
    """The shape as the model sees it: a tapered tree of two levels, one rank per host."""
    fabric = FatTree(
        num_ports=shape.num_hosts, children=(shape.hosts_per_rack, shape.racks),
        link_bytes_per_s=shape.host_bytes_per_s, taper=shape.oversubscription, wire_latency_s=shape.cable_delay_s,
    )  # fmt: skip
    return Cluster(
        num_nodes=shape.num_hosts, ranks_per_node=1, fabric=fabric, nics_per_node=1, node_bytes_per_s=1e12,
        node_latency_s=0.0,
    )  # fmt: skip


def alone_s(shape: Shape, pair: Sequence[int], size_bytes: float) -> tuple[float, float]:
    """(delays, bytes over the slowest link) of one message from host to host [s]."""
    path = shape.path(*pair)
    return sum(shape.delays()[link] for link in path), size_bytes / min(shape.rates()[link] for link in path)


def wire_s(shape: Shape, pair: Sequence[int], size_bytes: float, link_fraction: float) -> float:
    """Delays and bytes of one message alone [s]."""
    delay_s, bytes_s = alone_s(shape, pair, size_bytes)
    return delay_s + bytes_s / link_fraction


def calibrate(shape: Shape, messages: Sequence[Mapping[str, Any]], reduction_bytes_per_s: float) -> Transport:
    """The library's constants from one-way times of messages: rows of pair, size_bytes and seconds (repetitions).

    The two longest sizes give the part of the rate that payload reaches. What a size takes beyond delays and bytes is
    the library's: of the shortest size its overhead, of the second longest the handshake too. Messages count as eager
    up to the size whose time beyond is nearer to the overhead.
    """
    times_s = {(tuple(row["pair"]), row["size_bytes"]): median(row["seconds"]) for row in messages}
    pairs = sorted({pair for pair, _ in times_s})
    *shorter, middle, long = sorted({size for _, size in times_s})
    fractions = [
        alone_s(shape, pair, long - middle)[1] / (times_s[pair, long] - times_s[pair, middle]) for pair in pairs
    ]
    beyond_s = {
        size: float(np.mean([
            times_s[pair, size] - wire_s(shape, pair, size, part) for pair, part in zip(pairs, fractions, strict=True)
        ]))
        for size in (*shorter, middle)
    }  # fmt: skip
    overhead_s, long_s = beyond_s[shorter[0]], beyond_s[middle]
    eager = [size for size in shorter if abs(beyond_s[size] - overhead_s) <= abs(beyond_s[size] - long_s)]
    return Transport(
        overhead_s=max(0.0, overhead_s), link_fraction=min(1.0, float(np.mean(fractions))),
        rendezvous_s=max(0.0, long_s - max(0.0, overhead_s)), eager_bytes=max(eager),
        reduction_bytes_per_s=reduction_bytes_per_s,
    )  # fmt: skip


def predict(
    cluster: Cluster,
    transport: Transport,
    scheduled: tuple[str, str],
    groups: Sequence[Sequence[int]],
    size_bytes: float,
) -> dict[str, float]:
    """Seconds of a collective of size m in all groups at once, by discrete events and by the closed form.

    scheduled: collective and algorithm by the names of perfmodel.
    """
    collective, algorithm = scheduled
    schedule = make_schedule(collective, algorithm, len(groups[0]))
    members = [np.array(group, dtype=np.int64) for group in groups]
    events_s = simulate(schedule, cluster, transport, size_bytes, groups=members).time_s
    closed_s = float(price_together(schedule, cluster, members).time_s(np.array([size_bytes]), transport)[0])
    return {"events_s": events_s, "closed_form_s": closed_s}


class StepPrices(Prices):
    """Collectives of a training step over gloo with one rank per host of the shape, by closed form.

    software: what the same collectives take among as many ranks of this machine without the network, for all hosts
    share its cores: it then takes the place of the messages' overhead. None: that overhead alone.
    """

    def __init__(self, shape: Shape, transport: Transport, software: Prices | None = None) -> None:
        super().__init__()
        self._cluster, self._software = make_cluster(shape), software
        wire = replace(transport, overhead_s=0.0, rendezvous_s=0.0) if software is not None else transport
        self._messages, self._wire = transport, wire
        self._priced: dict[tuple[Any, ...], Price] = {}

    @classmethod
    def of_messages(
        cls, shape: Shape, lines: Iterable[Mapping[str, Any]], software: Prices | None = None
    ) -> StepPrices:
        """With the library's constants from what the ranks printed of messages and a reduction."""
        lines = list(lines)
        reduction = next(line["bytes_per_s"] for line in lines if line["kind"] == "reduction")
        transport = calibrate(shape, [line for line in lines if line["kind"] == "message"], reduction)
        return cls(shape, transport, software)

    def constants(self) -> dict[str, float]:
        """The library's, by name."""
        names = ("overhead_s", "rendezvous_s", "eager_bytes", "link_fraction", "reduction_bytes_per_s")
        return {name: float(getattr(self._messages, name)) for name in names}

    def _seconds(self, layout: Layout, axis: AxisName, collective: str, sizes: NDArray) -> NDArray:
        key = (layout, axis, collective)
        if key not in self._priced:
            groups = [np.array(group, dtype=np.int64) for group in group_array(layout, axis)]
            schedule = make_schedule(*ALGORITHMS["gloo"][collective], len(groups[0]))
            self._priced[key] = price_together(schedule, self._cluster, groups)
        seconds = np.asarray(self._priced[key].time_s(np.ravel(sizes), self._wire)).reshape(np.shape(sizes))
        if self._software is not None:
            seconds = seconds + self._software.seconds(layout, axis, collective, sizes)
        return seconds
