"""Real models on small real graphs with torch's own FLOP formulas, per phase: what the workload is held to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from janus.config import ModelConfig
from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.potential import evaluate_potential
from perfmodel.workload import Counts


class DispatchedFlops(TorchDispatchMode):
    """FLOPs by torch's formula registry of everything dispatched inside.

    FlopCounterMode itself refuses autograd.grad on leaves inside a backward, which recomputation does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def small_batch(config: ModelConfig) -> GraphBatch:
    """A copper and an aluminium crystal, rattled."""
    return crystal_batch(config, (("Cu", (2, 1, 1)), ("Al", (1, 1, 2))))


def crystal_batch(config: ModelConfig, crystals: Sequence[tuple[str, tuple[int, int, int]]]) -> GraphBatch:
    """Rattled cubic crystals: of each the element and how often the cell is repeated."""
    structures = []
    for element, repeats in crystals:
        atoms = bulk(element, cubic=True).repeat(repeats)
        atoms.rattle(0.05, seed=1)
        structures.append(Structure(numbers=atoms.numbers.astype(np.int32), positions=atoms.positions,
                                    cell=atoms.cell.array, pbc=atoms.pbc))  # fmt: skip
    graphs = [build_graph(s, config.cutoff_angstrom, config.line_cutoff_angstrom) for s in structures]
    return GraphBatch.collate(structures, graphs).to("cpu", torch.float32)


def counts_of(batch: GraphBatch) -> Counts:
    return Counts(batch.num_structures, batch.num_atoms, batch.num_edges, batch.num_bonds, batch.num_angles)


def executed_flops(config: ModelConfig, batch: GraphBatch, *, recompute: bool) -> dict[str, int]:
    """FLOPs that a real training step dispatches in FE, FF and BF + BE."""
    counted: dict[str, int] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        with DispatchedFlops() as counter:
            yield
        counted[name] = counter.flops

    model = build_model(config)
    prediction = evaluate_potential(model, batch, create_graph=True, phase=phase, recompute=recompute)
    with phase("BF_BE"):
        sum(term.square().sum() for term in (prediction.energy, prediction.forces, prediction.stress)).backward()
    return counted
