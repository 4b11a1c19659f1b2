"""Which schedule a measured algorithm's name stands for, and what its implementation does in memory beside it.

It does not read files (``measured``) nor price anything. Sources: Open MPI's ``coll/base`` and ``coll/tuned``
(``*_ompi``; Fugaku's ``default-*`` is Fujitsu's library, derived from it), and the algorithms over point-to-point
messages of HLC-Lab/pico's ``libswing`` (``*_over``). Read there: the work buffers that an algorithm allocates in each
call and the copies it makes, as multiples of the collective's size m.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfmodel.network.measured import ITEM_BYTES, Measurement
from perfmodel.network.selection import open_mpi


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """algorithm and options: of ``make_schedule``. buffers: work buffers allocated in each call, of m; part_buffers: so
    many of m / ranks. copied: of m, in memory, beside what the schedule says. extra_messages: so many of m / ranks in
    rounds of their own, to bring blocks into another order."""

    algorithm: str
    options: Mapping[str, Any] = field(default_factory=dict)
    buffers: tuple[float, ...] = ()
    part_buffers: int = 0
    copied: float = 0.0
    extra_messages: int = 0

    def work_buffers(self, num_ranks: int) -> tuple[float, ...]:
        """Sizes of the work buffers, of m, among num_ranks ranks."""
        return (*self.buffers, *(1.0 / num_ranks for _ in range(self.part_buffers)))


def _same(names: str, implementation: Implementation) -> dict[str, Implementation]:
    return dict.fromkeys(names.split(), implementation)


_RING_REDUCE = Implementation(algorithm="ring", part_buffers=2, copied=1.0)
IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {
    "all_reduce": {
        **_same("ring_ompi ring_over default-ring", _RING_REDUCE),
        **_same("recursive_doubling_ompi recursive_doubling_over default-recursive_doubling",
                Implementation(algorithm="recursive_doubling", buffers=(1.0,), copied=2.0)),
        **_same("rabenseifner_ompi rabenseifner_over", Implementation(
            algorithm="rabenseifner", buffers=(1.0,), copied=1.0)),
        **_same("ring_segmented_ompi", Implementation(algorithm="segmented_ring", part_buffers=2, copied=1.0)),
        **_same("bine_lat_over", Implementation(algorithm="bine_latency", buffers=(1.0,), copied=2.0)),
        **_same("bine_bdw_remap_over bine_bdw_static_over", Implementation(
            algorithm="bine", buffers=(0.5,), copied=1.0)),
        **_same("bine_block_by_block_over bine_block_by_block_any_even", Implementation(
            algorithm="bine_blocks", buffers=(0.5,), copied=1.0)),
        **_same("allreduce_nccl_ring", Implementation(algorithm="multi_rail_ring")),
        **_same("allreduce_nccl_tree", Implementation(algorithm="double_binary_tree")),
    },
    "all_gather": {
        **_same("ring ring_ompi ring_over default-ring", Implementation(algorithm="ring")),
        **_same("recursive_doubling_ompi recursive_doubling_over default-recursive-doubling",
                Implementation(algorithm="recursive_doubling")),
        **_same("neighbor_ompi default-neighbor", Implementation(algorithm="neighbor_exchange")),
        **_same("sparbit_over", Implementation(algorithm="sparbit")),
        **_same("bruck_ompi k_bruck_over default-bruck", Implementation(
            algorithm="bruck", buffers=(1.0,), copied=1.0)),
        **_same("linear_ompi", Implementation(algorithm="gather_broadcast")),
        **_same("bine_2_blocks_over", Implementation(algorithm="bine")),
        **_same("bine_send_remap_over bine_send_static_over", Implementation(algorithm="bine", extra_messages=1)),
        **_same("bine_permute_remap_over bine_permute_static_over", Implementation(
            algorithm="bine_permuted", buffers=(1.0,))),
        **_same("bine_block_by_block_over bine_block_by_block_over_any_even",
                Implementation(algorithm="bine_blocks")),
    },
    "reduce_scatter": {
        **_same("ring_ompi ring_over default-ring", Implementation(
            algorithm="ring", buffers=(1.0,), part_buffers=2, copied=1.0)),
        **_same("recursive_halving_ompi recursive_halving_over default-recursive-halving",
                Implementation(algorithm="recursive_halving", buffers=(1.0, 1.0), copied=1.0)),
        **_same("recursive_distance_doubling_over", Implementation(
            algorithm="recursive_distance_doubling", buffers=(1.0, 1.0), copied=1.0, extra_messages=1)),
        **_same("bine_send_remap_over bine_send_static_over", Implementation(
            algorithm="bine", buffers=(1.0, 1.0), copied=1.0, extra_messages=1)),
        **_same("bine_permute_remap_over bine_permute_static_over", Implementation(
            algorithm="bine_permuted", buffers=(1.0, 1.0))),
        **_same("bine_block_by_block_over bine_block_by_block_any_even", Implementation(
            algorithm="bine_blocks", buffers=(1.0, 1.0), copied=1.0)),
    },
    "all_to_all": {
        **_same("linear linear_ompi default-linear", Implementation(algorithm="linear")),
        **_same("linear_sync_ompi default-linear-sync", Implementation(algorithm="linear_sync")),
        **_same("pairwise_ompi default-pairwise", Implementation(algorithm="pairwise")),
        **_same("modified_bruck_ompi default-modified-bruck", Implementation(algorithm="bruck", buffers=(1.0,))),
        **_same("bine_over", Implementation(algorithm="bine", buffers=(1.0,))),
    },
    "broadcast": {
        **_same("binomial_ompi default-binomial bine_lat_over bine_lat_i_new_over bine_lat_reversed_over",
                Implementation(algorithm="knomial_at_once", options={"radix": 2})),
        **_same("binary_ompi", Implementation(algorithm="binary")),
        **_same("split_binary_ompi", Implementation(algorithm="split_binary")),
        **_same("knomial_ompi", Implementation(
            algorithm="knomial_at_once", options={"radix": 4})),
        **_same("bine_lat_new_over", Implementation(algorithm="bine")),
        **_same("bine_bdw_remap_over bine_bdw_static_over", Implementation(algorithm="bine_scatter_allgather")),
        **_same("scatter_allgather_ompi scatter_allgather_over", Implementation(algorithm="scatter_allgather")),
        **_same("scatter_allgather_ring_ompi", Implementation(algorithm="scatter_ring")),
        **_same("default-pipeline", Implementation(algorithm="chain")),
    },
}  # fmt: skip

_OWN_CHOICE = "the library's own choice among its algorithms"
_REASONS: tuple[tuple[str, str, str], ...] = (  # system, pattern of the name, why it is not judged
    ("", r"default[_-](mpich|default|.*mpi)$|default$", _OWN_CHOICE),
    ("fugaku", r".*-UTOFU-", "uTofu implementation of this machine, several ports at once: its software is not MPI's"),
    ("fugaku", r"default-(3dtorus|gtbc|linear$|blacc|crp|doublespread|trix|trinary|bintree|rdbc)",
     "vendor algorithm for the torus, schedule not published"),
    ("fugaku", r"default-(basic.linear|binary-tree|chain|split-binary-tree|segmented_ring|nonoverlapping"
     r"|non-overlapping)", "the library replaces it by others at some sizes (same times to the digit)"),
    ("", r"allreduce_nccl_(nvls|nvlstree|collnet|collnetchain|collnetdirect|pat)",
     "NCCL fell back to ring or tree (same times within noise)"),
    ("", r"allreduce_hier_", "hierarchy of NCCL and MPI, schedule not published"),
    ("", r"bine_bdw_.*segmented", "messages cut in segments that overlap with reductions: not in the model"),
    ("", r".*(bine|swing|BINE|SWING)", "variant of a Bine tree that is not in the model"),
)  # fmt: skip
RENAMED = "allg scatter is old raben"  # of notes: a library rebuilt for that run
NCCL_SEGMENT_BYTES = 512 * 1024  # assumed: what one tree moves at a time; NCCL's buffers are 4 MiB in 8 slots
NCCL_MOST_SEGMENTS = 64
UNKNOWN_NAME = "the schedule of this name is not known"


def implementation_of(measurement: Measurement) -> Implementation | str:
    """What was measured, as a schedule, or why it cannot be judged (one phrase)."""
    known = IMPLEMENTATIONS.get(measurement.collective, {})
    if RENAMED in measurement.notes and measurement.name == "allgather_reduce_ompi":
        return known["rabenseifner_ompi"]
    if measurement.name == "default_ompi" and known:
        return _few_items(measurement, _open_mpi(measurement, known))
    if measurement.name == "allreduce_nccl_tree" and measurement.name in known:
        return _nccl_tree(measurement)
    if measurement.name in known:
        return _few_items(measurement, known[measurement.name])
    stem, _, maker = measurement.name.rpartition("_")
    if maker in ("over", "mpich", "ompi", "mpi") and f"{stem}_ompi" in known:
        return _few_items(measurement, known[f"{stem}_ompi"])
    for system, pattern, reason in _REASONS:
        if system in ("", measurement.system) and re.match(pattern, measurement.name):
            return reason
    return UNKNOWN_NAME


def _few_items(measurement: Measurement, way: Implementation) -> Implementation:
    """With fewer items than ranks the code of the ring all-reduce is recursive doubling."""
    few = measurement.collective == "all_reduce" and measurement.size_bytes < ITEM_BYTES * measurement.num_ranks
    if few and way.algorithm in ("ring", "segmented_ring"):
        return IMPLEMENTATIONS["all_reduce"]["recursive_doubling_ompi"]
    return way


def _open_mpi(measurement: Measurement, known: Mapping[str, Implementation]) -> Implementation:
    """What Open MPI's fixed rules choose, implemented as its algorithm of that name (unsegmented trees post all
    children at once)."""
    choice = open_mpi(measurement.collective, measurement.num_ranks, measurement.size_bytes)
    tree = {"binomial": "binomial_ompi", "knomial": "knomial_ompi"}.get(choice.algorithm)
    if tree is not None and tree in known:
        return known[tree]
    for name, one in sorted(known.items(), key=lambda entry: not entry[0].endswith("_ompi")):
        if one.algorithm == choice.algorithm and "nccl" not in name:
            return one
    return Implementation(algorithm=choice.algorithm, options=choice.options)


def _nccl_tree(measurement: Measurement) -> Implementation:
    """Two trees on each rail, their parts cut in segments."""
    rails = measurement.ranks_per_node
    wanted = round(measurement.size_bytes / (2 * rails * NCCL_SEGMENT_BYTES))
    segments = 1 << (min(max(wanted, 1), NCCL_MOST_SEGMENTS).bit_length() - 1)
    return Implementation(algorithm="double_binary_tree", options={"rails": rails, "num_segments": segments})
