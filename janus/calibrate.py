"""Measures the host: products by shape, fused operators, memory traffic, all-reduce, loading, optimizer, short steps.

It owns the measuring, with torch and the trainer's own parts; the constants are fitted from these raw timings by
``perfmodel.calibration``. Run as a module on N ranks it measures one way of filling the node and rank 0 prints its
raw timings as the last line of JSON; ``janus calibrate`` starts that once per filling.

All ranks measure the same thing at the same time, so that contention for memory and cores is in the timings.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from torch import Tensor

from janus.config import ExpertConfig, ModelConfig, to_mapping
from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.kernels import operators
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.potential import evaluate_potential
from janus.parallel.communication import Communicator, connect
from janus.train.config import OptimizerConfig
from janus.train.ema import WeightAverage
from janus.train.optimizer import build_optimizer, clip_gradients, trainable
from janus.train.timing import PhaseTimer

STAGES = ("products", "operators", "traffic", "all-reduce", "optimizer", "loading", "steps")

# The calibration models: no preset, so that no preset is ever judged on timings that its constants were fitted to.
# Widths are multiples of 16 (one vector register of float32), as presets' are: others leave slow remainder loops.
_MATRIS = ModelConfig(num_blocks=1, width=48, cutoff_angstrom=5.0, line_cutoff_angstrom=3.5)
_MOE = ModelConfig(
    family="matris-moe", num_blocks=1, width=48, num_heads=4, angle_width=32,
    cutoff_angstrom=5.0, line_cutoff_angstrom=3.5,
    experts=ExpertConfig(num_experts=6, top_k=2, message_hidden=80, feature_hidden=48),
)  # fmt: skip


@dataclass(frozen=True)
class StepCase:
    """A model, the edge lengths (in cubic cells) of its copper structures, and whether it only judges the fit."""

    model: ModelConfig
    repeats: tuple[int, ...]
    held_out: bool = False


STEP_CASES = (
    StepCase(_MATRIS, (1,)),
    StepCase(_MATRIS, (2,)),
    StepCase(replace(_MATRIS, width=32), (2, 2)),
    StepCase(replace(_MATRIS, width=80, line_cutoff_angstrom=3.0), (2,)),
    StepCase(_MOE, (1,)),
    StepCase(_MOE, (2, 1)),
    StepCase(replace(_MATRIS, num_blocks=2, width=64, line_cutoff_angstrom=3.2), (2, 1), held_out=True),
    StepCase(replace(_MOE, num_blocks=2, width=64), (2,), held_out=True),
)


class Clock:
    """Repeats an action for about ``budget_s`` seconds and keeps every duration; ranks start each action together."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator

    def times(
        self, action: Callable[[], Any], *, budget_s: float = 0.06, least: int = 3, most: int = 25
    ) -> list[float]:
        """Durations of the action in seconds, after one unrecorded call."""
        action()
        self.communicator.barrier()
        seconds: list[float] = []
        end = time.perf_counter() + budget_s
        while len(seconds) < least or (len(seconds) < most and time.perf_counter() < end):
            start = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - start)
        return seconds


def copper(repeats: int, seed: int) -> Structure:
    """A rattled copper supercell of 4 repeats^3 atoms, with labels of zero."""
    atoms = bulk("Cu", cubic=True).repeat(repeats)
    atoms.rattle(0.05, seed=seed)
    return Structure(
        numbers=atoms.numbers.astype(np.int32), positions=atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc
    )


def measure_products(clock: Clock) -> list[dict[str, Any]]:
    """Tall-skinny products as the models make them: [R,n] [n,m], and their weight gradients [n,R] [R,m]."""
    samples = []
    for inputs, outputs in ((7, 48), (32, 32), (64, 64), (128, 128), (48, 96)):
        for rows in (64, 1024, 8192, 32768):
            left = [torch.randn(rows, inputs) for _ in range(4)]  # several, so that not everything sits in cache
            right, weight = torch.randn(rows, outputs), torch.randn(inputs, outputs)
            turn = iter(_cycle(left))
            for action in (lambda t=turn, w=weight: next(t) @ w, lambda t=turn, r=right: next(t).T @ r):
                seconds = clock.times(action, budget_s=0.03)
                samples.append({"rows": rows, "inputs": inputs, "outputs": outputs, "seconds": seconds})
    return samples


def _cycle(items: list[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from items


def measure_square_products(clock: Clock) -> list[dict[str, Any]]:
    """Large square products: the host's own peak."""
    samples = []
    for size in (768, 1024, 1536):
        left, right = torch.randn(size, size), torch.randn(size, size)
        seconds = clock.times(lambda a=left, b=right: a @ b, budget_s=0.25, most=12)
        samples.append({"rows": size, "inputs": size, "outputs": size, "seconds": seconds})
    return samples


def measure_traffic(clock: Clock) -> list[dict[str, Any]]:
    """Copy and triad on arrays larger than any cache: {"bytes" moved, "seconds"}."""
    size = 16 * 1024**2
    a, b, c = (torch.zeros(size) for _ in range(3))
    copy = clock.times(lambda: a.copy_(b), budget_s=0.15, most=12)
    triad = clock.times(lambda: torch.add(a, b, alpha=2.0, out=c), budget_s=0.15, most=12)
    return [
        {"name": "copy", "bytes": 8 * size, "seconds": copy},
        {"name": "triad", "bytes": 12 * size, "seconds": triad},
    ]


def _operator_cases(rows: int, channels: int) -> Iterator[tuple[str, Callable[[], Tensor], list[Tensor]]]:
    """(kind, the operator's call, its differentiable operands) on ``rows`` rows of ``channels`` channels."""
    segments = max(1, rows // 12)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    index = torch.randint(segments, (rows,), generator=generator).sort().values
    other = torch.randint(segments, (rows,), generator=generator)
    table, first, second, scale = (
        random(segments, channels), random(rows, channels), random(rows, channels), random(segments, channels),
    )  # fmt: skip
    affine, weight = random(4, channels), torch.rand(rows, generator=generator).requires_grad_()
    yield "gather", lambda: operators.gathered(table, index), [table]
    yield "silu", lambda: operators.silu(first), [first]
    yield "gated_norm", lambda: operators.gated_norm(first, second, affine), [first, second, affine]
    yield (
        "attention_sums",
        lambda: operators.attention_sums(first, weight, second, index, segments),
        [first, weight, second],
    )
    yield (
        "weighted_sum",
        lambda: operators.weighted_segment_sum(first, scale, other, index, segments),
        [first, scale],
    )


def measure_operators(clock: Clock) -> list[dict[str, Any]]:
    """Fused operators alone: forward, backward (differentiable) and double backward."""
    samples = []
    for rows, channels in ((1024, 32), (4096, 32), (3072, 64), (8192, 48)):  # calls of at most a few ms
        for kind, call, operands in _operator_cases(rows, channels):
            for name, seconds in _three_passes(clock, call, operands).items():
                samples.append({"kind": kind, "pass": name, "elements": rows * channels, "seconds": seconds})
    return samples


def _three_passes(clock: Clock, call: Callable[[], Tensor], operands: list[Tensor]) -> dict[str, list[float]]:
    result = {"forward": clock.times(call, budget_s=0.03)}
    output = call()
    cotangent = torch.randn_like(output).requires_grad_()

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, operands, cotangent, create_graph=True, retain_graph=True)

    result["backward"] = clock.times(backward, budget_s=0.03)
    # the double backward through the gradients of rows, not of parameters (the affine of a norm comes last)
    gradients = [gradient for gradient in backward() if gradient.requires_grad and gradient.shape[0] != 4]
    seeds = [torch.randn_like(gradient) for gradient in gradients]
    wanted = [*operands, cotangent]

    def double() -> Any:
        return torch.autograd.grad(gradients, wanted, seeds, retain_graph=True, allow_unused=True)

    result["double"] = clock.times(double, budget_s=0.03)
    return result


def measure_all_reduce(clock: Clock) -> list[dict[str, Any]]:
    """All-reduce through the trainer's communicator: {"bytes", "seconds"}; empty for one rank."""
    if clock.communicator.world_size == 1:
        return []
    samples = []
    for size in (32, 4096, 65536, 524288, 4194304):
        tensor = torch.zeros(size // 4)
        seconds = clock.times(lambda t=tensor: clock.communicator.all_reduce_sum(t), least=8, most=8)
        samples.append({"bytes": size, "seconds": seconds})
    return samples


def measure_optimizer(clock: Clock) -> list[dict[str, Any]]:
    """Clipping, AdamW and the weight average: {"bytes" by perfmodel's count of passes, "tensors", "seconds"}."""
    from perfmodel.step_time import OPTIMIZER_PASSES

    samples = []
    for config in (_MATRIS, replace(_MATRIS, num_blocks=2, width=128), _MOE):
        parameters = trainable(build_model(config))
        settings = OptimizerConfig()
        optimizer = build_optimizer(parameters, settings)
        average = WeightAverage(parameters, settings.ema_decay)
        for parameter in parameters.values():
            parameter.grad = torch.full_like(parameter, 1e-3)

        def update(p=parameters, o=optimizer, a=average, s=settings) -> None:
            clip_gradients(list(p.values()), s.clip_norm)
            o.step()
            a.update(1000)

        size = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
        samples.append({
            "bytes": OPTIMIZER_PASSES * size, "tensors": len(parameters), "seconds": clock.times(update, budget_s=0.12),
        })  # fmt: skip
    return samples


def _collated(config: ModelConfig, structures: list[Structure]) -> GraphBatch:
    graphs = [build_graph(s, config.cutoff_angstrom, config.line_cutoff_angstrom) for s in structures]
    return GraphBatch.collate(structures, graphs).to("cpu", torch.float32)


def measure_loading(clock: Clock) -> list[dict[str, Any]]:
    """Graphs and batches from structures in memory: {"structures", "edges", "angles", "seconds"}."""
    samples = []
    for cutoff, line_cutoff in ((5.0, 3.0), (5.0, 4.0), (3.5, 3.0)):
        config = replace(_MATRIS, cutoff_angstrom=cutoff, line_cutoff_angstrom=line_cutoff)
        for repeats in ((1, 1, 1, 1), (2, 2), (3,)):
            structures = [copper(size, seed) for seed, size in enumerate(repeats)]
            batch = _collated(config, structures)
            seconds = clock.times(lambda c=config, s=structures: _collated(c, s), budget_s=0.05)
            samples.append({
                "structures": len(structures), "edges": batch.num_edges, "angles": batch.num_angles, "seconds": seconds,
            })  # fmt: skip
    return samples


def measure_steps(clock: Clock, rounds: int = 5) -> list[dict[str, Any]]:
    """Short second-order steps of the calibration models: seconds of FE, FF and BF_BE, and the counts.

    Round after round over all cases, so that a burst of other work on the host does not fall on one case alone.
    """
    prepared = []
    for case in STEP_CASES:
        batch = _collated(case.model, [copper(size, seed) for seed, size in enumerate(case.repeats)])
        prepared.append((case, batch, build_model(case.model)))
    times: list[dict[str, list[float]]] = [{"FE": [], "FF": [], "BF_BE": []} for _ in prepared]
    for number in range(rounds + 1):
        for (_, batch, model), seconds in zip(prepared, times, strict=True):
            phase_s = _time_step(clock, model, batch)
            for phase in seconds if number else ():  # the first round warms up
                seconds[phase].append(phase_s[phase])
    return [_step_sample(case, batch, seconds) for (case, batch, _), seconds in zip(prepared, times, strict=True)]


def _time_step(clock: Clock, model: torch.nn.Module, batch: GraphBatch) -> dict[str, float]:
    clock.communicator.barrier()
    timer = PhaseTimer(torch.device("cpu"))
    model.zero_grad(set_to_none=True)  # as the trainer does
    prediction = evaluate_potential(model, batch, create_graph=True, phase=timer)
    with timer("BF_BE"):
        terms = (prediction.energy, prediction.forces, prediction.stress)
        sum(term.square().sum() for term in terms).backward()
    return timer.phase_s


def _step_sample(case: StepCase, batch: GraphBatch, seconds: dict[str, list[float]]) -> dict[str, Any]:
    counts = {
        "structures": batch.num_structures, "atoms": batch.num_atoms, "edges": batch.num_edges,
        "bonds": batch.num_bonds, "angles": batch.num_angles,
    }  # fmt: skip
    return {
        "model": to_mapping(case.model), "counts": counts, "recompute": False, "held_out": case.held_out,
        "seconds": seconds,
    }  # fmt: skip


MEASUREMENTS: dict[str, tuple[str, Callable[[Clock], list[dict[str, Any]]]]] = {
    "products": ("matmul", measure_products),
    "operators": ("fused", measure_operators),
    "traffic": ("traffic", measure_traffic),
    "all-reduce": ("all_reduce", measure_all_reduce),
    "optimizer": ("optimizer", measure_optimizer),
    "loading": ("data", measure_loading),
    "steps": ("steps", measure_steps),
}
assert tuple(MEASUREMENTS) == STAGES, f"{tuple(MEASUREMENTS)} measured, {STAGES} announced"


def measure_filling(communicator: Communicator, threads: int, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """Raw timings of this way of filling the node, as JSON values; every rank measures, the caller keeps rank 0's."""
    torch.set_num_threads(threads)
    clock = Clock(communicator)
    raw: dict[str, Any] = {"ranks": communicator.world_size, "threads": threads, "torch": torch.__version__,
                           "transport": communicator.transport}  # fmt: skip
    for stage, (key, measure) in MEASUREMENTS.items():
        on_stage(stage)
        raw[key] = measure(clock)
    if communicator.world_size == 1:
        raw["square"] = measure_square_products(clock)
    return raw


def main(arguments: list[str]) -> None:
    """``python -m janus.calibrate THREADS``: one rank of one filling; rank 0 prints stages, then the timings."""
    threads = int(arguments[0])
    communicator = connect(device="cpu", timeout_s=120.0)

    def announce(stage: str) -> None:
        if communicator.rank == 0:
            print(f"stage {stage}", flush=True)

    raw = measure_filling(communicator, threads, announce)
    if communicator.rank == 0:
        print(json.dumps(raw), flush=True)
    communicator.leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
