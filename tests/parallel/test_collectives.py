"""Collectives over thread ranks against one process, through the double backward, and what the ledger counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from janus.parallel import collectives
from janus.parallel.axis import LoneAxis, Pending, Reduction
from janus.parallel.ledger import BACKWARD, in_phase
from tests.parallel.collective_cases import ORDERS, ROWS, cases, measure
from tests.parallel.thread_ranks import AbandonedError, ThreadAxis, ThreadWorld, run_on_threads

CASES = {case.name: index for index, case in enumerate(cases(2))}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_exact_through_the_double_backward(num_ranks: int, name: str, order: str, recompute: bool) -> None:
    def work(world: ThreadWorld) -> float:
        return measure(cases(num_ranks)[CASES[name]], world.axis("expert"), order, recompute=recompute)

    assert max(run_on_threads(num_ranks, work)) <= 1e-14


def test_two_groups_side_by_side() -> None:
    groups = [[0, 3], [2, 1]]

    def work(world: ThreadWorld) -> tuple[float, tuple[int, ...], int]:
        axis = world.axis("graph", groups)
        return measure(cases(2)[0], axis, "at once"), axis.ranks, axis.index

    found = run_on_threads(4, work)
    assert [(ranks, index) for _, ranks, index in found] == [((0, 3), 0), ((2, 1), 1), ((2, 1), 0), ((0, 3), 1)]
    assert max(error for error, _, _ in found) <= 1e-14


def loss_of_one_exchange(world: ThreadWorld, asynchronous: bool) -> list[dict[str, str | int]]:
    """x -> all-to-all -> y; E = sum y^3, F = -dE/dx, loss = sum F^2 + E. Rows of 5 float64, 40 bytes each."""
    table = ROWS[4]
    sent, received = table[world.rank], [row[world.rank] for row in table]
    axis = world.axis("expert")
    x = torch.ones(sum(sent), 5, dtype=torch.float64, requires_grad=True)
    with in_phase("FE"):
        if asynchronous:
            y = collectives.finish(collectives.start_all_to_all(x, axis, received, sent))
        else:
            y = collectives.all_to_all(x, axis, received, sent)
        energy = y.pow(3).sum()
    with in_phase("FF"):
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
    with in_phase(BACKWARD):
        (force.pow(2).sum() + energy).backward()
    return world.ledger.rows()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_ledger_counts_calls_and_bytes_by_phase(asynchronous: bool) -> None:
    """One call in each of FE, FF, BF, BE; backward the rows travel the other way round. Rows kept cost nothing."""
    table = ROWS[4]
    for rank, rows in enumerate(run_on_threads(4, lambda world: loss_of_one_exchange(world, asynchronous))):
        forth = 40 * (sum(table[rank]) - table[rank][rank])
        back = 40 * sum(row[rank] for index, row in enumerate(table) if index != rank)
        counted = {row["phase"]: (row["axis"], row["collective"], row["calls"], row["sent_bytes"]) for row in rows}
        assert counted == {
            "FE": ("expert", "all_to_all", 1, forth),
            "FF": ("expert", "all_to_all", 1, back),
            "BF": ("expert", "all_to_all", 1, forth),
            "BE": ("expert", "all_to_all", 1, back),
        }


def test_ledger_counts_bytes_of_every_collective() -> None:
    def work(world: ThreadWorld) -> dict[str, int]:
        axis, tensor = world.axis("shard"), torch.zeros(8, 3)
        for collective in (collectives.all_gather, collectives.reduce_scatter, collectives.all_reduce):
            collective(tensor, axis)
        return {str(row["collective"]): int(row["sent_bytes"]) for row in world.ledger.rows()}

    # 96 bytes on each of 4 ranks: 3 b of a piece, 3/4 of a whole, twice 3/4 of a whole
    assert run_on_threads(4, work) == [{"all_gather": 288, "reduce_scatter": 72, "all_reduce": 144}] * 4


def test_largest_value_and_integers() -> None:
    def work(world: ThreadWorld) -> tuple[list[int], list[int]]:
        axis, largest = world.axis("graph"), torch.tensor([world.rank, -world.rank])
        axis.all_reduce(largest, "max").wait()
        gathered = collectives.all_gather(torch.tensor([world.rank]), axis)
        return largest.tolist(), gathered.tolist()

    assert run_on_threads(3, work) == [([2, 0], [0, 1, 2])] * 3


def test_one_rank_gets_its_operand_back() -> None:
    axis, rows = LoneAxis("graph"), torch.ones(4, 2, requires_grad=True)
    results = [
        collectives.all_to_all(rows, axis, [4], [4]),
        collectives.all_gather(rows, axis),
        collectives.reduce_scatter(rows, axis),
        collectives.all_reduce(rows, axis),
        collectives.finish(collectives.start_all_to_all(rows, axis, [4], [4])),
    ]
    assert all(result is rows for result in results)
    assert axis.ledger.rows() == []


def test_a_collective_is_finished_once() -> None:
    def work(world: ThreadWorld) -> None:
        started = collectives.start_all_reduce(torch.ones(2), world.axis("graph"))
        collectives.finish(started)
        with pytest.raises(AssertionError, match="finished twice"):
            collectives.finish(started)

    run_on_threads(2, work)


def test_the_rank_that_fails_is_named() -> None:
    def work(world: ThreadWorld) -> Tensor:
        if world.rank == 1:
            raise ValueError("only here")
        return collectives.all_reduce(torch.ones(1), world.axis("graph"))

    with pytest.raises(ValueError, match="only here") as caught:
        run_on_threads(3, work)
    assert caught.value.__notes__ == ["on rank 1 of 3"]


def test_a_rank_that_never_comes_is_named() -> None:
    def work(world: ThreadWorld) -> None:
        axis = world.axis("graph")
        if world.rank != 2:
            collectives.all_reduce(torch.ones(1), axis)

    with pytest.raises(AbandonedError, match=r"absent ranks \[2\]"):
        run_on_threads(3, work, timeout_s=0.2)


def test_ranks_that_disagree_are_told() -> None:
    def work(world: ThreadWorld) -> None:
        rows = [[1, 2], [1, 1]][world.rank]
        collectives.all_to_all(torch.ones(sum(rows), 1), world.axis("expert"), [1, 1], rows)

    with pytest.raises(AssertionError, match="index 0 sends 2 rows to index 1, which expects 1"):
        run_on_threads(2, work, timeout_s=5)


class Compute(Function):
    """The identity, which notes that it ran, in every order of derivative."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, events: list[str]) -> Tensor:
        ctx.events = events
        events.append("compute")
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return Compute.apply(cotangent, ctx.events), None


class NotedAxis(ThreadAxis):
    """Notes when a collective starts and when it is waited for."""

    events: list[str]

    def _all_reduce(self, tensor: Tensor, reduction: Reduction) -> Pending:
        self.events.append("start")
        pending = super()._all_reduce(tensor, reduction)

        def wait() -> None:
            pending.wait()
            self.events.append("wait")

        return Pending(wait)


def test_compute_between_start_and_finish_runs_meanwhile_in_all_phases() -> None:
    def work(world: ThreadWorld) -> list[list[str]]:
        axis = world.axis("graph")
        axis.__class__, axis.events = NotedAxis, []
        x = torch.linspace(0.1, 1, 6, dtype=torch.float64, requires_grad=True)
        phases = []

        def next_phase() -> None:
            phases.append(list(axis.events))
            axis.events.clear()

        started = collectives.start_all_reduce(torch.sin(x), axis)
        side = Compute.apply(torch.cos(x), axis.events)
        energy = (collectives.finish(started).pow(2) * side).sum()
        next_phase()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        next_phase()
        force.pow(2).sum().backward()
        next_phase()
        return phases

    once = ["start", "compute", "wait"]
    for forward, force_pass, double_backward in run_on_threads(2, work):
        assert forward == once
        assert force_pass == once
        assert double_backward == once * 2
