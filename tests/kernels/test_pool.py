"""The pool of work memory: reuse, bounds, and that nothing lent twice is shared."""

from __future__ import annotations

import gc
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from janus.kernels.pool import SMALLEST_BYTES, BlockPool, block_bytes

ROWS = SMALLEST_BYTES // 4 // 16


@pytest.mark.parametrize("num_bytes", [1, 4096, 300_000, 1 << 20, (1 << 20) + 1, 30_852_608, 123_456_789])
def test_blocks_hold_the_request_and_waste_little(num_bytes: int) -> None:
    size = block_bytes(num_bytes)
    assert size >= num_bytes
    assert size <= max(num_bytes * 1.125, num_bytes + 4096)
    assert block_bytes(size) == size


def test_a_freed_block_is_lent_again_and_a_lent_one_never() -> None:
    pool = BlockPool()
    first = pool.empty((ROWS, 16), torch.float32)
    second = pool.empty((ROWS, 16), torch.float32)
    assert first.data_ptr() != second.data_ptr()
    address, view = first.data_ptr(), first[3:]
    del first
    assert pool.empty((ROWS, 16), torch.float32).data_ptr() != address, "a view still holds the block"
    del view
    gc.collect()
    assert pool.empty((2 * ROWS, 8), torch.float32).data_ptr() == address


def test_a_larger_block_serves_and_a_much_larger_one_waits() -> None:
    pool = BlockPool()
    small, large = pool.empty((4 * ROWS, 16), torch.float32), pool.empty((32 * ROWS, 16), torch.float32)
    addresses = small.data_ptr(), large.data_ptr()
    del small, large
    first = pool.empty((3 * ROWS, 16), torch.float32)
    assert first.data_ptr() == addresses[0]
    assert pool.empty((5 * ROWS, 16), torch.float32).data_ptr() != addresses[1]


def test_memory_never_exceeds_the_most_lent() -> None:
    pool = BlockPool()
    for rows in (ROWS, 2 * ROWS, 3 * ROWS, 5 * ROWS, 2 * ROWS):
        many = [pool.empty((rows, 16), torch.float32) for _ in range(3)]
        assert 3 * block_bytes(rows * 64) <= pool.lent_bytes <= 4 * 3 * block_bytes(rows * 64)
        assert pool.lent_bytes + pool.waiting_bytes <= pool.most_lent_bytes
        del many
    assert pool.lent_bytes == 0
    assert pool.waiting_bytes <= pool.most_lent_bytes


def test_small_tensors_do_not_come_from_the_pool() -> None:
    pool = BlockPool()
    assert pool.empty((3, 4), torch.float64).shape == (3, 4)
    assert pool.empty((0, 4), torch.float64).shape == (0, 4)
    assert pool.lent_bytes == 0


def test_tensors_are_ordinary() -> None:
    pool = BlockPool()
    tensor = pool.empty((ROWS, 16), torch.float64).fill_(2.0)
    assert tensor.is_contiguous()
    assert tensor.dtype == torch.float64
    assert (tensor @ torch.ones(16, 1, dtype=torch.float64)).eq(32).all()


def test_no_memory_names_what_was_asked_for() -> None:
    with pytest.raises(MemoryError, match=r"no memory for .* MB beside 0 MB of work memory in use"):
        BlockPool().empty((1 << 46,), torch.float32)


def test_threads_share_a_pool() -> None:
    """Ranks as threads, and a GPU's backward threads, ask and free at the same time."""
    pool = BlockPool()

    def work(seed: int) -> None:
        generator = random.Random(seed)
        held: list[torch.Tensor] = []
        for _ in range(3000):
            held.append(pool.empty((generator.randint(16 * ROWS, 256 * ROWS),), torch.float32))
            while len(held) > generator.randint(0, 6):
                held.pop(generator.randrange(len(held)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
    gc.collect()
    assert pool.lent_bytes == 0
