"""Run under mpiexec by test_compiled.py: data-parallel ranks with compiled graphs against one process, as JSON."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from janus.config import ModelConfig
from janus.model.compiled import CompiledPotential
from janus.parallel.communication import connect
from janus.parallel.fs3d import distribute
from janus.train.config import BatchConfig, RunConfig, TrainConfig
from janus.train.verify import compare_with_single_process

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is its path
from tests.train_runs import make_structures

CONFIG = TrainConfig(
    model=ModelConfig(num_blocks=1, width=8, cutoff_angstrom=4.0, line_cutoff_angstrom=3.0),
    batch=BatchConfig(max_work=1000),
    run=RunConfig(dtype="float64", compile=True),
)


def main() -> None:
    torch.set_num_threads(1)
    communicator = connect(device="cpu")
    distributed = distribute(CONFIG, CONFIG.parallel.layout(communicator.world_size), communicator)
    assert distributed.compiled is not None
    distributed = replace(distributed, compiled=CompiledPotential(distributed.model, backend="eager"))
    comparison = compare_with_single_process(distributed, make_structures(), CONFIG, communicator)
    graphs = communicator.gather_objects(counters["stats"]["unique_graphs"])
    if communicator.rank == 0:
        print(json.dumps(comparison.to_mapping() | {"graphs": graphs}))
    communicator.leave(0)


if __name__ == "__main__":
    main()
