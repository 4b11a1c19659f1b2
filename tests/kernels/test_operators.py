"""Every fused operator against its plain definition: values, first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from janus.kernels import fused, reference
from janus.kernels.wanted import without_parameter_gradients

NUM_ROWS, WIDTH, NUM_SEGMENTS = 37, 12, 6
Case = Callable[[ModuleType, list[Tensor]], Tensor]


def _indices() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(0, NUM_SEGMENTS - 1, (NUM_ROWS,), generator=generator) for _ in range(2))  # type: ignore


FIRST, SECOND = _indices()  # the last segment stays empty
ROWS, TABLE, CHANNELS = (NUM_ROWS, WIDTH), (NUM_SEGMENTS, WIDTH), (WIDTH,)
# name -> (shapes of the inputs, how many of them are not parameters, the call)
CASES: dict[str, tuple[list[tuple[int, ...]], int, Case]] = {
    "gathered": ([TABLE], 1, lambda m, x: m.gathered(x[0], FIRST)),
    "gathered_sum": ([ROWS, TABLE, TABLE], 3, lambda m, x: m.gathered_sum(x, [None, FIRST, SECOND])),
    "gathered_sum_without_rows": ([TABLE, TABLE], 2, lambda m, x: m.gathered_sum(x, [FIRST, SECOND])),
    "segment_sum": ([ROWS], 1, lambda m, x: m.segment_sum(x[0], FIRST, NUM_SEGMENTS)),
    "silu": ([ROWS], 1, lambda m, x: m.silu(x[0])),
    "linear": ([ROWS, (5, WIDTH)], 1, lambda m, x: m.linear(*x)),
    "silu_linear": ([ROWS, (5, WIDTH), (5,)], 1, lambda m, x: m.silu_linear(*x)),
    "silu_linear_without_bias": ([ROWS, (5, WIDTH)], 1, lambda m, x: m.silu_linear(*x, None)),
    "scaled_sum": ([ROWS, ROWS, CHANNELS], 2, lambda m, x: m.scaled_sum(x[0], x[2], x[1])),
    "gated_norm": ([ROWS, ROWS, (4, WIDTH)], 2, lambda m, x: m.gated_norm(*x)),
    "attention_sums": (
        [ROWS, ROWS, (NUM_ROWS,)], 3, lambda m, x: m.attention_sums(4 * x[0], x[2], x[1], FIRST, NUM_SEGMENTS),
    ),
    "weighted_segment_sum": ([ROWS, TABLE], 2, lambda m, x: m.weighted_segment_sum(*x, SECOND, FIRST, NUM_SEGMENTS)),
}  # fmt: skip


def _inputs(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def _everything(module: ModuleType, name: str, dtype: torch.dtype) -> list[Tensor]:
    """Value, first derivatives, input-only first derivatives, and second derivatives of one operator."""
    shapes, num_activations, call = CASES[name]
    inputs = _inputs(shapes, dtype)
    value = call(module, inputs)
    weight = torch.linspace(-1, 1, value.numel(), dtype=dtype).reshape(value.shape).requires_grad_()
    first = torch.autograd.grad(call(module, inputs), inputs, weight)
    with without_parameter_gradients():
        forces = torch.autograd.grad(value, inputs[:num_activations], weight, create_graph=True)
    seeds = [torch.linspace(1, -2, f.numel(), dtype=dtype).reshape(f.shape) for f in forces]
    targets = [*inputs, weight]
    second = torch.autograd.grad(forces, targets, seeds, allow_unused=True, materialize_grads=True)
    return [value, *first, *forces, *second]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
def test_fused_equals_definition_to_second_order(name: str, dtype: torch.dtype, tolerance: float) -> None:
    expected = _everything(reference, name, torch.float64)
    found = _everything(fused, name, dtype)
    assert len(found) == len(expected)
    for part, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = (a.double() - b).norm() / b.norm().clamp(min=1.0)
        assert error <= tolerance, f"{name}, part {part}: relative error {error:.1e}"


def test_parameter_gradients_have_no_second_derivative_and_say_so() -> None:
    core, gate, affine = _inputs([ROWS, ROWS, (4, WIDTH)], torch.float64)
    (grad,) = torch.autograd.grad(fused.gated_norm(core, gate, affine).sum(), [affine], create_graph=True)
    with pytest.raises(RuntimeError, match="gradients of its parameters"):
        torch.autograd.grad(grad.sum(), [core])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_not_a_number_stays_one(dtype: torch.dtype) -> None:
    rows = torch.full((2, WIDTH), float("nan"), dtype=dtype)
    affine = torch.ones(4, WIDTH, dtype=dtype)
    assert fused.silu(rows).isnan().all()
    assert fused.gated_norm(rows, rows, affine).isnan().all()


@pytest.mark.parametrize("value", [-500.0, -100.0, -88.0, 0.0, 88.0, 100.0, 500.0])
def test_silu_of_large_numbers(value: float) -> None:
    x = torch.full((1, 4), value)
    torch.testing.assert_close(fused.silu(x), torch.nn.functional.silu(x), rtol=1e-5, atol=1e-30)


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 300.0, 0.0]])
    index = torch.zeros(1, dtype=torch.int64)
    sums = fused.attention_sums(logits, torch.ones(1), torch.ones(1, 4), index, 1)
    assert sums.isfinite().all()


def test_no_rows() -> None:
    rows = torch.zeros(0, WIDTH, requires_grad=True)
    index = torch.zeros(0, dtype=torch.int64)
    assert fused.segment_sum(rows, index, 3).eq(0).all()
    assert fused.gathered(torch.ones(3, WIDTH), index).shape == (0, WIDTH)
    assert fused.gated_norm(rows, rows, torch.ones(4, WIDTH)).shape == (0, WIDTH)
