"""Collectives over thread ranks against one process, through the double backward, and what the ledger counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from janus.parallel import collectives
from janus.parallel.ledger import BACKWARD, in_phase
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads

# rows that each rank sends to each other rank, by number of ranks: uneven, zeros, an empty rank
ROWS = {
    1: [[3]],
    2: [[1, 3], [0, 2]],
    3: [[0, 0, 0], [2, 0, 1], [4, 1, 3]],
    4: [[1, 0, 2, 3], [0, 0, 0, 0], [2, 2, 0, 1], [1, 4, 0, 2]],
}
WIDTH = 5


def operands(rank: int, num_rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    rows = torch.randn(num_rows, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return rows.requires_grad_(), weight.requires_grad_()


def loss_of(rows: list[Tensor], weights: list[Tensor], exchange) -> Tensor:
    """Sum over the given ranks of |dE/drows|^2 + E, with a non-linear E that crosses the exchange twice."""
    hidden = exchange([torch.tanh(x @ w) for x, w in zip(rows, weights, strict=True)])
    back = exchange([torch.sin(h) * h for h in hidden])
    energy = sum((b.pow(3) @ w).sum() for b, w in zip(back, weights, strict=True))
    with in_phase("FF"):
        forces = torch.autograd.grad(energy, rows, create_graph=True)
    return sum(f.pow(2).sum() for f in forces) + energy


def together_all_to_all(table: list[list[int]]):
    """The same exchange of all ranks in one process; called alternately there and back."""
    forth = [True]

    def exchange(parts: list[Tensor]) -> list[Tensor]:
        sent = table if forth[0] else [list(column) for column in zip(*table, strict=True)]
        forth[0] = not forth[0]
        pieces = [part.split(row) for part, row in zip(parts, sent, strict=True)]
        return [torch.cat([piece[to] for piece in pieces]) for to in range(len(parts))]

    return exchange


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / max(float(wanted.norm()), 1e-300)) if wanted.numel() else 0.0


def reference(num_ranks: int, num_rows: list[int], exchange) -> list[tuple[Tensor, Tensor]]:
    pairs = [operands(rank, num_rows[rank]) for rank in range(num_ranks)]
    loss_of([p[0] for p in pairs], [p[1] for p in pairs], exchange).backward()
    return [(rows.grad, weight.grad) for rows, weight in pairs]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_all_to_all_is_exact_through_the_double_backward(num_ranks: int) -> None:
    table = ROWS[num_ranks]

    def work(world: ThreadWorld) -> tuple[Tensor, Tensor]:
        axis = world.axis("expert")
        sent, received = table[world.rank], [row[world.rank] for row in table]
        rows, weight = operands(world.rank, sum(sent))
        there = [(received, sent), (sent, received)]

        def exchange(parts: list[Tensor]) -> list[Tensor]:
            return [collectives.all_to_all(parts[0], axis, *there.pop(0))]

        with in_phase("FE"):
            loss = loss_of([rows], [weight], exchange)
        with in_phase(BACKWARD):
            loss.backward()
        return rows.grad, weight.grad

    found = run_on_threads(num_ranks, work)
    wanted = reference(num_ranks, [sum(row) for row in table], together_all_to_all(table))
    for mine, right in zip(found, wanted, strict=True):
        assert relative(mine[0], right[0]) <= 1e-14
        assert relative(mine[1], right[1]) <= 1e-14
