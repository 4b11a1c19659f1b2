"""The grouped product against its plain definition: values, first, second and mixed derivatives, empty experts."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from janus.kernels import grouped, reference
from janus.kernels.wanted import without_parameter_gradients

IN, OUT = 7, 5
LOADS = {
    "some experts empty": [3, 0, 6, 1, 0],
    "one expert": [8],
    "all experts empty": [0, 0, 0],
    "no experts here": [],
}


def _everything(module: ModuleType, loads: list[int], dtype: torch.dtype) -> list[Tensor]:
    """Value, first derivatives, then second derivatives of the force pass and of the gradient of the weights."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    rows, weights, cotangent = normal(sum(loads), IN), normal(len(loads), OUT, IN), normal(sum(loads), OUT)
    value = module.grouped_product(rows, weights, loads)
    first = torch.autograd.grad(value, [rows, weights], cotangent, create_graph=True, materialize_grads=True)
    with without_parameter_gradients():
        (force,) = torch.autograd.grad(value, [rows], cotangent, create_graph=True, materialize_grads=True)
    targets, found = [rows, weights, cotangent], [value, *first, force]
    for derivative in [*first, force]:
        if derivative.requires_grad:
            seed = torch.linspace(-1, 2, derivative.numel(), dtype=dtype).view_as(derivative)
            found += torch.autograd.grad(
                derivative, targets, seed, retain_graph=True, allow_unused=True, materialize_grads=True
            )
    return found


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
def test_grouped_equals_definition_to_second_order(loads: list[int], dtype: torch.dtype, tolerance: float) -> None:
    expected, found = _everything(reference, loads, torch.float64), _everything(grouped, loads, dtype)
    assert len(found) == len(expected)
    for part, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        error = (a.double() - b).norm() / b.norm().clamp(min=1.0)
        assert error <= tolerance, f"part {part}: relative error {error:.1e}"


def test_definition_is_a_product_per_row() -> None:
    loads = LOADS["some experts empty"]
    rows, weights = torch.randn(10, IN), torch.randn(5, OUT, IN)
    expert = torch.repeat_interleave(torch.arange(5), torch.tensor(loads))
    expected = torch.einsum("ra,rba->rb", rows, weights[expert])
    torch.testing.assert_close(reference.grouped_product(rows, weights, loads), expected)


def test_force_pass_makes_no_gradient_of_weights() -> None:
    rows, weights = torch.randn(3, IN, requires_grad=True), torch.randn(2, OUT, IN, requires_grad=True)
    value = grouped.grouped_product(rows, weights, [2, 1])
    with without_parameter_gradients():
        _, by_weights = torch.autograd.grad(value.sum(), [rows, weights], allow_unused=True)
    assert by_weights is None


def test_loads_must_add_up_to_the_rows() -> None:
    with pytest.raises(AssertionError, match="4, 3"):
        grouped.grouped_product(torch.ones(3, IN), torch.ones(2, OUT, IN), [2, 2])
