"""One global step on one rank: gradients of its micro-batches, their sum over ranks, one optimizer update.

Phases (JanusPipe's names): FE energy forward, FF forces, BF + BE the second-order backward. It does not own the loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from janus.parallel.communication import Communicator
from janus.parallel.fs3d import DistributedModel
from janus.train.config import LossConfig
from janus.train.loader import MicroBatch
from janus.train.loss import Denominators, batch_loss
from janus.train.optimizer import clip_to_norm, gradient_norm, step_stage
from janus.train.timing import PhaseTimer


@dataclass(frozen=True, kw_only=True)
class StepTotals:
    """Sums over the global batch, equal on all ranks: loss, MAEs (energy per atom, forces, stress), exit code asked."""

    loss: float
    energy_mae: float
    forces_mae: float
    stress_mae: float
    exit_code: int
    wait_s: float


def accumulate_gradients(
    distributed: DistributedModel,
    micro_batches: Collection[MicroBatch],
    denominators: Denominators,
    config: LossConfig,
    timer: PhaseTimer,
) -> tuple[Tensor, dict[str, list[int]]]:
    """Add the gradients of this rank's micro-batches to its pieces; sums over replicas start with the last one.

    micro_batches: on the model's device; nothing of one is kept while the next is awaited.
    Returns a float64 [4] on the CPU, this rank's part of the global loss and of the three MAEs, and the tokens per
    expert that it routed, by MoE layer (empty for a model without experts).
    """
    totals = torch.zeros(4, dtype=torch.float64)
    tokens: dict[str, Tensor] = {}

    def add(micro_batch: MicroBatch, *, is_last: bool) -> None:
        prediction = distributed.evaluate(micro_batch.batch, create_graph=True, phase=timer, tokens=tokens)
        with timer("BF_BE"):
            loss, parts = batch_loss(prediction, micro_batch.labels, denominators, config)
            distributed.backward(loss, is_last=is_last)
            totals.add_(torch.cat([loss.detach()[None], parts]).cpu())

    with distributed.step():
        left = iter(micro_batches)
        for number in range(1, len(micro_batches) + 1):
            add(next(left), is_last=number == len(micro_batches))
    return totals, {layer: counts.tolist() for layer, counts in tokens.items()}


def sum_totals(communicator: Communicator, totals: Tensor, requested_exit: int) -> StepTotals:
    """Sum losses over ranks. The first, tiny all-reduce takes the wait for slower ranks: wait_s.

    requested_exit: exit code of a signal that this rank received, or 0; all ranks learn the largest.
    """
    start = time.perf_counter()
    asked = communicator.all_reduce_max(torch.tensor([requested_exit]))
    wait_s = time.perf_counter() - start
    communicator.all_reduce_sum(totals)
    loss, energy_mae, forces_mae, stress_mae = totals.tolist()
    return StepTotals(
        loss=loss, energy_mae=energy_mae, forces_mae=forces_mae, stress_mae=stress_mae,
        exit_code=int(asked), wait_s=wait_s if communicator.world_size > 1 else 0.0,
    )  # fmt: skip


def update(
    distributed: DistributedModel, optimizer: torch.optim.Optimizer, clip_norm: float | None, timer: PhaseTimer
) -> float:
    """Complete the sums of gradients over replicas and update the pieces; returns the gradient's norm.

    Without clip_norm a stage is updated as soon as its sum is there, later ones in flight; clipping needs the norm of
    all first. With clip_norm nothing is changed when the norm is not finite.
    """
    stages = distributed.sums.finish()
    while True:
        with timer("sync"):
            stage = next(stages, None)
        if stage is None:
            break
        if clip_norm is None:
            with timer("optimizer"):
                step_stage(optimizer, stage)
    with timer("optimizer"):
        norm = gradient_norm(distributed.pieces, distributed.axes.world)
        if clip_norm is not None and math.isfinite(norm):
            clip_to_norm(distributed.pieces, norm, clip_norm)
            optimizer.step()
    return norm


def add_tokens(per_rank: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    """Tokens per expert over all ranks."""
    layers = {layer for tokens in per_rank for layer in tokens}
    return {
        layer: [sum(column) for column in zip(*(tokens[layer] for tokens in per_rank if layer in tokens), strict=True)]
        for layer in sorted(layers)
    }
