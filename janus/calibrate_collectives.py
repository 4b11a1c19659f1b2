"""Collectives as the layouts call them, over every transport of the job, and what of them compute hides.

It owns sizes, groups and repeats; the constants are fitted by ``perfmodel.calibration_collectives``. Sizes are those of
``perfmodel/network/schedule.py``: the buffer of one rank, the gathered result, or all that one rank sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from janus.calibrate_clock import Clock
from janus.parallel.axis import Axis, Pending
from janus.parallel.communication import Communicator

SIZES_BYTES = (64, 1024, 16 * 1024, 128 * 1024, 1024**2, 4 * 1024**2, 16 * 1024**2)
QUICK_SIZES_BYTES = (64, 16 * 1024, 256 * 1024, 2 * 1024**2)
ROUNDS = 2  # over all sizes: a burst of other work shall not fall on one size alone
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
OVERLAP_BYTES = 4 * 1024**2


def groups_of(world_size: int) -> list[list[list[int]]]:
    """Partitions of the ranks that are measured: all in one group, and pairs, all at once, where there are more."""
    everyone = [list(range(world_size))]
    if world_size <= 2 or world_size % 2:
        return [everyone]
    return [everyone, [[first, first + 1] for first in range(0, world_size, 2)]]


def transports_of(communicator: Communicator) -> list[str]:
    """What carries axes in this job: its own transport, and gloo beside MPI."""
    return ["gloo", "mpi"] if communicator.transport == "mpi" else [communicator.transport]


def measure_collectives(clock: Clock, sizes: Sequence[int] = SIZES_BYTES) -> list[dict[str, Any]]:
    """Every collective, size, partition and transport: {"transport", "collective", "ranks", "groups", "bytes",
    "seconds"}; empty for one rank.
    """
    communicator = clock.communicator
    if communicator.world_size == 1:
        return []
    samples: dict[tuple[Any, ...], dict[str, Any]] = {}
    axes = {
        (transport, len(groups)): communicator.make_axis(
            f"calibration_{transport}_{len(groups)}", groups, transport=transport
        )
        for transport in transports_of(communicator) for groups in groups_of(communicator.world_size)
    }  # fmt: skip
    for _ in range(ROUNDS):
        for (transport, num_groups), axis in axes.items():
            for collective in COLLECTIVES:
                for size in sizes:
                    action = _action(axis, collective, size, clock.device)
                    seconds = clock.together(action, _repeats(size))
                    key = (transport, num_groups, collective, size)
                    sample = samples.setdefault(key, {
                        "transport": transport, "collective": collective, "ranks": axis.size, "groups": num_groups,
                        "bytes": size, "seconds": [],
                    })  # fmt: skip
                    sample["seconds"] += seconds
    return list(samples.values())


def _repeats(size_bytes: int) -> int:
    """The same on all ranks: they cannot agree on a time."""
    return 6 if size_bytes <= 128 * 1024 else 3 if size_bytes <= 4 * 1024**2 else 2


def _action(axis: Axis, collective: str, size_bytes: int, device: torch.device) -> Callable[[], None]:
    """One call and its wait. size_bytes: m, rounded down to equal parts of float32."""
    part = max(1, size_bytes // 4 // axis.size)
    whole, piece = torch.zeros(part * axis.size, device=device), torch.zeros(part, device=device)
    if collective == "all_reduce":
        return lambda: axis.all_reduce(whole).wait()
    if collective == "all_gather":
        return lambda: axis.all_gather(whole, piece).wait()
    if collective == "reduce_scatter":
        return lambda: axis.reduce_scatter(piece, whole).wait()
    rows, output, shares = whole[:, None], torch.zeros_like(whole)[:, None], [part] * axis.size
    return lambda: axis.all_to_all(output, rows, shares, shares).wait()


def measure_overlap(clock: Clock) -> list[dict[str, Any]]:
    """A gather alone, products alone, and both at once: {"transport", "alone_s", "compute_s", "both_s"} of repeats."""
    communicator = clock.communicator
    if communicator.world_size == 1:
        return []
    samples = []
    for transport in transports_of(communicator):
        everyone = [list(range(communicator.world_size))]
        axis = communicator.make_axis(f"overlap_{transport}", everyone, transport=transport)
        part = OVERLAP_BYTES // 4 // axis.size
        whole, piece = torch.zeros(part * axis.size, device=clock.device), torch.zeros(part, device=clock.device)

        def start(a: Axis = axis, w: torch.Tensor = whole, p: torch.Tensor = piece) -> Pending:
            return a.all_gather(w, p)

        alone = sorted(clock.together(lambda s=start: s().wait(), 4))[1]
        calls = _calls_for(clock, alone)
        products = _products(clock, calls)

        def both(s: Callable[[], Pending] = start, p: Callable[[], None] = products) -> None:
            pending = s()
            p()
            pending.wait()

        sample: dict[str, Any] = {"transport": transport, "alone_s": [], "compute_s": [], "both_s": []}
        for _ in range(6):
            for key, action in (("alone_s", lambda s=start: s().wait()), ("compute_s", products), ("both_s", both)):
                sample[key] += clock.together(action, 1)
        samples.append(sample)
    return samples


def _calls_for(clock: Clock, seconds: float) -> int:
    """Products that take about as long, the same number on all ranks."""
    one = clock.once(_products(clock, 4)) / 4
    mine = torch.tensor([max(1.0, seconds / one)], dtype=torch.float64)
    return round(float(clock.communicator.all_reduce_sum(mine)) / clock.communicator.world_size)


def _products(clock: Clock, calls: int) -> Callable[[], None]:
    rows, weight = torch.randn(2048, 64, device=clock.device), torch.randn(64, 64, device=clock.device)
    out = torch.empty_like(rows)

    def run() -> None:
        for _ in range(calls):
            torch.mm(rows, weight, out=out)

    return run
