"""Activation checkpointing that holds through the double backward.

Stock checkpointing saves almost nothing here, because the force pass recomputes a block and its graph keeps everything.
This one keeps only the block's inputs in every phase: the forward (FE) keeps nothing, the force pass (FF) recomputes
and drops, and the second backward recomputes again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from janus.kernels.wanted import parameter_gradients_wanted, without_parameter_gradients

# Called where a node is made; what it returns is called around the node's backward (collectives are counted by phase).
Remember = Callable[[], Callable[[], AbstractContextManager[Any]]]


def _nothing_to_remember() -> Callable[[], AbstractContextManager[Any]]:
    return nullcontext


def recomputed(block: nn.Module, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """function(*tensors), with the activations inside recomputed in each later phase. Twice differentiable.

    block: the module whose parameters ``function`` uses; tensors: every other tensor it depends on with a gradient.
    """
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return recomputed_with(parameters, function, *tensors)


def recomputed_with(
    parameters: Sequence[Tensor],
    function: Callable[..., tuple[Tensor, ...]],
    *tensors: Tensor,
    remember: Remember = _nothing_to_remember,
) -> tuple[Tensor, ...]:
    """``recomputed`` for a function whose parameters are listed: every tensor with a gradient that it uses unasked.

    remember: see ``Remember``.
    """
    return _Recompute.apply(_Run(function, len(tensors), remember), *tensors, *parameters)


class _Run:
    """A function of tensors, and how many of the operands are its arguments (the rest are parameters it holds)."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], num_arguments: int, remember: Remember) -> None:
        self.function, self.num_arguments, self.remember = function, num_arguments, remember

    def outputs(self, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.function(*operands[: self.num_arguments])

    def fresh(self, operands: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
        """Arguments cut from the graph that made them; parameters as they are."""
        cut = [
            operand.detach().requires_grad_(operand.requires_grad or need)
            for operand, need in zip(operands[: self.num_arguments], needed, strict=False)
        ]
        return cut + list(operands[self.num_arguments :])


class _Recompute(Function):
    """Forward: run without a graph. Backward: ``_RecomputeBackward``, itself differentiable."""

    @staticmethod
    def forward(ctx: Any, run: _Run, *operands: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.in_backward = run, run.remember()
        ctx.save_for_backward(*operands)
        with torch.no_grad():
            outputs = run.outputs(operands)
        ctx.set_materialize_grads(False)
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[1:])
        if not parameter_gradients_wanted():
            needed[ctx.run.num_arguments :] = [False] * (len(needed) - ctx.run.num_arguments)
        call = _BackwardCall(ctx.run, len(operands), tuple(needed), tuple(c is not None for c in cotangents))
        given = [cotangent for cotangent in cotangents if cotangent is not None]
        with ctx.in_backward():
            return (None, *_RecomputeBackward.apply(call, *operands, *given))


class _BackwardCall:
    """Which gradients a backward of a run computes, and which outputs have cotangents."""

    def __init__(self, run: _Run, num_operands: int, needed: tuple[bool, ...], has_cotangent: tuple[bool, ...]):
        self.run, self.num_operands, self.needed, self.has_cotangent = run, num_operands, needed, has_cotangent

    def gradients(
        self, operands: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool
    ) -> list[Tensor | None]:
        """Gradients of the run at ``operands``, None where not needed or not reached."""
        outputs = [o for o, has in zip(self.run.outputs(operands), self.has_cotangent, strict=True) if has]
        reached = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        wanted = [operand for operand, need in zip(operands, self.needed, strict=True) if need]
        if not reached or not wanted:
            return [None] * len(operands)
        # made again, the force pass must not make gradients of parameters either: nothing would use them
        parameters_needed = any(self.needed[self.run.num_arguments :])
        with nullcontext() if parameters_needed else without_parameter_gradients():
            gradients = torch.autograd.grad(
                [output for output, _ in reached],
                wanted,
                [cotangent for _, cotangent in reached],
                create_graph=create_graph,
                allow_unused=True,
            )
        found = iter(gradients)
        return [next(found) if need else None for need in self.needed]


class _RecomputeBackward(Function):
    """Gradients of a run; its own backward recomputes the run once more, with a graph."""

    @staticmethod
    def forward(ctx: Any, call: _BackwardCall, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call, ctx.in_backward = call, call.run.remember()
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        operands, cotangents = tensors[: call.num_operands], tensors[call.num_operands :]
        with torch.enable_grad():
            fresh = call.run.fresh(operands, call.needed)
            gradients = call.gradients(fresh, cotangents, create_graph=False)
        return tuple(None if gradient is None else gradient.detach() for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor | None) -> tuple[Tensor | None, ...]:
        with ctx.in_backward():
            return (None, *_double_backward(ctx.call, ctx.saved_tensors, ctx.needs_input_grad[1:], seeds))


def _double_backward(
    call: _BackwardCall, tensors: Sequence[Tensor], needed: Sequence[bool], seeds: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of a run's gradients with respect to its operands and cotangents."""
    operands, cotangents = tensors[: call.num_operands], tensors[call.num_operands :]
    with torch.enable_grad():
        fresh = call.run.fresh(operands, needed[: call.num_operands])
        cut = [c.detach().requires_grad_(need) for c, need in zip(cotangents, needed[call.num_operands :], strict=True)]
        gradients = call.gradients(fresh, cut, create_graph=True)
        pairs = [
            (g, s) for g, s in zip(gradients, seeds, strict=True) if g is not None and s is not None and g.requires_grad
        ]
        everything = [*fresh, *cut]
        wanted = [tensor for tensor, need in zip(everything, needed, strict=True) if need]
        if not pairs or not wanted:
            return (None,) * len(everything)
        found = iter(torch.autograd.grad([g for g, _ in pairs], wanted, [s for _, s in pairs], allow_unused=True))
    return tuple(next(found) if need else None for need in needed)
