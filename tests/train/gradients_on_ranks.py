"""Run under mpiexec by test_parallel_gradients.py: gradients of N ranks against one process, printed as JSON by rank 0.

Also the collectives of the communicator, against values known in advance.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from janus.config import ModelConfig
from janus.data.store import StructureStore
from janus.errors import UserError
from janus.model.build import build_model
from janus.parallel.communication import Communicator, connect
from janus.parallel.gradients import GradientBuckets
from janus.presets import preset
from janus.train.config import LossConfig
from janus.train.loader import BatchLoader
from janus.train.loss import denominators_of
from janus.train.optimizer import trainable
from janus.train.sampler import share_out
from janus.train.step import accumulate_gradients, synchronise
from janus.train.timing import PhaseTimer

MODELS = {
    "matris": ModelConfig(num_blocks=2, width=8, cutoff_angstrom=4.0, line_cutoff_angstrom=3.0),
    "matris-moe": preset("matris-moe-tiny"),
}
# name -> (structures of the global batch, work cap, bucket bytes, recompute)
CASES = {
    "uneven": ([0, 1, 2, 5, 7, 8, 9], None, 1 << 20, False),
    "empty rank": ([2], None, 1 << 20, False),
    "micro-batches": ([0, 1, 2, 3, 4, 5, 7, 8, 9], 900, 1 << 20, False),
    "small buckets, recompute": ([1, 3, 6, 7], 2000, 1000, True),
}


def gradients(communicator, model, store, shares, indices, bucket_bytes, recompute, loader):
    parameters = trainable(model)
    model.zero_grad(set_to_none=True)
    micro_batches = loader.load(shares)
    timer = PhaseTimer(torch.device("cpu"))
    config = LossConfig(kind="huber", energy=1.0, forces=2.0, stress=30.0)
    parts = accumulate_gradients(
        model, micro_batches, denominators_of(store, indices), config, timer, recompute=recompute
    )
    totals = synchronise(communicator, GradientBuckets(list(parameters.values()), bucket_bytes), parts, 0)
    return totals.loss, {name: parameter.grad.clone() for name, parameter in parameters.items()}


def compare(communicator: Communicator, alone: Communicator, store: StructureStore) -> dict:
    results = {}
    for family, config in MODELS.items():
        model = build_model(config, seed=1, dtype=torch.float64)
        loader = BatchLoader(
            store, cutoff_angstrom=config.cutoff_angstrom, line_cutoff_angstrom=config.line_cutoff_angstrom,
            dtype=torch.float64, device=torch.device("cpu"),
        )  # fmt: skip
        counted = store.recount(config.cutoff_angstrom, config.line_cutoff_angstrom)
        for name, (indices, cap, bucket_bytes, recompute) in CASES.items():
            shares = share_out(counted.work, indices, communicator.world_size, cap)
            loss, together = gradients(
                communicator, model, store, shares[communicator.rank], indices, bucket_bytes, recompute, loader
            )
            reference_loss, reference = gradients(alone, model, store, [indices], indices, 1 << 20, False, loader)
            worst = max(
                float((together[key] - reference[key]).norm() / max(float(reference[key].norm()), 1e-6))
                for key in reference
            )
            results[f"{family}: {name}"] = {
                "loss": abs(loss - reference_loss), "gradient": worst,
                "norm": float(sum(value.norm() for value in reference.values())),
                "micro_batches": [len(share) for share in shares],
            }  # fmt: skip
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
    from janus.parallel.rendezvous import SINGLE

    torch.set_num_threads(1)
    communicator = connect(device="cpu")
    check_collectives(communicator)
    alone = Communicator(SINGLE, torch.device("cpu"), "none")
    results = compare(communicator, alone, StructureStore.open(Path(sys.argv[1])))
    results = communicator.gather_objects(results)
    if communicator.rank == 0:
        print(json.dumps({"world_size": communicator.world_size, "launcher": communicator.launcher, "ranks": results}))
    communicator.leave(0)


main()
