"""One small model around each collective, on many ranks and in one process; shared by threads and real ranks.

Per rank: h = tanh(x w), a collective there, a non-linearity, the adjoint collective back, an energy; forces from it
with a graph; a loss of both. ``measure`` gives this rank's energy, forces and gradients with their relative errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from janus.model.recompute import recomputed
from janus.parallel import collectives as c
from janus.parallel.axis import Axis
from janus.parallel.ledger import BACKWARD, in_phase

WIDTH = 5
Many = list[Tensor]

# rows that each rank sends to each other rank, by number of ranks: uneven, zeros, ranks with nothing
ROWS = {
    1: [[3]],
    2: [[1, 3], [0, 2]],
    3: [[0, 0, 0], [2, 0, 1], [4, 1, 3]],
    4: [[1, 0, 2, 3], [0, 0, 0, 0], [2, 2, 0, 1], [1, 4, 0, 2]],
}
EMPTY = {n: [[0] * n for _ in range(n)] for n in (1, 2, 3, 4)}


@dataclass(frozen=True)
class Case:
    """A collective there and its adjoint back. num_rows: of each rank's x; start_*: on this rank; *_all: of all."""

    name: str
    num_rows: list[int]
    start_there: Callable[[Tensor, Axis], c.Started]
    start_back: Callable[[Tensor, Axis], c.Started]
    there: Callable[[Tensor, Axis], Tensor]
    back: Callable[[Tensor, Axis], Tensor]
    there_all: Callable[[Many], Many]
    back_all: Callable[[Many], Many]


def exchange_all(parts: Sequence[Tensor], table: Sequence[Sequence[int]]) -> Many:
    """The all-to-all of all ranks in one process."""
    pieces = [part.split(list(row)) for part, row in zip(parts, table, strict=True)]
    return [torch.cat([piece[to] for piece in pieces]) for to in range(len(parts))]


def scatter_all(parts: Many) -> Many:
    return list(sum(parts).chunk(len(parts)))


def all_to_all_case(name: str, table: list[list[int]]) -> Case:
    transposed = [list(column) for column in zip(*table, strict=True)]

    def rows(axis: Axis) -> tuple[list[int], list[int]]:
        return transposed[axis.index], table[axis.index]

    return Case(
        name, [sum(row) for row in table],
        lambda x, axis: c.start_all_to_all(x, axis, *rows(axis)),
        lambda x, axis: c.start_all_to_all(x, axis, *rows(axis)[::-1]),
        lambda x, axis: c.all_to_all(x, axis, *rows(axis)),
        lambda x, axis: c.all_to_all(x, axis, *rows(axis)[::-1]),
        lambda parts: exchange_all(parts, table),
        lambda parts: exchange_all(parts, transposed),
    )  # fmt: skip


def cases(size: int) -> list[Case]:
    return [
        all_to_all_case("all-to-all", ROWS[size]),
        all_to_all_case("all-to-all of nothing", EMPTY[size]),
        Case(
            "all-gather, reduce-scatter", [3] * size,
            c.start_all_gather, c.start_reduce_scatter, c.all_gather, c.reduce_scatter,
            lambda parts: [torch.cat(parts)] * size, scatter_all,
        ),
        Case(
            "all-reduce", [2] * size, c.start_all_reduce, c.start_all_reduce, c.all_reduce, c.all_reduce,
            lambda parts: [sum(parts)] * size, lambda parts: [sum(parts)] * size,
        ),
    ]  # fmt: skip


class Block(nn.Module):
    """What a rank computes on its own, before and after the collectives."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(100 + rank)
        self.weight, self.other = (
            nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)) for _ in range(2)
        )

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x @ self.weight), torch.cos(x @ self.other)

    def middle(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(a) * b @ self.other, a * b.pow(2) @ self.weight

    def energy(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b @ self.weight).pow(3).sum() + a.sum() + b.pow(2).sum()


# how a rank runs the collectives of both channels: (start all, in this order of finishing) or one after the other
ORDERS = {"at once": None, "finished in order": (0, 1), "finished in reverse": (1, 0)}


def run_channels(tensors: Sequence[Tensor], axis: Axis, start: Callable, direct: Callable, order: str) -> Many:
    finishing = ORDERS[order]
    if finishing is None:
        return [direct(tensor, axis) for tensor in tensors]
    started = [start(tensor, axis) for tensor in tensors]
    done = {channel: c.finish(started[channel]) for channel in finishing}
    return [done[0], done[1]]


def energy_here(case: Case, axis: Axis, block: Block, x: Tensor, order: str) -> Tensor:
    there = run_channels(block.first(x), axis, case.start_there, case.there, order)
    back = run_channels(block.middle(*there), axis, case.start_back, case.back, order)
    return block.energy(*back)


def energy_of_all(case: Case, blocks: list[Block], xs: Many) -> Tensor:
    firsts = [block.first(x) for block, x in zip(blocks, xs, strict=True)]
    a, b = (case.there_all([first[channel] for first in firsts]) for channel in (0, 1))
    middles = [block.middle(*pair) for block, *pair in zip(blocks, a, b, strict=True)]
    a, b = (case.back_all([middle[channel] for middle in middles]) for channel in (0, 1))
    return sum(block.energy(*pair) for block, *pair in zip(blocks, a, b, strict=True))


def operand(case: Case, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(case.num_rows[rank], WIDTH, generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def differentiate(energy: Tensor, xs: Many, blocks: list[Block]) -> list[Many]:
    """Per rank: forces, gradient of the loss by x and by both weights."""
    with in_phase("FF"):
        forces = torch.autograd.grad(energy, xs, create_graph=True)
    loss = sum(force.pow(2).sum() for force in forces) + 0.1 * energy
    with in_phase(BACKWARD):
        loss.backward()
    return [
        [force.detach(), x.grad, block.weight.grad, block.other.grad]
        for force, x, block in zip(forces, xs, blocks, strict=True)
    ]


def relative(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|, absolute where the reference is zero."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float((found - wanted).norm() / (float(wanted.norm()) or 1.0)) if wanted.numel() else 0.0


def reference(case: Case, index: int) -> tuple[Tensor, Many]:
    """All ranks in this process: the total energy, and what rank ``index`` should find."""
    blocks = [Block(rank) for rank in range(len(case.num_rows))]
    xs = [operand(case, rank) for rank in range(len(case.num_rows))]
    energy = energy_of_all(case, blocks, xs)
    return energy.detach(), differentiate(energy, xs, blocks)[index]


def measure(case: Case, axis: Axis, order: str, *, recompute: bool = False) -> float:
    """Largest relative error of this rank's forces and gradients. Clears the ledger first."""
    axis.ledger.clear()
    block, x = Block(axis.index), operand(case, axis.index)
    with in_phase("FE"):
        if recompute:
            (energy,) = recomputed(block, lambda y: (energy_here(case, axis, block, y, order),), x)
        else:
            energy = energy_here(case, axis, block, x, order)
    ((*found,),) = differentiate(energy, [x], [block])
    _, wanted = reference(case, axis.index)
    return max(relative(mine, right) for mine, right in zip(found, wanted, strict=True))
