"""One global step on one rank: gradients of its micro-batches, their sum over ranks, one optimizer update.

Phases (JanusPipe's names): FE energy forward, FF forces, BF + BE the second-order backward. It does not own the loop.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from janus.model.potential import evaluate_potential
from janus.parallel.communication import Communicator
from janus.parallel.gradients import GradientBuckets
from janus.train.config import LossConfig
from janus.train.loader import MicroBatch
from janus.train.loss import Denominators, batch_loss
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
    model: nn.Module,
    micro_batches: list[MicroBatch],
    denominators: Denominators,
    config: LossConfig,
    timer: PhaseTimer,
    *,
    recompute: bool = False,
) -> Tensor:
    """Add the gradients of this rank's micro-batches to the parameters.

    Returns a float64 [4] on the CPU: this rank's part of the global loss and of the three MAEs.
    """
    totals = torch.zeros(4, dtype=torch.float64)
    for micro_batch in micro_batches:
        prediction = evaluate_potential(model, micro_batch.batch, create_graph=True, phase=timer, recompute=recompute)
        with timer("BF_BE"):
            loss, parts = batch_loss(prediction, micro_batch.labels, denominators, config)
            if loss.requires_grad:
                loss.backward()
            totals += torch.cat([loss.detach()[None], parts]).cpu()
    return totals


def synchronise(
    communicator: Communicator, buckets: GradientBuckets, totals: Tensor, requested_exit: int
) -> StepTotals:
    """Sum losses and gradients over ranks. The first, tiny all-reduce takes the wait for slower ranks: wait_s.

    requested_exit: exit code of a signal that this rank received, or 0; all ranks learn the largest.
    """
    start = time.perf_counter()
    asked = communicator.all_reduce_max(torch.tensor([requested_exit]))
    wait_s = time.perf_counter() - start
    communicator.all_reduce_sum(totals)
    buckets.fill_missing()
    buckets.sum_over_ranks(communicator)
    loss, energy_mae, forces_mae, stress_mae = totals.tolist()
    return StepTotals(
        loss=loss, energy_mae=energy_mae, forces_mae=forces_mae, stress_mae=stress_mae,
        exit_code=int(asked), wait_s=wait_s if communicator.world_size > 1 else 0.0,
    )  # fmt: skip


def count_micro_batches(micro_batches: list[MicroBatch]) -> dict[str, int]:
    """What this rank worked on in one step."""
    batches = [micro_batch.batch for micro_batch in micro_batches]
    return {
        "structures": sum(micro_batch.num_counted_structures for micro_batch in micro_batches),
        "atoms": sum(batch.num_atoms for batch in batches),
        "edges": sum(batch.num_edges for batch in batches),
        "bonds": sum(batch.num_bonds for batch in batches),
        "angles": sum(batch.num_angles for batch in batches),
        "micro_batches": len(batches),
    }


@torch.no_grad()
def count_tokens(model: nn.Module, micro_batches: list[MicroBatch]) -> dict[str, list[int]]:
    """Tokens per expert and MoE layer that this rank's micro-batches route; empty for a model without experts."""
    count = getattr(model, "tokens_per_expert", None)
    sums: dict[str, Any] = {}
    for micro_batch in micro_batches if count is not None else []:
        for layer, tokens in (count(micro_batch.batch) or {}).items():
            sums[layer] = sums.get(layer, 0) + tokens
    return {layer: [int(number) for number in tokens.tolist()] for layer, tokens in sums.items()}


def add_tokens(per_rank: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    """Tokens per expert over all ranks."""
    layers = {layer for tokens in per_rank for layer in tokens}
    return {
        layer: [sum(column) for column in zip(*(tokens[layer] for tokens in per_rank if layer in tokens), strict=True)]
        for layer in sorted(layers)
    }
