"""Run under mpiexec by test_layouts.py: cells of the correctness matrix against one process, as JSON by rank 0.

Arguments: a JSON list of cells, all of this world size. Rank 0 keeps each family's single-process results.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk, molecule

from janus.config import ExpertConfig, ModelConfig
from janus.layout import Layout
from janus.model.build import build_model
from janus.model.experts import MixtureOfExperts
from janus.parallel.communication import Communicator, PeerLostError, connect
from janus.parallel.fs3d import Axes, DistributedModel, distribute
from janus.train.config import (
    BatchConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from janus.train.optimizer import build_optimizer, clip_gradients, trainable
from janus.train.step import update
from janus.train.timing import PhaseTimer
from janus.train.verify import compare_tensors, compare_with_single_process, evaluate_alone, evaluate_in_layout

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is its path
from tests.parallel.layout_cells import Cell
from tests.train_runs import labelled, make_structures

CUTOFFS = {"cutoff_angstrom": 4.0, "line_cutoff_angstrom": 3.0}
MODELS = {
    "matris": ModelConfig(num_blocks=3, width=8, **CUTOFFS),
    "matris-moe": ModelConfig(
        family="matris-moe", num_blocks=3, width=16, num_heads=2, angle_width=8, **CUTOFFS,
        experts=ExpertConfig(num_experts=9, top_k=2, message_hidden=12, feature_hidden=8),
    ),
}  # fmt: skip
ADAMW_STEPS = 5
CLIP_NORM = 0.5  # below the first gradients' norms


def structures_of(kind: str) -> list:
    """Labelled structures; see Cell."""
    if kind == "single":
        atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
        atoms.symbols[1] = "Au"
        atoms.positions += 0.1 * np.random.default_rng(1).standard_normal(atoms.positions.shape)
        return [labelled(atoms, "single")]
    made = make_structures()
    far = molecule("CH4")
    far.translate([30.0, 0.0, 0.0])
    cluster = molecule("CH4") + far
    one_atom_cell = labelled(bulk("Ni"), "one-atom cell")
    return [made[0], made[1], made[2], one_atom_cell, labelled(cluster, "clusters"), made[8], made[9]]


def config_of(cell: Cell) -> TrainConfig:
    """Settings of a cell: two and more micro-batches for the busiest group where structures are mixed."""
    return TrainConfig(
        model=MODELS[cell.family],
        batch=BatchConfig(max_work=1500),
        loss=LossConfig(kind="huber", energy=1.0, forces=2.0, stress=30.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=CLIP_NORM if cell.clip else None),
        run=RunConfig(dtype=cell.dtype, seed=3, recompute=cell.recompute),
        parallel=ParallelConfig(
            unit=cell.unit, shard_degree=cell.shard_degree, graph_degree=cell.graph_degree,
            expert_degree=cell.expert_degree, placement=cell.placement, gathered_blocks=cell.gathered_blocks,
            expert_strategy=cell.strategy, expert_replication=cell.lends, expert_flops_per_byte=1e-6,
            bucket_bytes=20_000,
        ),
    )  # fmt: skip


@lru_cache
def weights_of_one_process(family: str, kind: str, clip: bool, dtype: str) -> dict[str, torch.Tensor]:
    """Parameters after some AdamW steps by one process with torch's own clipping."""
    cell = Cell(1, "gloo", family, 1, 1, 1, 1, "unit_first", kind, False, 2, "tokens", False, clip, dtype)
    config, structures = config_of(cell), structures_of(kind)
    model = build_model(config.model, seed=config.run.seed, dtype=getattr(torch, dtype))
    parameters = trainable(model)
    optimizer = build_optimizer(parameters, config.optimizer)
    for _ in range(ADAMW_STEPS):
        optimizer.zero_grad()
        evaluate_alone(model, structures, config)
        for parameter in parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        clip_gradients(list(parameters.values()), config.optimizer.clip_norm)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def train_in_layout(distributed: DistributedModel, config: TrainConfig, structures: list, communicator: Communicator):
    """The same steps in the layout, as the trainer takes them."""
    optimizer = build_optimizer(distributed.pieces, config.optimizer, distributed.sums.stages)
    for _ in range(ADAMW_STEPS):
        optimizer.zero_grad(set_to_none=True)
        evaluate_in_layout(distributed, structures, config, communicator, finish=False)
        update(distributed, optimizer, config.optimizer.clip_norm, PhaseTimer(torch.device("cpu")))


def examine(cell: Cell, communicator: Communicator, axes_of: dict) -> dict:
    """Errors of outputs and gradients, and of the weights after the steps."""
    config, structures = config_of(cell), structures_of(cell.structures)
    layout: Layout = config.parallel.layout(communicator.world_size)
    key = (layout, cell.transport)
    if key not in axes_of:
        axes_of[key] = Axes.of(layout, communicator, transport=cell.transport if communicator.world_size > 1 else None)
    distributed = distribute(config, layout, communicator, axes=axes_of[key])
    comparison = compare_with_single_process(distributed, structures, config, communicator)
    train_in_layout(distributed, config, structures, communicator)
    reference = None
    if communicator.rank == 0:
        reference = weights_of_one_process(cell.family, cell.structures, cell.clip, cell.dtype)
    values = {name: piece.parameter for name, piece in distributed.pieces.items()}
    weights = compare_tensors(distributed.pieces, values, reference, distributed.shapes, communicator)
    exchanges = [m.exchange for m in distributed.model.modules() if isinstance(m, MixtureOfExperts) and m.exchange]
    # of this rank's last micro-batch; a replica may have had none
    plans = [exchange.plan for exchange in exchanges if exchange.plan is not None and cell.strategy == "tokens"]
    lent = sum(int(plan.borrowed.sum()) for plan in plans)
    peak_blocks = distributed.sharded.buffers.peak_blocks
    return {
        "outputs": [error.to_mapping() for error in comparison.outputs],
        "gradients": [error.to_mapping() for error in comparison.gradients],
        "weights": [error.to_mapping() for error in weights],
        "peak_blocks": peak_blocks,
        "lent": lent,
    }


def main() -> None:
    torch.set_num_threads(1)
    cells = [Cell(**values) for values in json.loads(sys.argv[1])]
    transport = "mpi" if any(cell.transport == "mpi" for cell in cells) else "gloo"
    communicator = connect(device="cpu", transport=transport, timeout_s=900)
    axes_of: dict = {}
    for cell in cells:
        found = examine(cell, communicator, axes_of)
        if communicator.rank == 0:
            print(json.dumps({"cell": cell.name, **found}), flush=True)
    communicator.leave(0)


if __name__ == "__main__":
    try:
        main()
    except PeerLostError:
        time.sleep(5)  # the rank that failed first is to speak and to end all
        raise
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os.abort()  # the launcher ends the other ranks
