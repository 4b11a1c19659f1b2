"""The 16-bit all-to-all: error of every value, special values, derivative, exact bytes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from janus.parallel import collectives
from janus.parallel.compression import Compression
from janus.parallel.ledger import BACKWARD, in_phase
from tests.parallel.collective_cases import ROWS, exchange_all
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads

NUM_ELEMENTS, WIDTH = 7, 3
TABLE = ROWS[4]


def elements_of(rank: int) -> Tensor:
    return torch.randint(NUM_ELEMENTS - 1, (sum(TABLE[rank]),), generator=torch.Generator().manual_seed(rank))


def rows_of(rank: int, dtype: torch.dtype) -> Tensor:
    """Values over many orders of magnitude, another one for each element type."""
    generator = torch.Generator().manual_seed(50 + rank)
    rows = torch.randn(sum(TABLE[rank]), WIDTH, generator=generator, dtype=torch.float64)
    spread = torch.rand(rows.shape, generator=generator, dtype=torch.float64) * 16
    return (rows * 10**-spread * 10.0 ** (3 * elements_of(rank) - 9)[:, None]).to(dtype)


def received_by(rank: int, parts: list[Tensor]) -> Tensor:
    return exchange_all(parts, TABLE)[rank]


def compression_of(rank: int) -> Compression:
    everyone = [elements_of(other) for other in range(4)]
    return Compression(NUM_ELEMENTS, everyone[rank], received_by(rank, everyone))


def exchanged(world: ThreadWorld, rows: Tensor, compression: Compression | None) -> Tensor:
    sent, received = TABLE[world.rank], [row[world.rank] for row in TABLE]
    return collectives.all_to_all(rows, world.axis("expert"), received, sent, compression)


def bound_of(rank: int, rows: Tensor) -> Tensor:
    """Largest allowed error of each value that ``rank`` sends: zero for the rows it keeps."""
    element = elements_of(rank)
    owner = torch.arange(4).repeat_interleave(torch.tensor(TABLE[rank]))
    bound = torch.zeros_like(rows)
    for index in range(NUM_ELEMENTS):
        leaving = (element == index) & (owner != rank)
        finite = rows[leaving][rows[leaving].isfinite()].abs()
        largest = float(finite.max()) if finite.numel() else 0.0
        step = 2.0**-40 * 2.0 ** math.frexp(largest)[1]
        bound[leaving] = torch.maximum(2.0**-11 * rows[leaving].abs(), torch.tensor(step, dtype=rows.dtype))
    return bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_error_of_every_value_is_bounded_by_its_element(dtype: torch.dtype) -> None:
    found = run_on_threads(4, lambda world: exchanged(world, rows_of(world.rank, dtype), compression_of(world.rank)))
    for rank in range(4):
        wanted = received_by(rank, [rows_of(other, dtype) for other in range(4)])
        bound = received_by(rank, [bound_of(other, rows_of(other, dtype)) for other in range(4)])
        assert found[rank].dtype == dtype
        assert ((found[rank] - wanted).abs() <= bound).all()
    assert any((found[rank] != received_by(rank, [rows_of(o, dtype) for o in range(4)])).any() for rank in range(4))


def test_infinite_nan_and_zero_values_arrive_and_leave_the_others_alone() -> None:
    def disturbed(rank: int) -> Tensor:
        rows = rows_of(rank, torch.float32)
        rows[::3, 0] = math.inf
        rows[1::3, 1] = math.nan
        rows[2::3, 2] = -math.inf
        rows[elements_of(rank) == 0] = 0.0
        rows[elements_of(rank) == 1] = 0.99 * torch.finfo(torch.float32).max
        return rows

    found = run_on_threads(4, lambda world: exchanged(world, disturbed(world.rank), compression_of(world.rank)))
    for rank in range(4):
        wanted = received_by(rank, [disturbed(other) for other in range(4)])
        bound = received_by(rank, [bound_of(other, disturbed(other)) for other in range(4)])
        finite = wanted.isfinite()
        assert ((found[rank] - wanted).abs() <= bound)[finite].all()
        torch.testing.assert_close(found[rank][~finite], wanted[~finite], rtol=0, atol=0, equal_nan=True)
        zero = received_by(rank, [elements_of(other) for other in range(4)]) == 0
        assert (found[rank][zero] == 0).all()


def test_exact_where_float16_is_exact() -> None:
    """Powers of two within 2^29 of their element's largest: nothing is lost, first and second derivative included."""

    def work(world: ThreadWorld, compression: Compression | None) -> tuple[Tensor, Tensor]:
        rows = torch.ones(sum(TABLE[world.rank]), WIDTH, dtype=torch.float64)
        rows = (rows * 2.0 ** -elements_of(world.rank)[:, None]).requires_grad_()
        energy = exchanged(world, rows, compression).pow(2).sum()
        (force,) = torch.autograd.grad(energy, rows, create_graph=True)
        force.pow(2).sum().backward()
        return force.detach(), rows.grad

    compressed = run_on_threads(4, lambda world: work(world, compression_of(world.rank)))
    plain = run_on_threads(4, lambda world: work(world, None))
    for mine, wanted in zip(compressed, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))


def test_started_and_finished_is_the_same_as_at_once() -> None:
    def work(world: ThreadWorld) -> list[Tensor]:
        sent, received = TABLE[world.rank], [row[world.rank] for row in TABLE]
        axis, compression, results = world.axis("expert"), compression_of(world.rank), []
        for asynchronous in (False, True):
            rows = rows_of(world.rank, torch.float32).requires_grad_()
            if asynchronous:
                output = collectives.finish(collectives.start_all_to_all(rows, axis, received, sent, compression))
            else:
                output = collectives.all_to_all(rows, axis, received, sent, compression)
            (force,) = torch.autograd.grad(output.pow(3).sum(), rows, create_graph=True)
            force.pow(2).sum().backward()
            results.append(torch.cat([output.detach().flatten(), force.detach().flatten(), rows.grad.flatten()]))
        return results

    for at_once, apart in run_on_threads(4, work):
        assert torch.equal(at_once, apart)


@pytest.mark.parametrize("width", [1, 3, 64])
def test_bytes_are_half_of_float32_and_one_table_per_receiver(width: int) -> None:
    def work(world: ThreadWorld, compressed: bool) -> dict[str, int]:
        rows = torch.ones(sum(TABLE[world.rank]), width, requires_grad=True)
        with in_phase("FE"):
            output = exchanged(world, rows, compression_of(world.rank) if compressed else None)
        with in_phase(BACKWARD):
            output.sum().backward()
        return {str(row["phase"]): int(row["sent_bytes"]) for row in world.ledger.rows()}

    header = math.ceil(NUM_ELEMENTS / width) * width * 2
    compressed = run_on_threads(4, lambda world: work(world, True))
    plain = run_on_threads(4, lambda world: work(world, False))
    for small, large in zip(compressed, plain, strict=True):
        assert small == {phase: sent // 2 + 3 * header for phase, sent in large.items()}


def test_segments_name_the_element_of_every_row() -> None:
    compression = Compression.of_segments(5, [(4, 2), (0, 0), (1, 3)], [])
    assert compression.sent.tolist() == [4, 4, 1, 1, 1]
    assert compression.received.tolist() == []
    assert compression.adjoint().received.tolist() == [4, 4, 1, 1, 1]
