"""The work of one training step as formulas of (model configuration, counts): parameters, FLOPs, bytes, messages.

It owns the entry points; the products of each family are in ``workload_matris`` and ``workload_moe``, the autodiff
rules in ``products``. It does not own how long the work takes (``step_time``) or what it keeps (``memory``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from janus.config import ModelConfig
from perfmodel import workload_matris, workload_moe
from perfmodel.operators import ARRAYS, Operator, no_elements, phase_elements
from perfmodel.plain_arithmetic import gradient_numbers, plain_calls, plain_numbers
from perfmodel.products import PHASES, Counts, Product, phase_flops, phase_product_arrays, total_counts

__all__ = [
    "PHASES",
    "Counts",
    "ParameterCounts",
    "PhaseWork",
    "StepFlops",
    "gradient_bytes",
    "operators_of",
    "parameter_counts",
    "parameter_tensors",
    "phase_work",
    "products_of",
    "step_flops",
    "total_counts",
]

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


def operators_of(model: ModelConfig) -> list[Operator]:
    """Every fused operator of one energy forward."""
    return workload_matris.operators(model) if model.family == "matris" else workload_moe.operators(model)


def parameter_tensors(model: ModelConfig) -> int:
    """Number of trained parameter tensors, exact."""
    family = workload_matris if model.family == "matris" else workload_moe
    return family.parameter_tensors(model)


def gradient_bytes(model: ModelConfig, dtype: str = "float32") -> float:
    """Bytes of the gradients that data parallelism all-reduces once per step and rank: every trained parameter."""
    parts = parameter_counts(model).parts
    fixed = parts.get("reference_energies", 0)
    return float((sum(parts.values()) - fixed) * ITEM_BYTES[dtype])


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of one training step of one rank, per phase FE, FF, BF, BE and in total.

    model: what the mathematics needs (no recompute): use it for percentages of peak between machines.
    executed: what runs on a CPU: with the products that fused operators make again rather than keep, and with the
    recomputed forwards where second-order checkpointing is on.
    """

    model: dict[str, float]
    executed: dict[str, float]

    @property
    def model_total(self) -> float:
        return sum(self.model.values())

    @property
    def executed_total(self) -> float:
        return sum(self.executed.values())


@dataclass(kw_only=True)
class PhaseWork:
    """What one phase executes: FLOPs and bytes of products, elements of fused operators by kind and pass (forward,
    backward, double), bytes of plain arithmetic, kernel launches.

    grouped_flops, grouped_bytes, grouped_calls: of the routed experts' grouped products, in none of the others.
    """

    flops: float = 0.0
    product_bytes: float = 0.0
    fused: dict[str, dict[str, float]] = field(default_factory=no_elements)
    plain_bytes: float = 0.0
    launches: float = 0.0
    grouped_flops: float = 0.0
    grouped_bytes: float = 0.0
    grouped_calls: float = 0.0

    @property
    def all_flops(self) -> float:
        """FLOPs of all products."""
        return self.flops + self.grouped_flops

    def all_bytes(self, item_bytes: int) -> float:
        """Bytes of memory moved by products, fused operators (each array once, a lower bound) and plain arithmetic."""
        fused = sum(
            elements * ARRAYS[kind][name] for kind, passes in self.fused.items() for name, elements in passes.items()
        )
        return self.product_bytes + self.grouped_bytes + self.plain_bytes + fused * item_bytes

    def add(self, other: PhaseWork, times: float = 1) -> None:
        """Add another phase's work to this one, several times."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for kind, passes in other.fused.items():
            for name, elements in passes.items():
                self.fused[kind][name] += times * elements


_SUMMED = ("flops", "product_bytes", "plain_bytes", "launches", "grouped_flops", "grouped_bytes", "grouped_calls")


def _work(
    products: Sequence[Product], operators: Sequence[Operator], counts: Counts, item_bytes: int
) -> dict[str, PhaseWork]:
    """The work of these products and fused operators per phase, without recompute."""
    single = [product for product in products if not product.is_grouped]
    grouped = [product for product in products if product.is_grouped]
    flops, grouped_flops = phase_flops(single, counts, executed=True), phase_flops(grouped, counts, executed=True)
    arrays, launches = phase_product_arrays(single, counts)
    grouped_arrays, grouped_calls = phase_product_arrays(grouped, counts)
    elements = phase_elements(operators, products, counts)
    return {
        phase: PhaseWork(
            flops=flops[phase], product_bytes=arrays[phase] * item_bytes, fused=elements.fused[phase],
            launches=launches[phase] + elements.launches[phase], grouped_flops=grouped_flops[phase],
            grouped_bytes=grouped_arrays[phase] * item_bytes, grouped_calls=grouped_calls[phase],
        )
        for phase in PHASES
    }  # fmt: skip


def _plain_work(model: ModelConfig, counts: Counts, item_bytes: int) -> tuple[dict[str, PhaseWork], ...]:
    """Plain arithmetic per phase: in the blocks, and outside."""
    return tuple(
        {phase: PhaseWork(plain_bytes=numbers[phase] * item_bytes, launches=calls[phase]) for phase in PHASES}
        for numbers, calls in zip(plain_numbers(model, counts), plain_calls(model), strict=True)
    )


def phase_work(model: ModelConfig, counts: Counts, *, recompute: bool, item_bytes: int) -> dict[str, PhaseWork]:
    """Executed work of one micro-batch per phase FE, FF, BF, BE. recompute: see ``step_flops``.

    Without what exchanges of a layout add (``exchange_arithmetic``).
    """
    products, operators = products_of(model), operators_of(model)
    result = _work(products, operators, counts, item_bytes)
    plain_in_blocks, plain_outside = _plain_work(model, counts, item_bytes)
    for phase in PHASES:
        result[phase].add(plain_in_blocks[phase])
        result[phase].add(plain_outside[phase])
    if recompute:
        inside = [product for product in products if product.part.startswith("block")]
        inner = [product for product in inside if not product.leaves_block]
        inside_operators = [operator for operator in operators if operator.part.startswith("block")]
        block = _work(inside, inside_operators, counts, item_bytes)
        backward = _work(inner, inside_operators, counts, item_bytes)["BE"]
        for phase in PHASES:
            block[phase].add(plain_in_blocks[phase])
        backward.add(plain_in_blocks["BE"])
        result["FF"].add(block["FE"])
        for again in (block["FE"], block["FF"], backward):
            result["BF"].add(again)
        result["BE"].add(block["FE"])
        # a block's gradients by BF reach BE on its inputs only: there is nothing to add up inside, as in FF
        made, numbers = gradient_numbers(model, counts), plain_numbers(model, counts)[0]
        rows_of_both = (numbers["BE"] - made["BE"]) - (numbers["FF"] - made["FF"])
        result["BE"].plain_bytes -= rows_of_both * item_bytes
    return result


def step_flops(model: ModelConfig, counts: Counts, *, recompute: bool) -> StepFlops:
    """Matrix-product FLOPs of one step on a batch with these counts.

    recompute: second-order activation checkpointing of the blocks as in janus/model/recompute.py. Their forward runs
    again in the force pass (FF + 1 FE). The backward through the force pass runs forward and force again and then
    differentiates both (BF + FE + FF + BE); the backward through the energy runs the forward once more (BE + FE).
    A product with weights in a block then costs 1 + 2 + 6 + 3 = 12 forward-equivalents per step instead of 6.
    """
    executed = phase_work(model, counts, recompute=recompute, item_bytes=4)
    return StepFlops(
        model=phase_flops(products_of(model), counts),
        executed={phase: executed[phase].all_flops for phase in PHASES},
    )
