"""Holds a layout to a single process: energies, forces, stresses and every parameter gradient of one small batch.

Errors in second-order parallelism are silent, so this is how a user proves a layout on his own machine and launcher.
Rank 0 evaluates the same structures with the whole model; all ranks must call it. It does not own what is compared
when (``janus/cli/check.py``, ``session.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from janus.data.graph import count_graph
from janus.data.structure import Structure
from janus.model.potential import evaluate_potential
from janus.parallel.communication import Communicator
from janus.parallel.fs3d import DistributedModel
from janus.parallel.job import RunFailedError
from janus.parallel.pieces import Piece
from janus.train.config import TrainConfig
from janus.train.loader import BatchLoader
from janus.train.loss import Denominators, batch_loss, denominators_of_labels
from janus.train.sampler import share_in_lockstep

# what is nothing but rounding: contributions of order 1 that cancel, as a bias's between two structures, leave that
ABSOLUTE_TOLERANCES = {"float64": 1e-12, "float32": 1e-6, "float16 rows": 1e-3}
# float32: sums in another order, amplified by second derivatives; 16-bit expert rows: 5e-4 seen
TOLERANCES = {"float64": 1e-10, "float32": 2e-3, "float16 rows": 2e-2}


def precision_of(config: TrainConfig) -> str:
    """What limits the agreement of a layout: the dtype, or expert rows that travel in 16 bits."""
    parallel = config.parallel
    compressed = parallel.expert_degree > 1 and parallel.expert_compression == "float16"
    return "float16 rows" if compressed and parallel.expert_strategy == "tokens" else config.run.dtype


@dataclass(frozen=True, kw_only=True)
class TensorError:
    """Euclidean norms of (parallel - single process) and of the single process's tensor."""

    name: str
    difference: float
    reference: float

    @property
    def relative(self) -> float | None:
        """difference / reference; None where the reference is zero."""
        return self.difference / self.reference if self.reference > 0 else None

    def passes(self, tolerance: float, absolute_tolerance: float) -> bool:
        """Within the relative tolerance; where the reference is rounding itself, within the absolute. NaN fails."""
        vanishes = self.reference <= absolute_tolerance
        return self.difference <= max(tolerance * self.reference, absolute_tolerance if vanishes else 0.0)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "difference": self.difference, "reference": self.reference,
                "relative": self.relative}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All errors of one check: "energies", "forces", "stresses" and one entry per parameter's gradient."""

    tolerance: float
    absolute_tolerance: float
    outputs: tuple[TensorError, ...]
    gradients: tuple[TensorError, ...]

    @property
    def passes(self) -> bool:
        """True where every tensor is within the tolerance."""
        return not self.failures

    @property
    def failures(self) -> list[TensorError]:
        """Tensors outside the tolerance."""
        return [error for error in (*self.outputs, *self.gradients) if not self._passes(error)]

    def _passes(self, error: TensorError) -> bool:
        return error.passes(self.tolerance, self.absolute_tolerance)

    @property
    def worst_gradient(self) -> TensorError:
        """The gradient with the largest relative error that is more than rounding; a failing one before all others."""
        return max(self.gradients, key=lambda error: (
            not self._passes(error), error.reference > self.absolute_tolerance, error.relative or 0.0,
        ))  # fmt: skip

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "passes": self.passes, "tolerance": self.tolerance, "absolute_tolerance": self.absolute_tolerance,
            "outputs": [error.to_mapping() for error in self.outputs],
            "gradients": [error.to_mapping() for error in self.gradients],
        }  # fmt: skip


@dataclass(kw_only=True)
class Outputs:
    """Of all structures in order, float64 on the CPU: energies [S], stresses [S,3,3], forces [N,3]."""

    energies: Tensor
    stresses: Tensor
    forces: Tensor

    @classmethod
    def zeros(cls, structures: Sequence[Structure]) -> Outputs:
        count, num_atoms = len(structures), sum(structure.num_atoms for structure in structures)
        return cls(
            energies=torch.zeros(count, dtype=torch.float64),
            stresses=torch.zeros(count, 3, 3, dtype=torch.float64),
            forces=torch.zeros(num_atoms, 3, dtype=torch.float64),
        )


def work_of(structures: Sequence[Structure], config: TrainConfig) -> np.ndarray:
    """Edges + angles of each structure [S]."""
    counts = [
        count_graph(structure, config.model.cutoff_angstrom, config.model.line_cutoff_angstrom)
        for structure in structures
    ]
    return np.array([int(count.edges_of_atom.sum()) + count.num_angles for count in counts])


def _denominators(structures: Sequence[Structure], loader: BatchLoader) -> Denominators:
    return denominators_of_labels(loader.load_micro_batch(list(range(len(structures)))).labels)


def evaluate_in_layout(
    distributed: DistributedModel, structures: Sequence[Structure], config: TrainConfig, communicator: Communicator,
    *, finish: bool = True,
) -> Outputs:  # fmt: skip
    """Outputs of all structures, complete on every rank; the gradients of the loss stay summed in the pieces.

    finish False: their sums over replicas are left to the caller (``distributed.sums.finish``).
    """
    loader = _loader(structures, config, communicator, distributed)
    shares = share_in_lockstep(
        work_of(structures, config), range(len(structures)), distributed.layout, communicator.rank,
        config.batch.max_work,
    )  # fmt: skip
    denominators = _denominators(structures, _loader(structures, config, communicator, None))
    first_atom = np.cumsum([0, *(structure.num_atoms for structure in structures)])
    outputs = Outputs.zeros(structures)
    with distributed.step():
        for number, indices in enumerate(shares, start=1):
            micro_batch = loader.load_micro_batch(indices).to(communicator.device)
            prediction = distributed.evaluate(micro_batch.batch, create_graph=True)
            loss, _ = batch_loss(prediction, micro_batch.labels, denominators, config.loss)
            distributed.backward(loss, is_last=number == len(shares))
            atoms = np.concatenate([np.arange(first_atom[i], first_atom[i + 1]) for i in indices] or [np.zeros(0)])
            mine = torch.from_numpy(atoms.astype(np.int64))[micro_batch.owned_atoms]
            outputs.forces[mine] = prediction.forces.detach().double().cpu()
            if distributed.graph_index == 0:
                outputs.energies[indices] = prediction.energy.detach().double().cpu()
                outputs.stresses[indices] = prediction.stress.detach().double().cpu()
    if finish:
        distributed.finish_gradients()
    for tensor in (outputs.energies, outputs.stresses, outputs.forces):
        communicator.all_reduce_sum(tensor)
    return outputs


def evaluate_alone(model: nn.Module, structures: Sequence[Structure], config: TrainConfig) -> Outputs:
    """Outputs of all structures by one process with the whole model; gradients stay in the parameters."""
    loader = BatchLoader(
        structures, cutoff_angstrom=config.model.cutoff_angstrom,
        line_cutoff_angstrom=config.model.line_cutoff_angstrom, dtype=getattr(torch, config.run.dtype),
        device=next(model.parameters()).device,
    )  # fmt: skip
    micro_batch = loader.load_micro_batch(list(range(len(structures)))).to(loader.device)
    prediction = evaluate_potential(model, micro_batch.batch, create_graph=True)
    loss, _ = batch_loss(prediction, micro_batch.labels, denominators_of_labels(micro_batch.labels), config.loss)
    loss.backward()
    return Outputs(
        energies=prediction.energy.detach().double().cpu(),
        stresses=prediction.stress.detach().double().cpu(),
        forces=prediction.forces.detach().double().cpu(),
    )


def _loader(
    structures: Sequence[Structure], config: TrainConfig, communicator: Communicator,
    distributed: DistributedModel | None,
) -> BatchLoader:  # fmt: skip
    return BatchLoader(
        structures, cutoff_angstrom=config.model.cutoff_angstrom,
        line_cutoff_angstrom=config.model.line_cutoff_angstrom, dtype=getattr(torch, config.run.dtype),
        device=communicator.device, graph=distributed.axes.graph if distributed is not None else None,
    )  # fmt: skip


def whole_tensor(piece: Piece, values: Tensor, communicator: Communicator) -> Tensor:
    """A tensor like ``piece.parameter`` put together over all ranks -> flat float64 on the CPU of every rank."""
    size = int(np.prod(piece.shape, dtype=np.int64))
    flat = torch.zeros(size, dtype=torch.float64)
    if piece.copies.index == 0:
        values = values.detach().reshape(-1).double().cpu()
        start = 0
        for first, last in piece.chunks:
            flat[first:last] = values[start : start + last - first]
            start += last - first
    return communicator.all_reduce_sum(flat)


def compare_tensors(
    pieces: Mapping[str, Piece], values: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None,
    shapes: Mapping[str, tuple[int, ...]], communicator: Communicator,
) -> list[TensorError]:  # fmt: skip
    """Errors of named tensors (gradients, weights) against the single process's, which rank 0 holds.

    shapes: of all parameters, in one order on all ranks; a rank without a piece of one takes part with zeros.
    """
    errors = []
    for name, shape in shapes.items():
        if name in pieces:
            whole = whole_tensor(pieces[name], values[name], communicator)
        else:
            whole = communicator.all_reduce_sum(torch.zeros(int(np.prod(shape, dtype=np.int64)), dtype=torch.float64))
        if reference is not None:
            wanted = reference[name].detach().reshape(-1).double().cpu()
            errors.append(_error(name, whole, wanted))
    return errors


def _error(name: str, found: Tensor, wanted: Tensor) -> TensorError:
    return TensorError(name=name, difference=float((found - wanted).norm()), reference=float(wanted.norm()))


def compare_with_single_process(
    distributed: DistributedModel, structures: Sequence[Structure], config: TrainConfig, communicator: Communicator,
    reference_energies: Tensor | None = None, tolerance: float | None = None,
) -> Comparison:  # fmt: skip
    """Evaluate in the layout and alone (rank 0); the same comparison on every rank. Gradients are cleared behind it.

    distributed must hold the weights that its seed gives. tolerance None: that of the dtype.
    """
    from janus.model.build import build_model

    if tolerance is None:
        tolerance = TOLERANCES[precision_of(config)]
    found = evaluate_in_layout(distributed, structures, config, communicator)
    alone, wanted, reference = None, None, None
    if communicator.rank == 0:
        alone = build_model(
            config.model, seed=config.run.seed, dtype=getattr(torch, config.run.dtype), device=communicator.device
        )
        if reference_energies is not None:
            alone.set_reference_energies(reference_energies)
        wanted = evaluate_alone(alone, structures, config)
        reference = {
            name: p.grad if p.grad is not None else torch.zeros_like(p)
            for name, p in alone.named_parameters() if p.requires_grad
        }  # fmt: skip
    gradients = {
        name: p.parameter.grad if p.parameter.grad is not None else torch.zeros_like(p.parameter)
        for name, p in distributed.pieces.items()
    }
    errors = compare_tensors(distributed.pieces, gradients, reference, distributed.shapes, communicator)
    distributed.zero_gradients()
    outputs = []
    if wanted is not None:
        outputs = [
            _error(name, getattr(found, name), getattr(wanted, name)) for name in ("energies", "forces", "stresses")
        ]
    plain = communicator.gather_objects([[e.to_mapping() for e in group] for group in (outputs, errors)])[0]
    restored = [tuple(_from_mapping(row) for row in group) for group in plain]
    absolute_tolerance = ABSOLUTE_TOLERANCES[precision_of(config)]
    return Comparison(
        tolerance=tolerance, absolute_tolerance=absolute_tolerance, outputs=restored[0], gradients=restored[1]
    )


def _from_mapping(row: Mapping[str, Any]) -> TensorError:
    return TensorError(name=row["name"], difference=row["difference"], reference=row["reference"])


def require_exact(comparison: Comparison) -> None:
    """Raise RunFailedError, on all ranks, naming the worst tensors where the layout is not exact."""
    if comparison.passes:
        return
    worst = ", ".join(
        f"{error.name} ({error.relative:.1e})" if error.relative is not None else f"{error.name} (not zero)"
        for error in comparison.failures[:3]
    )
    raise RunFailedError(
        f"the layout differs from a single process by more than {comparison.tolerance:.0e} in "
        f"{len(comparison.failures)} tensors, first {worst}: train with another layout and report this"
    )
