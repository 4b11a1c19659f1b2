"""Run under mpiexec by test_axes.py: both transports through all collectives; rank 0 prints JSON."""

import json
import warnings

import torch
from collective_cases import ORDERS, ROWS, cases, exchange_all, measure

from janus.parallel import collectives
from janus.parallel.axis import Axis
from janus.parallel.communication import Communicator, connect
from janus.parallel.compression import Compression

MOVED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
REDUCED = (torch.float32, torch.float64, torch.int64)


def check_every_dtype(axis: Axis) -> None:
    table, size, index = ROWS[axis.size], axis.size, axis.index
    received = [row[index] for row in table]
    for dtype in MOVED:
        parts = [(torch.arange(sum(row) * 2) + 10 * rank).reshape(-1, 2).to(dtype) for rank, row in enumerate(table)]
        assert torch.equal(
            collectives.all_to_all(parts[index], axis, received, table[index]), exchange_all(parts, table)[index]
        ), dtype
        pieces = [torch.tensor([rank, 1]).to(dtype) for rank in range(size)]
        assert torch.equal(collectives.all_gather(pieces[index], axis), torch.cat(pieces)), dtype
    for dtype in REDUCED:
        wholes = [torch.arange(2 * size).to(dtype) * (rank + 1) for rank in range(size)]
        total = sum(wholes)
        assert torch.equal(collectives.reduce_scatter(wholes[index], axis), total[2 * index : 2 * index + 2]), dtype
        assert torch.equal(collectives.all_reduce(wholes[index], axis), total), dtype
        largest = wholes[index].clone()
        axis.all_reduce(largest, "max").wait()
        assert torch.equal(largest, wholes[-1]), dtype


def check_nothing_at_all(axis: Axis) -> None:
    nothing, zeros = torch.zeros(0, 3), [0] * axis.size
    assert collectives.all_to_all(nothing, axis, zeros, zeros).shape == (0, 3)
    assert collectives.all_gather(nothing, axis).shape == (0, 3)
    assert collectives.reduce_scatter(nothing, axis).shape == (0, 3)
    assert collectives.all_reduce(nothing, axis).shape == (0, 3)


def check_compression(axis: Axis) -> None:
    """Rows of halves arrive exactly, for rows of one element type per sender and receiver."""
    table, index = ROWS[axis.size], axis.index
    received = [row[index] for row in table]
    segments = [(rank % 3, count) for rank, count in enumerate(table[index])], [(index % 3, n) for n in received]
    compression = Compression.of_segments(3, *segments)
    parts = [torch.full((sum(row), 4), 2.0**-rank) for rank, row in enumerate(table)]
    found = collectives.all_to_all(parts[index], axis, received, table[index], compression)
    assert torch.equal(found, exchange_all(parts, table)[index])


def examine(communicator: Communicator, transport: str) -> dict:
    """Everything over one transport; the errors of this rank by case."""
    entered_before = communicator.waiting.collectives_entered
    world = communicator.make_axis("expert", [list(range(communicator.world_size))], transport=transport)
    check_every_dtype(world)
    check_nothing_at_all(world)
    check_compression(world)
    errors, counted = {}, {}
    for case in cases(world.size):
        for order in ORDERS:
            errors[f"{case.name}, {order}"] = measure(case, world, order)
        counted[case.name] = world.ledger.rows()
        errors[f"{case.name}, recomputed"] = measure(case, world, "finished in reverse", recompute=True)
    size = communicator.world_size
    halves = [[rank for rank in range(size) if rank % 2 == half] for half in (0, 1)]
    uneven = [[0], list(range(1, size))]
    for name, groups in (("halves", halves), ("uneven", uneven)):
        axis = communicator.make_axis(name, groups, transport=transport)
        assert axis.ranks == tuple(next(group for group in groups if communicator.rank in group)), axis.ranks
        assert axis.ranks[axis.index] == communicator.rank
        assert axis.ledger is communicator.ledger
        errors[name] = max(measure(case, axis, "finished in order") for case in cases(axis.size))
    assert communicator.waiting.entered_at is None
    return {"errors": errors, "counted": counted, "entered": communicator.waiting.collectives_entered - entered_before}


def main() -> None:
    warnings.simplefilter("error", FutureWarning)
    torch.set_num_threads(1)
    communicator = connect(device="cpu", transport="mpi")
    found = {transport: examine(communicator, transport) for transport in ("mpi", "gloo")}
    ranks = communicator.gather_objects(found)
    if communicator.rank == 0:
        print(json.dumps({"transport": communicator.transport, "ranks": ranks}))
    communicator.leave(0)


main()
