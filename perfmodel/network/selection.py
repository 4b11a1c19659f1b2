"""Which algorithm runs: as Open MPI, MPICH and NCCL choose by ranks and bytes, and the best by the closed form.

It owns the switch points (facts read in the libraries' sources, named below) and the comparison. It does not own the
algorithms (``algorithms``) nor prices (``closed_form``).

Sources. Open MPI: coll/tuned, coll_tuned_decision_fixed.c of the 5.0 series, fixed decisions for commutative operations
(taken to hold for 4.1 too, where these tables came in; not compared); window of the all-to-all unlimited, k-nomial
radix 4, 4 chains (its defaults). MPICH: the *_intra_auto rules and defaults of MPIR_CVAR_*_MSG_SIZE (3.3 to 4.x) on one
level; the 512 KiB of its reduce-scatter is from memory. NCCL: graph/tuning.cc of a late 2.x fork (latencies, bandwidth
limits, tree correction), without CollNet, NVLS and PAT; what it finds by searching the node's links (channels and their
bandwidth) is an argument here. All read November 2026.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus.errors import UserError
from perfmodel.network.algorithms import RECIPES, make_schedule, options_of
from perfmodel.network.closed_form import price
from perfmodel.network.round_loads import RankNetwork
from perfmodel.network.routes import Transport

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An algorithm's name and its options for ``make_schedule``."""

    algorithm: str
    options: Mapping[str, Any] = field(default_factory=dict)


# Open MPI: ranks below -> "bytes below: algorithm" in order; the last entry has no limit. Bytes: of the buffer
# (all_reduce, broadcast, reduce_scatter in all), of one rank's part (all_gather), of one pair (all_to_all).
_OPEN_MPI: dict[str, dict[float, str]] = {
    "all_reduce": {
        4: "8 ring, 4096 doubling, 8192 ring, 16384 doubling, 65536 ring, 262144 segmented, rabenseifner",
        8: "16 ring, 8192 doubling, rabenseifner",
        16: "8192 doubling, rabenseifner",
        32: "64 segmented, 4096 doubling, rabenseifner",
        64: "128 segmented, rabenseifner",
        128: "262144 doubling, rabenseifner",
        256: "131072 reduce, 262144 doubling, rabenseifner",
        512: "4096 reduce, rabenseifner",
        2048: "2048 reduce, 16384 doubling, rabenseifner",
        4096: "2048 reduce, 4096 segmented, 16384 doubling, rabenseifner",
        math.inf: "2048 reduce, 16384 segmented, 32768 doubling, rabenseifner",
    },
    "all_to_all": {
        3: "32768 pairwise, 262144 sync, pairwise",
        8: "8192 sync, 16384 linear, 65536 sync, 524288 linear, 1048576 pairwise, linear",
        16: "262144 sync, linear",
        32: "4 sync, 512 bruck, 8192 sync, 32768 linear, 262144 sync, 524288 linear, sync",
        64: "512 bruck, 524288 linear, sync",
        128: "1024 bruck, 2048 linear, 4096 sync, 262144 linear, pairwise",
        256: "1024 bruck, 2048 sync, 262144 linear, pairwise",
        512: "1024 bruck, 8192 sync, 32768 linear, pairwise",
        1024: "512 bruck, 8192 sync, 16384 linear, 131072 sync, 262144 linear, pairwise",
        2048: "512 bruck, 1024 sync, 2048 linear, 16384 sync, 262144 linear, sync",
        4096: "1024 bruck, 4096 sync, 8192 linear, 131072 sync, linear",
        math.inf: "2048 bruck, 8192 sync, 16384 linear, 32768 sync, 65536 linear, sync",
    },
    "all_gather": {
        3: "ring",
        32: "doubling",
        64: "1024 doubling, 65536 neighbor, ring",
        128: "512 doubling, 65536 neighbor, ring",
        256: "512 doubling, 131072 neighbor, 524288 ring, 1048576 neighbor, ring",
        512: "32 doubling, 128 bruck, 1024 doubling, 131072 neighbor, 524288 ring, 1048576 neighbor, ring",
        1024: "64 doubling, 256 bruck, 2048 doubling, neighbor",
        2048: "4 doubling, 8 bruck, 16 doubling, 32 bruck, 256 doubling, 512 bruck, 4096 doubling, neighbor",
        4096: "32 bruck, 128 doubling, 512 bruck, 4096 doubling, neighbor",
        math.inf: "2 doubling, 8 bruck, 16 doubling, 512 bruck, 4096 doubling, neighbor",
    },
    "reduce_scatter": {
        4: "65536 ring, 131072 butterfly, ring",
        8: "8 reduce, 262144 halving, ring",
        32: "262144 halving, ring",
        64: "64 reduce, 2048 halving, 524288 butterfly, ring",
        128: "256 reduce, 512 halving, 2048 butterfly, 4096 halving, butterfly",
        256: "256 reduce, 512 halving, butterfly",
        512: "256 reduce, 1024 halving, butterfly",
        1024: "512 reduce, 2048 halving, 8192 butterfly, 16384 halving, butterfly",
        2048: "512 reduce, 4096 halving, 16384 butterfly, 32768 halving, butterfly",
        4096: "512 reduce, 4096 halving, butterfly",
        math.inf: "1024 reduce, 8192 halving, butterfly",
    },
    "broadcast": {
        4: "32 pipeline, 256 binary, 512 pipeline, 1024 knomial, 32768 linear, 131072 binary, 262144 chain, "
           "524288 linear, 1048576 binomial, binary",
        8: "64 binary, 128 binomial, 2048 binary, 8192 binomial, 1048576 linear, chain",
        16: "8 knomial, 64 binary, 4096 knomial, 16384 binary, 32768 binomial, linear",
        32: "4096 knomial, 1048576 binomial, scatter",
        64: "2048 binomial, knomial",
        128: "knomial",
        256: "2 binomial, 16384 binary, 32768 linear, 65536 binary, knomial",
        1024: "16384 knomial, 32768 split, knomial",
        2048: "524288 knomial, scatter",
        4096: "262144 knomial, scatter",
        math.inf: "8192 knomial, 16384 binary, 262144 knomial, scatter",
    },
}  # fmt: skip

_OPEN_MPI_NAMES: dict[str, dict[str, str]] = {
    "all_reduce": {"doubling": "recursive_doubling", "segmented": "segmented_ring", "reduce": "reduce_broadcast"},
    "all_to_all": {"sync": "linear_sync"},
    "all_gather": {"doubling": "recursive_doubling", "neighbor": "neighbor_exchange"},
    "reduce_scatter": {
        "reduce": "reduce_then_scatter", "halving": "recursive_halving", "butterfly": "recursive_distance_doubling",
    },
    "broadcast": {"pipeline": "chain", "split": "split_binary", "scatter": "scatter_allgather"},
}  # fmt: skip


def open_mpi(collective: str, num_ranks: int, size_bytes: float) -> Choice:
    """Open MPI's fixed decision. size_bytes: m of ``schedule``."""
    _check(collective)
    by_ranks = _OPEN_MPI[collective]
    rules = by_ranks[next(limit for limit in by_ranks if num_ranks < limit)]
    part_bytes = size_bytes / num_ranks if collective in ("all_gather", "all_to_all") else size_bytes
    for rule in rules.split(", "):
        *limit, name = rule.split()
        if not limit or part_bytes < float(limit[0]):
            break
    options = {"sync": {"window": max(1, num_ranks - 1)}, "knomial": {"radix": 4}, "chain": {"num_chains": 4}}
    return Choice(algorithm=_OPEN_MPI_NAMES[collective].get(name, name), options=options.get(name, {}))


def mpich(collective: str, num_ranks: int, size_bytes: float) -> Choice:
    """MPICH's rules on one level (its node-aware broadcast and all-reduce are ``leader`` and not chosen here)."""
    _check(collective)
    n, m = num_ranks, size_bytes
    power_of_two = not n & (n - 1)
    if collective == "all_reduce":
        return Choice(algorithm="recursive_doubling" if m <= 2048 else "rabenseifner")
    if collective == "all_gather":
        if m < 524288 and power_of_two:
            return Choice(algorithm="recursive_doubling")
        return Choice(algorithm="bruck" if m < 81920 else "ring")
    if collective == "reduce_scatter":
        return Choice(algorithm="recursive_halving" if m < 524288 else "pairwise")
    if collective == "broadcast":
        if m < 12288 or n < 8:
            return Choice(algorithm="binomial")
        return Choice(algorithm="scatter_allgather" if m < 524288 and power_of_two else "scatter_ring")
    if m / n <= 256 and n >= 8:
        return Choice(algorithm="bruck")
    if m / n <= 32768:
        return Choice(algorithm="linear_sync", options={"window": 32})
    return Choice(algorithm="pairwise", options={"order": "xor"} if power_of_two else {})


def _check(collective: str) -> None:
    if collective not in RECIPES:
        raise UserError(f"no collective {collective!r}: known are {', '.join(RECIPES)}")


LIBRARIES = {"open_mpi": open_mpi, "mpich": mpich}


def choose(library: str, collective: str, num_ranks: int, size_bytes: float) -> Choice:
    """The choice of a library by name. Raises UserError with the known ones."""
    if library not in LIBRARIES:
        raise UserError(f"no library {library!r}: known are {', '.join(LIBRARIES)} (and nccl, which needs a GpuNode)")
    return LIBRARIES[library](collective, num_ranks, size_bytes)


@dataclass(frozen=True, kw_only=True)
class GpuNode:
    """What NCCL's tuning knows of a machine.

    generation: "volta", "ampere", "hopper" or "blackwell". channels: of its graphs. channel_bytes_per_s and
    network_channel_bytes_per_s: of one channel inside a node, and between more than two nodes. amd_cpu: of the host.
    nvlink: GPUs of a node are joined by NVLink (else PCI). nic_latency_s: NCCL adds it to each step between nodes.
    """

    generation: str
    channels: int
    channel_bytes_per_s: float
    network_channel_bytes_per_s: float
    amd_cpu: bool = False
    nvlink: bool = True
    nic_latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.generation not in _GENERATIONS:
            raise UserError(f"no GPU generation {self.generation!r}: known are {', '.join(_GENERATIONS)}")


_GENERATIONS = ("volta", "ampere", "hopper", "blackwell")
_PROTOCOLS = ("LL", "LL128", "Simple")
_BASE_US = {"tree": (6.8, 14.0, 8.4), "ring": (6.6, 14.0, 8.4)}
_STEP_US = {
    "nvlink": {"tree": (0.6, 1.25, 4.0), "ring": (0.6, 1.9, 3.4)},
    "pci": {"tree": (1.0, 1.9, 4.0), "ring": (1.0, 2.5, 5.7)},
    "network": {"tree": (5.0, 8.5, 14.0), "ring": (2.7, 4.0, 14.0)},
}
# GB/s by generation (LL between nodes: by Intel, AMD host), for 1, 2 and more nodes; per channel but for LL
_LL_MAX = ((39.0, 39.0, 20.4), (87.7, 22.5, 19.0), (141.0, 45.0, 35.0), (282.0, 90.0, 70.0))
_RING_LL128_MAX = ((20.0, 20.0, 20.0), (20.0, 20.0, 20.0), (36.7, 36.7, 36.7), (40.0, 40.0, 40.0))
_TREE_LL128_MAX = ((20.0, 20.0, 20.0), (20.0, 20.0, 20.0), (36.7, 36.7, 29.0), (55.6, 31.67, 20.0))
_TREE_MAX = ((26.5, 18.5, 10.0), (24.0, 23.6, 17.8), (38.7, 41.4, 36.0), (70.0, 42.8, 24.0))
_TREE_CORRECTION = (  # by protocol, for 64 bytes and each doubling
    (1, 1, 1, 1, .9, .8, .7, .7, .7, .7, .6, .5, .4, .4, .5, .6, .7, .8, .9, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, .9, .8, .8, .8, .7, .6, .6, .6, .6, .6, .6, .8, .9, .9, .9, .9, 1, 1),
    (.9, .9, .9, .9, .9, .9, .9, .8, .7, .6, .6, .5, .5, .5, .5, .6, .7, .8, .7, .7, .8, .9, .9),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NcclChoice:
    """algorithm: "ring" or "tree"; protocol: LL, LL128 or Simple; time_s: what NCCL itself expects; choice: the
    schedule that stands for it (rings over all NICs, double binary tree)."""

    algorithm: str
    protocol: str
    time_s: float
    choice: Choice


def nccl(collective: str, num_nodes: int, ranks_per_node: int, size_bytes: float, node: GpuNode) -> NcclChoice:
    """The algorithm and protocol that NCCL's tuning model finds fastest. size_bytes: m of ``schedule``.

    Raises UserError for an all_to_all: NCCL has none but grouped sends and receives.
    """
    if collective not in ("all_reduce", "all_gather", "reduce_scatter", "broadcast"):
        raise UserError(f"NCCL chooses no algorithm for {collective}: use all_reduce, all_gather or reduce_scatter")
    algorithms = ("ring", "tree") if collective == "all_reduce" else ("ring",)
    times = {
        (algorithm, protocol): _nccl_s(collective, num_nodes, ranks_per_node, size_bytes, node, algorithm, index)
        for algorithm in algorithms
        for index, protocol in enumerate(_PROTOCOLS)
    }
    algorithm, protocol = min(times, key=lambda key: times[key])
    return NcclChoice(
        algorithm=algorithm, protocol=protocol, time_s=times[algorithm, protocol],
        choice=_nccl_schedule(collective, algorithm, ranks_per_node),
    )  # fmt: skip


def _nccl_schedule(collective: str, algorithm: str, ranks_per_node: int) -> Choice:
    if collective == "broadcast":
        return Choice(algorithm="chain", options={"num_segments": 16})
    if algorithm == "tree":
        options = {"ranks_per_node": ranks_per_node, "rails": ranks_per_node, "num_segments": 16}
        return Choice(algorithm="double_binary_tree", options=options)
    if ranks_per_node == 1:
        return Choice(algorithm="ring")
    return Choice(algorithm="multi_rail_ring", options={"ranks_per_node": ranks_per_node})


def _nccl_s(
    collective: str, num_nodes: int, ranks_per_node: int, size_bytes: float, node: GpuNode, algorithm: str, index: int
) -> float:
    """NCCL's own estimate, latency + bytes / bandwidth, for one algorithm and protocol (0 LL, 1 LL128, 2 Simple)."""
    num_ranks = num_nodes * ranks_per_node
    if num_ranks == 1 or size_bytes == 0:
        return 0.0
    steps = {"all_reduce": 2 * (num_ranks - 1), "broadcast": num_ranks}.get(collective, num_ranks - 1)
    bus = _nccl_bus_bytes_per_s(num_nodes, node, algorithm, index)
    if algorithm == "ring":
        bandwidth = bus * num_ranks / steps
        latency_s = _nccl_ring_latency_s(collective, num_nodes, num_ranks, steps, node, index)
        if index == 2 and num_nodes > 1 and collective == "all_reduce":
            per_step_bytes = size_bytes / (node.channels * num_ranks)
            latency_s *= (1.9 if node.generation == "volta" else 1.4) if per_step_bytes >= 64 else 1.0
    else:
        doublings = (int(size_bytes) >> 6).bit_length() - 1
        bandwidth = bus / 2 * (_TREE_CORRECTION[index][doublings] if 0 <= doublings < 23 else 1.0)
        inside_us = _STEP_US["nvlink" if node.nvlink else "pci"]["tree"][index]
        between_us = _STEP_US["network"]["tree"][index] + _nic_us(node, index)
        hops = (ranks_per_node - 1) * inside_us + (num_nodes.bit_length() - 1) * between_us
        latency_s = 1e-6 * (_BASE_US["tree"][index] + 2 * hops)
    return latency_s + size_bytes / bandwidth


def _nic_us(node: GpuNode, index: int) -> float:
    return 1e6 * node.nic_latency_s * (2 if index == 2 else 1)


def _nccl_bus_bytes_per_s(num_nodes: int, node: GpuNode, algorithm: str, index: int) -> float:
    """Bus bandwidth of all channels after NCCL's limits by protocol."""
    generation, few = _GENERATIONS.index(node.generation), min(num_nodes, 3) - 1
    row = generation if num_nodes == 1 else int(node.amd_cpu)
    bus = node.channels * (node.channel_bytes_per_s if num_nodes <= 2 else node.network_channel_bytes_per_s) / 1e9
    low_latency = _LL_MAX[row][few]
    if algorithm == "ring":
        limits = (
            min(low_latency, bus * 0.5),
            min(bus * 0.92, node.channels * _RING_LL128_MAX[generation][few]),
            bus,
        )
        return 1e9 * limits[index]
    bus = min(bus * 0.92, node.channels * _TREE_MAX[generation][few])
    wide = bus * (7 / 9 if num_nodes == 1 else 120 / 128)
    limits = (min(bus / 3.8, low_latency), min(wide, node.channels * _TREE_LL128_MAX[generation][few]), bus)
    return 1e9 * limits[index]


def _nccl_ring_latency_s(
    collective: str, num_nodes: int, num_ranks: int, steps: int, node: GpuNode, index: int
) -> float:  # fmt: skip
    inside = "nvlink" if node.nvlink else "pci"
    if collective == "broadcast":
        step_us = _STEP_US["network" if num_nodes > 1 else inside]["tree" if index == 2 else "ring"][index]
        return 1e-6 * (_BASE_US["ring"][index] + steps * step_us)
    posting_us = 0.0 if num_nodes == 1 else (2.0 if node.amd_cpu else 1.0) * (3 if index == 2 else 1)
    inside_us = max(_STEP_US[inside]["ring"][index], posting_us)
    exposed = num_ranks == num_nodes
    between_us = _STEP_US["network"]["tree" if exposed else "ring"][index] + _nic_us(node, index)
    between = 0 if num_nodes == 1 else (2 if collective == "all_reduce" else 1) * (num_nodes - 1)
    return 1e-6 * (_BASE_US["ring"][index] + (steps - between) * inside_us + between * between_us)


SEGMENTS = (1, 8, 64)
ROUND_BY_ROUND = {"linear", "neighbor_exchange", "sparbit", "bine_blocks", "chain"}  # left out of ``best`` at scale
MANY_RANKS = 2048


@dataclass(frozen=True, kw_only=True)
class Best:
    """candidates: every algorithm (with options) that was priced; times_s: [candidates, sizes]; index: [sizes], the
    fastest."""

    candidates: Sequence[Choice]
    times_s: Floats
    index: Ints

    @property
    def time_s(self) -> Floats:
        """Of the fastest, [sizes]."""
        return np.asarray(self.times_s[self.index, np.arange(len(self.index))])

    @property
    def choices(self) -> list[Choice]:
        """The fastest for each size."""
        return [self.candidates[index] for index in self.index]


def candidates(
    collective: str, num_ranks: int, ranks_per_node: int = 1, shape: tuple[int, ...] = ()
) -> list[Choice]:  # fmt: skip
    """All known algorithms for a collective; pipelines at several segmentations, levels where there are nodes,
    buckets where the ranks have a shape.
    """
    _check(collective)
    found = []
    for algorithm in RECIPES[collective]:
        options = options_of(collective, algorithm)
        if num_ranks > MANY_RANKS and algorithm in ROUND_BY_ROUND and collective != "all_to_all":
            continue
        if "ranks_per_node" in options and algorithm != "double_binary_tree" and ranks_per_node == 1:
            continue
        if "shape" in options and not shape:
            continue
        fixed: dict[str, Any] = {"shape": shape} if "shape" in options else {}
        if "ranks_per_node" in options and ranks_per_node > 1:
            fixed["ranks_per_node"] = ranks_per_node
        if "rails" in options and ranks_per_node > 1:
            fixed["rails"] = ranks_per_node
        cut = SEGMENTS if "num_segments" in options and algorithm != "segmented_ring" else (None,)
        found += [
            Choice(algorithm=algorithm, options=fixed if count is None else {**fixed, "num_segments": count})
            for count in cut
        ]
    return found


def best(
    collective: str, cluster: RankNetwork, sizes_bytes: ArrayLike, transport: Transport, *,
    group: ArrayLike | None = None, ranks_per_node: int = 1, shape: tuple[int, ...] = (),
    among: Sequence[Choice] | None = None,
) -> Best:  # fmt: skip
    """The fastest algorithm by the closed form for each size, [sizes] bytes.

    group: ranks of the cluster (default: all). ranks_per_node: of the group, whose ranks are then node by node; 1
    leaves out the algorithms that know nodes. shape: of the ranks on a torus. among: the choices to compare (default:
    ``candidates``).
    """
    ranks = np.arange(cluster.num_ranks) if group is None else np.asarray(group, dtype=np.int64)
    sizes = np.atleast_1d(np.asarray(sizes_bytes, dtype=np.float64))
    priced = list(among) if among is not None else candidates(collective, len(ranks), ranks_per_node, shape)
    times_s = np.stack([
        price(make_schedule(collective, one.algorithm, len(ranks), **one.options), cluster, ranks)
        .time_s(sizes, transport)
        for one in priced
    ])  # fmt: skip
    return Best(candidates=priced, times_s=times_s, index=np.argmin(times_s, axis=0))
