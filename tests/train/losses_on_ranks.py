"""Run under mpiexec by test_parallel_losses.py: losses and MAEs of N ranks against one process, as JSON by rank 0.

Also the collectives of the communicator, against values known in advance.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from janus.config import ModelConfig
from janus.data.store import StructureStore
from janus.errors import UserError
from janus.layout import Layout
from janus.parallel.communication import Communicator, connect
from janus.parallel.fs3d import distribute
from janus.parallel.rendezvous import SINGLE
from janus.train.config import LossConfig, ParallelConfig, RunConfig, TrainConfig
from janus.train.loader import BatchLoader
from janus.train.loss import denominators_of
from janus.train.sampler import share_in_lockstep
from janus.train.step import accumulate_gradients, sum_totals
from janus.train.timing import PhaseTimer

CONFIG = TrainConfig(
    model=ModelConfig(num_blocks=2, width=8, cutoff_angstrom=4.0, line_cutoff_angstrom=3.0),
    loss=LossConfig(kind="huber", energy=1.0, forces=2.0, stress=30.0),
    run=RunConfig(dtype="float64", seed=1),
)
# name -> (structures of the global batch, work cap, graph degree)
CASES = {
    "uneven": ([0, 1, 2, 5, 7, 8, 9], None, 1),
    "empty rank": ([2], None, 1),
    "micro-batches": ([0, 1, 2, 3, 4, 5, 7, 8, 9], 900, 1),
    "divided structures": ([1, 3, 6, 7], 1000, 2),
}


def totals_of(communicator: Communicator, store: StructureStore, indices: list[int], cap: int | None, graph: int):
    """Loss and MAEs of a global batch, and how many micro-batches this rank had."""
    unit = min(graph, communicator.world_size)
    config = replace(CONFIG, parallel=ParallelConfig(unit=unit, graph_degree=unit))
    layout: Layout = config.parallel.layout(communicator.world_size)
    distributed = distribute(config, layout, communicator)
    loader = BatchLoader(
        store, cutoff_angstrom=4.0, line_cutoff_angstrom=3.0, dtype=torch.float64, device=torch.device("cpu"),
        graph=distributed.axes.graph,
    )  # fmt: skip
    shares = share_in_lockstep(store.work, indices, layout, communicator.rank, cap)
    timer = PhaseTimer(torch.device("cpu"))
    parts, _ = accumulate_gradients(
        distributed, loader.load(shares), denominators_of(store, indices), config.loss, timer
    )
    totals = sum_totals(communicator, parts, 130 * communicator.rank)
    assert totals.exit_code == 130 * (communicator.world_size - 1)
    return [totals.loss, totals.energy_mae, totals.forces_mae, totals.stress_mae], len(shares)


def compare(communicator: Communicator, store: StructureStore) -> dict:
    alone = Communicator(SINGLE, torch.device("cpu"), "none")
    results = {}
    for name, (indices, cap, graph) in CASES.items():
        found, num_micro_batches = totals_of(communicator, store, indices, cap, graph)
        wanted, _ = totals_of(alone, store, indices, None, 1)
        results[name] = {"found": found, "wanted": wanted, "micro_batches": num_micro_batches}
    return results


def check_collectives(communicator: Communicator) -> None:
    rank, size = communicator.rank, communicator.world_size
    assert communicator.all_reduce_sum(torch.tensor([float(rank + 1)])).item() == size * (size + 1) / 2
    assert communicator.all_reduce_max(torch.tensor([rank])).item() == size - 1
    assert communicator.broadcast(torch.tensor([rank * 10.0]), source=1).item() == 10.0
    assert communicator.gather_objects({"rank": rank, "long": "x" * rank}) == [
        {"rank": other, "long": "x" * other} for other in range(size)
    ]

    def mistake_on_last_rank():
        if rank == size - 1:
            raise UserError("only here")
        return rank

    with pytest.raises(UserError, match="only here"):
        communicator.together(mistake_on_last_rank)


def main() -> None:
    torch.set_num_threads(1)
    communicator = connect(device="cpu")
    check_collectives(communicator)
    store = StructureStore.open(Path(sys.argv[1])).recount(4.0, 3.0)
    results = communicator.gather_objects(compare(communicator, store))
    if communicator.rank == 0:
        print(json.dumps({"world_size": communicator.world_size, "launcher": communicator.launcher, "ranks": results}))
    communicator.leave(0)


main()
