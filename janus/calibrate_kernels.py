"""Kernels alone, by shape and kind: products, grouped products, fused operators, memory traffic, new pages.

It owns which shapes are timed; the constants are fitted from them by ``perfmodel.calibration``. All ranks of a filling
time the same kernel at the same time, so that contention for memory and cores is in the timings.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus.calibrate_clock import Clock
from janus.kernels import operators

# [R,n] [n,m] as the models have them: radial bases, narrow and wide layers, the readout's; and their rows
PRODUCT_SHAPES = ((7, 48), (16, 16), (32, 32), (64, 64), (128, 128), (48, 96), (192, 64))
PRODUCT_ROWS = (64, 1024, 8192, 30_000)
GROUPED_SHAPES = ((32, 128), (96, 256), (192, 384))  # inputs and outputs of one expert
GROUPED_ROWS = ((4, 16), (4, 256), (16, 16), (16, 128))  # experts, rows of each
FUSED_SHAPES = ((1024, 16), (8192, 16), (1024, 48), (8192, 32), (4096, 64), (8192, 96), (2048, 128))
TRAFFIC_NUMEL = 16 * 1024**2  # above any cache
PAGES_BYTES = 32 * 1024**2


def measure_products(clock: Clock) -> list[dict[str, Any]]:
    """Tall-skinny products as the models make them: [R,n] [n,m], and their weight gradients [n,R] [R,m]."""
    samples = []
    for (inputs, outputs), rows in itertools.product(PRODUCT_SHAPES, PRODUCT_ROWS):
        # several operands, so that not everything sits in cache
        left = [torch.randn(rows, inputs, device=clock.device) for _ in range(4)]
        right = [torch.randn(rows, outputs, device=clock.device) for _ in range(4)]
        weight, out = torch.randn(inputs, outputs, device=clock.device), torch.empty_like(right[0])
        turn, turns = iter(_cycle(left)), iter(_cycle(list(zip(left, right, strict=True))))
        for action in (
            lambda t=turn, w=weight, o=out: torch.mm(next(t), w, out=o),
            lambda t=turns: _weight_gradient(*next(t)),
        ):
            seconds = clock.times(action, budget_s=0.02)
            samples.append({"rows": rows, "inputs": inputs, "outputs": outputs, "seconds": seconds})
    return samples


def _weight_gradient(rows: Tensor, cotangent: Tensor) -> Tensor:
    return rows.T @ cotangent


def _cycle(items: list[Any]) -> Iterator[Any]:
    while True:
        yield from items


def measure_grouped(clock: Clock) -> list[dict[str, Any]]:
    """Products of routed experts, and their gradients by the rows: {"rows" of each of "experts", ...}."""
    samples = []
    for (inputs, outputs), (experts, each) in itertools.product(GROUPED_SHAPES, GROUPED_ROWS):
        rows = torch.randn(experts * each, inputs, device=clock.device)
        weights, loads = torch.randn(experts, outputs, inputs, device=clock.device), [each] * experts
        seconds = clock.times(lambda r=rows, w=weights, n=loads: operators.grouped_product(r, w, n), budget_s=0.02)
        samples.append({
            "rows": each, "experts": experts, "inputs": inputs, "outputs": outputs, "seconds": seconds,
        })  # fmt: skip
    return samples


def measure_square_products(clock: Clock) -> list[dict[str, Any]]:
    """Large square products: the device's own peak."""
    samples = []
    for size in (768, 1024, 1536) if clock.device.type == "cpu" else (4096, 8192):
        left, right = (torch.randn(size, size, device=clock.device) for _ in range(2))
        seconds = clock.times(lambda a=left, b=right: a @ b, budget_s=0.25, most=12)
        samples.append({"rows": size, "inputs": size, "outputs": size, "seconds": seconds})
    return samples


def measure_traffic(clock: Clock) -> list[dict[str, Any]]:
    """Copy and triad on arrays larger than any cache, and the first touch of new pages: {"bytes" moved, "seconds"}."""
    size = TRAFFIC_NUMEL
    a, b, c = (torch.zeros(size, device=clock.device) for _ in range(3))
    copy = clock.times(lambda: a.copy_(b), budget_s=0.15, most=12)
    triad = clock.times(lambda: torch.add(a, b, alpha=2.0, out=c), budget_s=0.15, most=12)
    samples = [
        {"name": "copy", "bytes": 8 * size, "seconds": copy},
        {"name": "triad", "bytes": 12 * size, "seconds": triad},
    ]
    if clock.device.type == "cpu":
        samples.append({"name": "pages", "bytes": PAGES_BYTES, "seconds": clock.times(_touch_new_pages, least=5)})
    return samples


def _touch_new_pages() -> None:
    """One byte of every page of a new block of memory: what the operating system takes to hand them out."""
    with mmap.mmap(-1, PAGES_BYTES) as block:
        view = np.frombuffer(block, dtype=np.uint8)
        view[:: mmap.PAGESIZE] = 1
        del view


def operator_cases(
    rows: int, channels: int, device: torch.device
) -> Iterator[tuple[str, Callable[[], Tensor], list[Tensor]]]:
    """(kind, the operator's call, its differentiable operands) on ``rows`` rows of ``channels`` channels."""
    segments = max(1, rows // 12)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device).requires_grad_()

    index = torch.randint(segments, (rows,), generator=generator).sort().values.to(device)
    other = torch.randint(segments, (rows,), generator=generator).to(device)
    table, first, second, scale = (
        random(segments, channels), random(rows, channels), random(rows, channels), random(segments, channels),
    )  # fmt: skip
    affine = random(4, channels)
    weight = torch.rand(rows, generator=generator).to(device).requires_grad_()
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
    for rows, channels in FUSED_SHAPES:  # calls of at most some ms
        for kind, call, operands in operator_cases(rows, channels, clock.device):
            for name, seconds in _three_passes(clock, call, operands).items():
                samples.append({"kind": kind, "pass": name, "rows": rows, "channels": channels, "seconds": seconds})
    return samples


def _three_passes(clock: Clock, call: Callable[[], Tensor], operands: list[Tensor]) -> dict[str, list[float]]:
    result = {"forward": clock.times(call, budget_s=0.015)}
    output = call()
    cotangent = torch.randn_like(output).requires_grad_()

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, operands, cotangent, create_graph=True, retain_graph=True)

    result["backward"] = clock.times(backward, budget_s=0.015)
    # the double backward through the gradients of rows, not of parameters (the affine of a norm comes last)
    gradients = [gradient for gradient in backward() if gradient.requires_grad and gradient.shape[0] != 4]
    seeds = [torch.randn_like(gradient) for gradient in gradients]
    wanted = [*operands, cotangent]

    def double() -> Any:
        return torch.autograd.grad(gradients, wanted, seeds, retain_graph=True, allow_unused=True)

    result["double"] = clock.times(double, budget_s=0.015)
    return result
