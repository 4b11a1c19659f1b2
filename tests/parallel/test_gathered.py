"""Gathered buffers: how often they are restored in each phase, how many live at once, what autograd keeps of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.multiprocessing.reductions import StorageWeakRef

from janus.parallel.axis import Axis, Pending
from janus.parallel.gathered import GatheredBuffers
from janus.parallel.ledger import BACKWARD, in_phase
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads

WIDTH = 4
NUM_RANKS = 2


class _Whole(Function):
    """The shard -> the whole matrix in a gathered buffer; backward: this rank's part of the gradient."""

    @staticmethod
    def forward(ctx, shard: Tensor, whole: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return whole.view(WIDTH, WIDTH).detach()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        summed = gradient.new_empty(WIDTH * WIDTH // ctx.axis.size)
        ctx.axis.reduce_scatter(summed, gradient.reshape(-1).contiguous()).wait()
        return summed, None, None


class Watched(GatheredBuffers):
    """Notes, whenever autograd saves or asks, which blocks' memory is alive, by weak references of its own."""

    def __init__(self, keep: int | None) -> None:
        super().__init__(keep)
        self.made: list[tuple[int, StorageWeakRef]] = []
        self.most_alive = 0

    def sample(self) -> int:
        alive = {block for block, weak in self.made if not weak.expired()}
        self.most_alive = max(self.most_alive, len(alive))
        return len(alive)

    def _pack(self, tensor: Tensor):
        self.sample()
        return super()._pack(tensor)

    def _unpack(self, saved) -> Tensor:
        tensor = super()._unpack(saved)
        self.sample()
        return tensor


def step(axis: Axis, buffers: Watched, num_blocks: int, num_micro_batches: int):
    """Layers y = tanh(y W), forces of the sum, squared: accesses in FE, FF, BF and BE. Returns loss and gradients."""
    generator = torch.Generator().manual_seed(0)
    shards, handles = [], []
    for block in range(num_blocks):
        matrix = torch.randn(WIDTH * WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
        shard = nn.Parameter(matrix.chunk(axis.size)[axis.index].clone())

        def restore(phase: str, shard: Tensor = shard, block: int = block) -> tuple[Tensor, Pending]:
            whole = torch.empty(WIDTH * WIDTH, dtype=torch.float64)
            buffers.made.append((block, StorageWeakRef(whole.untyped_storage())))
            pending = axis.all_gather(whole, shard.detach(), phase)
            buffers.sample()
            return whole, pending

        shards.append(shard)
        handles.append(buffers.add(block, restore))
    total = 0.0
    for number in range(num_micro_batches):
        x = torch.linspace(-1, 1, 3 * WIDTH, dtype=torch.float64).view(3, WIDTH) * (1 + number)
        x.requires_grad_()
        with in_phase("FE"):
            y = x
            for shard, handle in zip(shards, handles, strict=True):
                y = torch.tanh(y @ _Whole.apply(shard, buffers.use(handle), axis))
        with in_phase("FF"):
            (force,) = torch.autograd.grad(y.sum(), [x], create_graph=True)
        loss = force.square().sum() + y.sum()
        with in_phase(BACKWARD):
            loss.backward()
        total += loss.item()
        del y, force, loss
    return total, [shard.grad for shard in shards]


def run(world: ThreadWorld, num_blocks: int, num_micro_batches: int, keep: int | None, *, hooked: bool = True):
    buffers = Watched(keep)
    if hooked:
        with buffers.hooks():
            loss, gradients = step(world.axis("shard"), buffers, num_blocks, num_micro_batches)
    else:
        loss, gradients = step(world.axis("shard"), buffers, num_blocks, num_micro_batches)
    buffers.drop()
    left = buffers.sample()
    return loss, gradients, world.ledger, buffers, left


def gathers(ledger) -> dict[str, int]:
    return {entry.phase: calls for entry, calls in ledger.calls.items() if entry.collective == "all_gather"}


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3])
@pytest.mark.parametrize("keep", [1, 2, 3, None])
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 6])
def test_restorations_per_phase_are_the_documented_ones(num_blocks, keep, num_micro_batches):
    held = num_blocks if keep is None else min(keep, num_blocks)
    again = num_blocks - held
    expected = {"FE": num_blocks + (num_micro_batches - 1) * again, "FF": num_micro_batches * again,
                "BF": num_micro_batches * again, "BE": num_micro_batches * again}  # fmt: skip
    assert sum(expected.values()) == held + 4 * num_micro_batches * again
    if keep == 2 and num_blocks >= 2 and num_micro_batches == 1:
        assert sum(expected.values()) == 4 * num_blocks - 6
    for _, _, ledger, buffers, left in run_on_threads(
        NUM_RANKS, lambda world: run(world, num_blocks, num_micro_batches, keep)
    ):
        assert gathers(ledger) == {phase: calls for phase, calls in expected.items() if calls}
        assert buffers.most_alive == held
        assert buffers.peak_blocks == held
        assert buffers.peak_bytes == held * WIDTH * WIDTH * 8
        assert left == 0


@pytest.mark.parametrize("keep", [1, 2, None])
def test_restored_buffers_give_the_same_gradients(keep):
    plain = run_on_threads(1, lambda world: run(world, 4, 2, None, hooked=False))[0]
    for rank, (loss, gradients, _, _, _) in enumerate(run_on_threads(NUM_RANKS, lambda world: run(world, 4, 2, keep))):
        assert loss == pytest.approx(plain[0], rel=1e-13)
        for mine, whole in zip(gradients, plain[1], strict=True):
            expected = NUM_RANKS * whole.chunk(NUM_RANKS)[rank]  # every rank has the same rows
            assert torch.allclose(mine, expected, rtol=1e-12, atol=1e-12)


def test_without_the_hooks_every_buffer_stays():
    """What the hooks are for; also shows that the samples above can see more than two."""
    buffers = run_on_threads(NUM_RANKS, lambda world: run(world, 6, 1, 2, hooked=False))[0][3]
    assert len(buffers.made) == 6
    assert buffers.most_alive == 6


def test_the_next_block_is_fetched_before_it_is_asked_for():
    """At every use but the first and those after a turn, the buffer is under way already."""
    started: list[int] = []
    buffers = GatheredBuffers(2)

    def restore_of(block: int):
        def restore(phase: str) -> tuple[Tensor, Pending]:
            started.append(block)
            return torch.empty(4), Pending()

        return restore

    handles = [buffers.add(block, restore_of(block)) for block in range(5)]
    seen = []
    for block in [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 4, 3, 2, 1, 0]:
        buffers.use(handles[block])
        seen.append(list(started))
        started.clear()
    flat = [block for blocks in seen for block in blocks]
    assert Counter(flat) == {0: 3, 1: 3, 2: 4, 3: 2, 4: 2}
    assert seen[0] == [0, 1]
    assert seen[1:5] == [[2], [3], [4], []]
    assert seen[5:10] == [[], [2], [1], [0], []]
    assert seen[10:15] == [[], [2], [3], [4], []]
    assert seen[15:20] == [[], [2], [1], [0], []]


def test_a_buffer_whose_content_changes_is_freed_and_fetched_anew():
    """Several buffers of one block: only what was freed is restored, the others stay."""
    values = {"weights": 1.0, "experts": 2.0}
    buffers = GatheredBuffers(2)
    handles = {
        name: buffers.add(0, lambda phase, name=name: (torch.full((2,), values[name]), Pending())) for name in values
    }
    assert buffers.use(handles["experts"]).tolist() == [2.0, 2.0]
    kept = buffers.use(handles["weights"])
    values["experts"] = 3.0
    handles["experts"].free()
    assert buffers.use(handles["experts"]).tolist() == [3.0, 3.0]
    assert buffers.use(handles["weights"]) is kept
    assert buffers.alive() == [(0, 8), (0, 8)]


def test_freeing_waits_for_the_collective_that_still_writes():
    waited: list[int] = []
    buffers = GatheredBuffers(2)
    handles = [
        buffers.add(block, lambda phase, b=block: (torch.empty(1), Pending(lambda: waited.append(b))))
        for block in range(5)
    ]
    buffers.use(handles[0])
    assert waited == [0]
    buffers.use(handles[3])  # a jump: block 1, fetched ahead in vain, and block 0 go
    assert waited == [0, 1, 3]
    buffers.drop()
    assert waited == [0, 1, 3, 4]
    assert buffers.alive() == []


def test_a_view_saved_after_its_buffer_was_freed_is_recognised():
    """A reference held too long keeps the memory, as it must; autograd still keeps a note only."""
    buffers = GatheredBuffers(2)
    handles = [buffers.add(block, lambda phase: (torch.ones(2), Pending())) for block in range(4)]
    x = torch.ones(2, requires_grad=True)
    with buffers.hooks():
        late = buffers.use(handles[0])
        for block in (1, 2, 3):
            buffers.use(handles[block])
        assert len(buffers.alive()) == 3
        y = (x * late).sum()
        del late
        assert [block for block, _ in buffers.alive()] == [2, 3]
        y.backward()
    assert x.grad.tolist() == [1.0, 1.0]
