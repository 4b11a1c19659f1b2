"""Run as a script: how much a training step of MODEL raises the peak memory of its process. Prints one JSON object."""

import dataclasses
import json
import sys

import numpy as np
import torch
from ase.build import bulk

from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.potential import evaluate_potential
from janus.presets import preset
from janus.train.session import peak_memory_bytes
from perfmodel.workload import Counts


def peak_bytes() -> int:
    """Of this program: what getrusage says may include the peak of the process that started it."""
    return peak_memory_bytes(torch.device("cpu"))


def main(name: str, recompute: bool) -> None:
    torch.set_num_threads(1)
    config = preset(name)
    model = build_model(config)

    def step(repeats: int) -> GraphBatch:
        atoms = bulk("Cu", cubic=True).repeat(repeats)
        atoms.rattle(0.05, seed=0)
        structure = Structure(numbers=atoms.numbers.astype(np.int32), positions=atoms.positions,
                              cell=atoms.cell.array, pbc=atoms.pbc)  # fmt: skip
        graph = build_graph(structure, config.cutoff_angstrom, config.line_cutoff_angstrom)
        batch = GraphBatch.collate([structure], [graph]).to("cpu", torch.float32)
        prediction = evaluate_potential(model, batch, create_graph=True, recompute=recompute)
        (prediction.energy.square().sum() + prediction.forces.square().sum()).backward()
        return batch

    step(1)
    before = peak_bytes()
    batch = step(3)
    counts = Counts(batch.num_structures, batch.num_atoms, batch.num_edges, batch.num_bonds, batch.num_angles)
    print(json.dumps({"growth_bytes": peak_bytes() - before, "counts": dataclasses.asdict(counts)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "1")
