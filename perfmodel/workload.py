"""The work of one training step as formulas of (model configuration, counts): parameters, FLOPs, bytes, messages.

It owns the entry points; the products of each family are in ``workload_matris`` and ``workload_moe``, the autodiff
rules in ``products``. It does not own how long the work takes (``step_time``) or what it keeps (``memory``).
"""

from __future__ import annotations

from dataclasses import dataclass

from janus.config import ModelConfig
from perfmodel import workload_matris, workload_moe
from perfmodel.products import PHASES, Counts, Product, phase_flops, total_counts

__all__ = ["PHASES", "Counts", "ParameterCounts", "StepFlops", "parameter_counts", "products_of", "step_flops",
           "total_counts"]  # fmt: skip

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Learned numbers of a model. parts: exact, summing to total; active: those one token meets (top-k experts)."""

    parts: dict[str, int]
    total: int
    active: int


def parameter_counts(model: ModelConfig) -> ParameterCounts:
    """Parameters of the model: total, active, and per part. Exact (tests compare with the real model)."""
    if model.family == "matris":
        parts = workload_matris.parameters(model)
        return ParameterCounts(parts=parts, total=sum(parts.values()), active=sum(parts.values()))
    parts = workload_moe.parameters(model)
    experts = workload_moe.experts_of(model)
    routed = parts["message_experts"] + parts["feature_experts"]
    idle = routed * (experts.num_experts - experts.top_k) // experts.num_experts
    return ParameterCounts(parts=parts, total=sum(parts.values()), active=sum(parts.values()) - idle)


def products_of(model: ModelConfig) -> list[Product]:
    """Every matrix product of one energy forward of the model."""
    return workload_matris.products(model) if model.family == "matris" else workload_moe.products(model)


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of one training step of one rank, per phase FE, FF, BF, BE and in total.

    model: what the mathematics needs (no recompute): use it for percentages of peak between machines.
    executed: what runs, with recomputed forwards where second-order checkpointing is on.
    """

    model: dict[str, float]
    executed: dict[str, float]

    @property
    def model_total(self) -> float:
        return sum(self.model.values())

    @property
    def executed_total(self) -> float:
        return sum(self.executed.values())


def step_flops(model: ModelConfig, counts: Counts, *, recompute: bool) -> StepFlops:
    """Matrix-product FLOPs of one step on a batch with these counts.

    recompute: second-order activation checkpointing of the blocks as in janus/model/recompute.py. Their forward runs
    again in the force pass (FF + 1 FE). The backward through the force pass runs forward and force again and then
    differentiates both (BF + FE + FF + BE); the backward through the energy runs the forward once more (BE + FE).
    A product with weights in a block then costs 1 + 2 + 6 + 3 = 12 forward-equivalents per step instead of 6.
    """
    products = products_of(model)
    flops = phase_flops(products, counts)
    executed = dict(flops)
    if recompute:
        in_blocks = [product for product in products if product.part.startswith("block")]
        blocks = phase_flops(in_blocks, counts)
        inner = phase_flops([product for product in in_blocks if not product.leaves_block], counts)
        executed["FF"] += blocks["FE"]
        executed["BF"] += blocks["FE"] + blocks["FF"] + inner["BE"]
        executed["BE"] += blocks["FE"]
    return StepFlops(model=flops, executed=executed)
