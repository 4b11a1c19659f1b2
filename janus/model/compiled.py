"""Energies, forces and stress as one compiled graph, for training. It owns when and how to compile, not the operators.

Compiling takes minutes, once: batches of other sizes use the same graph. The gradient that makes the forces is traced
into the graph, so the compiler differentiates it again for the loss. Only native operators may be in it: an
``autograd.Function`` loses its second-order term there without any error, so a graph that holds one is refused.
Legend: N atoms, E directed edges, U pairs, B bonds, P bonded pairs, A angles, G structures.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
import torch._dynamo  # not imported by torch itself
import torch.fx.experimental._config
from torch import Tensor, fx, nn

from janus.errors import UserError
from janus.model.batch import GraphBatch
from janus.model.potential import (
    Phase,
    Prediction,
    evaluate_potential,
    inputs,
    interaction_energies,
    plain,
    reference_energy,
    stress_of,
)

# interaction energies [G], dE/d(positions) [N,3], dE/d(strain) [G,3,3], features of atoms [N,C] where they are needed
Outputs = tuple[Tensor, Tensor, Tensor, Tensor | None]
RECOMPILE_LIMIT = 64  # torch stops the run at the limit, 8 by default; more graphs than expected only take longer
SMALLEST_SIZE = 2  # a compiler takes sizes of 0 and 1 as constants and would compile again for the next batch


class CompiledPotential:
    """``evaluate_potential(..., create_graph=True)`` of a whole model, compiled at the first call.

    Batches with fewer than two atoms, edges or angles are evaluated without the compiled graph: see ``fits``.
    """

    def __init__(self, model: nn.Module, *, backend: str = "inductor") -> None:
        """backend: of torch.compile; the others are for tests. Raises UserError where this one cannot run."""
        require_compiler(next(model.parameters()).device.type, backend)
        self.model = model
        self._has_moments = getattr(model, "magnetic_moment_head", None) is not None
        self._graph = torch.compile(self._energies_and_gradients, fullgraph=True, backend=_native_only(backend))

    def __call__(self, batch: GraphBatch, *, phase: Phase | None = None) -> Prediction:
        """Energy, forces and stress of a whole batch, to be differentiated again.

        phase: as in ``evaluate_potential``; the compiled graph does both phases at once, all of it is in "FE".
        """
        assert batch.halo is None, "a part of a batch cannot be evaluated by a compiled graph"
        if not fits(batch):
            return evaluate_potential(self.model, batch, create_graph=True, phase=phase)
        num_structures = batch.num_structures
        if num_structures < SMALLEST_SIZE:
            batch = _with_empty_structure(batch)
        timed = phase or (lambda name: nullcontext())
        with torch.enable_grad(), timed("FE"):
            interaction, gradient, virial, atoms = self._run(batch, *inputs(batch))
        with torch.enable_grad(), timed("FF"):
            energy = interaction.double() + reference_energy(self.model, batch)
            stress = stress_of(virial, batch.volume)
        moments = self.model.magnetic_moment_head(atoms) if self._has_moments else None
        return Prediction(energy[:num_structures], -gradient, stress[:num_structures], moments)

    def _run(self, batch: GraphBatch, positions: Tensor, strain: Tensor) -> Outputs:
        for tensor in (positions, strain, *_tensors(batch)):
            torch._dynamo.mark_dynamic(tensor, 0)
        # Sizes that are equal by chance in the first batch are not one size, and the code generator's choices by size
        # (it sums more than 4096 floats in another way) must not bind the graph to the sizes it was made for.
        sizes = torch.fx.experimental._config.patch(use_duck_shape=False, backed_size_oblivious=True)
        with torch._dynamo.config.patch(trace_autograd_ops=True, recompile_limit=RECOMPILE_LIMIT), sizes:
            return self._graph(batch, positions, strain)

    def _energies_and_gradients(self, batch: GraphBatch, positions: Tensor, strain: Tensor) -> Outputs:
        """What is compiled."""
        interaction, atoms = interaction_energies(self.model, batch, positions, strain, plain)
        gradient, virial = torch.autograd.grad(
            interaction.sum(), [positions, strain], create_graph=True, materialize_grads=True
        )
        return interaction, gradient, virial, atoms if self._has_moments else None


def fits(batch: GraphBatch) -> bool:
    """Whether the compiled graph serves this batch: there are at least two of everything but structures.

    A single structure is given an empty one for company. No angles, or one atom: the compiler would make a graph of
    its own for each such case, which is not worth minutes.
    """
    sizes = (
        batch.num_atoms, batch.num_edges, batch.num_pairs, batch.num_bonds, batch.num_bonded_pairs, batch.num_angles,
    )  # fmt: skip
    return min(sizes) >= SMALLEST_SIZE and batch.num_structures > 0


def require_compiler(device_type: str, backend: str = "inductor") -> None:
    """Raise UserError where this installation cannot compile a graph with forces in it."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise UserError(
            f"run.compile is true but torch {torch.__version__} cannot trace the gradient that makes the forces: "
            "install torch 2.13, or set run.compile to false"
        )
    if backend == "inductor" and not _code_generator_works(device_type):
        missing = "a C++ compiler (g++ or clang++)" if device_type == "cpu" else "the package triton"
        raise UserError(
            f"run.compile is true but {missing} is not there, which compiling for device {device_type!r} needs: "
            "install it, or set run.compile to false"
        )


def _code_generator_works(device_type: str) -> bool:
    if device_type != "cpu":
        from torch.utils._triton import has_triton

        return has_triton()
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        cpp_builder.get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False
    return True


def _native_only(backend: str) -> Callable[..., Any]:
    """The backend, behind a check that no ``autograd.Function`` is in the graph."""

    def compile_graph(graph: fx.GraphModule, example_inputs: list[Tensor], **options: Any) -> Callable[..., Any]:
        for module in graph.modules():
            for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
                if "autograd_function" in str(node.target):
                    raise RuntimeError(f"{node.name}: an autograd.Function in a compiled graph has no second order")
        return torch._dynamo.lookup_backend(backend)(graph, example_inputs, **options)

    return compile_graph


def _tensors(batch: GraphBatch) -> list[Tensor]:
    values = (getattr(batch, field.name) for field in fields(batch))
    return [value for value in values if isinstance(value, Tensor)]


def _with_empty_structure(batch: GraphBatch) -> GraphBatch:
    """The batch and a structure without atoms behind its own."""
    return replace(
        batch, cell=torch.cat([batch.cell, batch.cell.new_zeros(1, 3, 3)]),
        volume=torch.cat([batch.volume, batch.volume.new_zeros(1)]),
    )  # fmt: skip
