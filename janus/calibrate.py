"""Measures one filling of a host with ranks: kernels, collectives, loading and short steps, as raw timings.

It owns the order and the process; what is timed is in ``calibrate_kernels``, ``calibrate_collectives`` and
``calibrate_steps``, and the constants are fitted from the raw timings by ``perfmodel.calibration``. Run as a module on
N ranks it measures one way of filling the node, and rank 0 prints its raw timings as the last line of JSON;
``janus calibrate`` starts that once per filling.

All ranks measure the same thing at the same time, so that contention for memory and cores is in the timings.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from janus.calibrate_clock import Clock
from janus.calibrate_collectives import QUICK_SIZES_BYTES, SIZES_BYTES, measure_collectives, measure_overlap
from janus.calibrate_kernels import (
    measure_grouped,
    measure_operators,
    measure_products,
    measure_square_products,
    measure_traffic,
)
from janus.calibrate_steps import (
    CROWDED_CASES,
    CROWDED_ROUNDS,
    QUICK_CASES,
    ROUNDS,
    STEP_CASES,
    Stepper,
    measure_loading,
    measure_prefetching,
    measure_steps,
)
from janus.parallel.communication import Communicator, connect

Measurement = tuple[str, Callable[[Clock], list[dict[str, Any]]]]
QUICK_SCALE = 0.4  # of the time that kernels are repeated for
QUICK_ROUNDS = 1


def measurements(quick: bool, crowded: bool) -> dict[str, Measurement]:
    """Stage -> (key of the raw timings, measurement).

    crowded: ranks share cores and take turns, which stretches all they compute alike: only how much is measured then,
    with a few cases.
    """
    cases = CROWDED_CASES[1::2] if crowded and quick else CROWDED_CASES if crowded else STEP_CASES
    if quick and not crowded:
        cases = QUICK_CASES
    rounds = QUICK_ROUNDS if quick else CROWDED_ROUNDS if crowded else ROUNDS
    sizes = QUICK_SIZES_BYTES if quick else SIZES_BYTES
    kernels: dict[str, Measurement] = {
        "products": ("matmul", measure_products),
        "grouped products": ("grouped", measure_grouped),
        "operators": ("fused", measure_operators),
        "traffic": ("traffic", measure_traffic),
        "loading": ("data", measure_loading),
    }
    steps: dict[str, Measurement] = {
        "collectives": ("collectives", lambda clock: measure_collectives(clock, sizes)),
        "overlap": ("overlap", measure_overlap),
        "steps": ("steps", lambda clock: measure_steps(clock, cases, rounds)),
    }
    if not quick:
        steps["loader beside steps"] = ("prefetching", measure_prefetching)
    return steps if crowded else kernels | steps


def num_stages(quick: bool, crowded: bool) -> int:
    """Stages that a filling announces."""
    return len(measurements(quick, crowded))


def measure_filling(
    communicator: Communicator, threads: int, on_stage: Callable[[str], None], *, quick: bool = False
) -> dict[str, Any]:
    """Raw timings of this way of filling the node, as JSON values; every rank measures, the caller keeps rank 0's."""
    torch.set_num_threads(threads)
    crowded = communicator.device.type == "cpu" and is_crowded(communicator.world_size, threads)
    clock = Clock(communicator, QUICK_SCALE if quick else 1.0)
    raw: dict[str, Any] = {
        "ranks": communicator.world_size, "threads": threads, "torch": torch.__version__,
        "transport": communicator.transport, "device": _device(communicator), "crowded": crowded,
    }  # fmt: skip
    for stage, (key, measure) in measurements(quick, crowded).items():
        on_stage(stage)
        raw[key] = measure(clock)
    if communicator.world_size == 1:
        raw["square"] = measure_square_products(clock)
    return raw


def is_crowded(ranks: int, threads: int = 1) -> bool:
    """Whether so many ranks share this host's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ranks * threads > cores


def _device(communicator: Communicator) -> dict[str, Any]:
    if communicator.device.type != "cuda":
        return {"type": "cpu"}
    properties = torch.cuda.get_device_properties(communicator.device)
    return {
        "type": "cuda", "name": properties.name, "memory_bytes": properties.total_memory,
        "count": torch.cuda.device_count(),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m janus.calibrate``: one rank of one filling; rank 0 prints stages, then the timings."""
    parser = argparse.ArgumentParser(prog="python -m janus.calibrate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--transport", choices=("auto", "gloo", "mpi", "nccl"), default="auto")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    communicator = connect(device=options.device, transport=options.transport, timeout_s=120.0)

    def announce(line: str) -> None:
        if communicator.rank == 0:
            print(line, flush=True)

    Stepper(STEP_CASES[0], communicator).step(0)
    announce("started")
    raw = measure_filling(
        communicator, options.threads, lambda stage: announce(f"stage {stage}"), quick=options.quick
    )  # fmt: skip
    announce(json.dumps(raw))
    communicator.leave(0)


if __name__ == "__main__":
    main()
