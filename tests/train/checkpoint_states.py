"""States to save, known by their values: whole tensors, and the pieces of them that the ranks of a layout hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from janus.parallel.axis import Axis, LoneAxis
from janus.parallel.communication import Communicator, connect
from janus.parallel.pieces import Piece

SHAPES = {"experts": (6, 4, 3), "matrix": (7, 5), "vector": (11,), "scalar": (), "nothing": (0, 3)}
DTYPES = {"weights": torch.float32, "exp_avg": torch.float64, "average": torch.bfloat16}
Chunks = tuple[tuple[int, int], ...]


def whole_state(step: int) -> dict[str, dict[str, Tensor]]:
    """Parts by name, whole; other values for every step."""
    generator = torch.Generator().manual_seed(step)
    return {
        part: {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
               for name, shape in SHAPES.items()}
        for part, dtype in DTYPES.items()
    }  # fmt: skip


def equal_on_all_ranks(step: int) -> dict[str, Tensor]:
    """What no layout divides."""
    generator = torch.Generator().manual_seed(step)
    return {"buffer/reference_energies": torch.arange(5) * step, "generator": generator.get_state(),
            "step/matrix": torch.tensor(float(step))}  # fmt: skip


def in_one(total: int, rank: int, num_ranks: int) -> Chunks:
    """The last rank has it all."""
    return ((0, total),) if rank == num_ranks - 1 else ()


def in_shards(total: int, rank: int, num_ranks: int) -> Chunks:
    """Even shards, the last ones short or empty."""
    size = math.ceil(total / num_ranks)
    return ((min(rank * size, total), min((rank + 1) * size, total)),)


def in_turn(total: int, rank: int, num_ranks: int) -> Chunks:
    """Ranges of three elements dealt out in turn, held in falling order."""
    return tuple((start, min(start + 3, total)) for start in range(3 * rank, total, 3 * num_ranks))[::-1]


DIVISIONS: dict[str, Callable[[int, int, int], Chunks]] = {"one": in_one, "shards": in_shards, "turn": in_turn}


def take(whole: Tensor, chunks: Chunks) -> Tensor:
    """Elements of the ranges of a flattened tensor, in order."""
    flat = whole.reshape(-1)
    return torch.cat([flat[:0], *(flat[start:stop] for start, stop in chunks)])


def alone() -> Communicator:
    """The communicator of a job of one process."""
    return connect(device="cpu")


def pieces_of(chunks: dict[str, Chunks], owners: Axis, copies: Axis) -> dict[str, Piece]:
    """Pieces of all parameters, on this rank."""
    return {
        name: Piece(
            name=name, shape=shape, chunks=chunks[name], owners=owners, copies=copies,
            parameter=nn.Parameter(torch.zeros(sum(stop - start for start, stop in chunks[name]))),
        )
        for name, shape in SHAPES.items()
    }  # fmt: skip


def whole_pieces() -> dict[str, Piece]:
    """Pieces of one process, which are everything."""
    chunks = {name: ((0, math.prod(shape)),) for name, shape in SHAPES.items()}
    return pieces_of(chunks, LoneAxis("shard"), LoneAxis("replica"))


def assert_equal_states(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> None:
    """Bit for bit, shapes and types too."""
    assert one.keys() == other.keys()
    for part, tensors in one.items():
        assert tensors.keys() == other[part].keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == other[part][name].dtype, (part, name)
            assert torch.equal(tensor, other[part][name]), (part, name)
