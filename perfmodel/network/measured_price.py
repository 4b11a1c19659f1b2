"""The price of a schedule where links inside the fabric suffer from several senders and the ports into nodes do not.

It owns that distinction, which ``closed_form`` does not make. With credits per link (InfiniBand, Tofu) a receiver's
port stays busy however many send to it, while a blocked message inside the fabric holds up others behind it: on Fugaku
the linear all-to-all, whose ports all get messages from everyone, runs at the port's whole rate on 2x2x2 nodes, and at
0.72 and 0.36 of it on 4x4x4 and 8x8x8, where the torus' links carry two and four times as much.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.closed_form import Price, price
from perfmodel.network.cluster import Cluster
from perfmodel.network.round_loads import Coefficients, coefficients
from perfmodel.network.routes import Routes
from perfmodel.network.schedule import Schedule

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class _Inside:
    """A cluster whose ports take no time: its fullest links are those between switches, and in nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.num_ranks = cluster, cluster.num_ranks
        capacity = cluster.capacity_bytes_per_s.copy()
        capacity[: 2 * cluster.fabric.num_ports] = np.inf
        self.capacity_bytes_per_s: Floats = capacity

    def routes(self, source_ranks: Ints, target_ranks: Ints) -> Routes:
        return self._cluster.routes(source_ranks, target_ranks)


def price_with_free_ports(schedule: Schedule, cluster: Cluster) -> Price:
    """Like ``price``, but links count as shared by several senders inside the fabric only. Schedules that ``price``
    samples are left as they are (all links count)."""
    whole = price(schedule, cluster)
    if whole.sampled or not len(whole.repeats):
        return whole
    group = [np.arange(schedule.num_ranks, dtype=np.int64)]
    weights: dict[tuple[Coefficients, float], float] = {}
    pairs = zip(_rows(schedule, cluster, group), _rows(schedule, _Inside(cluster), group), strict=True)
    for (weight, one), (_, inside) in pairs:
        key = (one, inside.shared_load_s_per_byte)
        weights[key] = weights.get(key, 0.0) + weight
    rows = [one for one, _ in weights]
    table = np.array([entry for one in rows for entry in one.classes], dtype=np.float64).reshape(-1, 3)

    def column(name: str) -> Floats:
        return np.array([getattr(one, name) for one in rows], dtype=np.float64)

    return Price(
        num_ranks=schedule.num_ranks,
        repeats=np.array(list(weights.values()), dtype=np.float64),
        load_s_per_byte=column("load_s_per_byte"),
        shared_load_s_per_byte=np.array([shared for _, shared in weights], dtype=np.float64),
        exchanged=column("exchanged"), reduced=column("reduced"), copied=column("copied"), messages=column("messages"),
        class_offsets=np.concatenate([[0], np.cumsum([len(one.classes) for one in rows])]).astype(np.int64),
        latency_s=table[:, 0], place=table[:, 1], fraction=table[:, 2],
    )  # fmt: skip


def _rows(schedule: Schedule, network: Cluster | _Inside, group: list[Ints]) -> list[tuple[float, Coefficients]]:
    return list(coefficients(((float(one.repeat), one) for one in schedule.rounds()), network, group))
