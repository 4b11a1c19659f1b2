"""Micro-batches made ahead of their use: their order, what is in memory at once, errors and an early end."""

import gc
import threading
import time
import weakref

import pytest
import torch

from janus.data.synthetic import make_structures
from janus.train.loader import BatchLoader, Prefetcher
from janus.train.timing import PhaseTimer

CPU = torch.device("cpu")


class WatchedLoader(BatchLoader):
    """Remembers, weakly, what it made, and how many of those were alive together at most."""

    def __init__(self, num_structures: int, broken: int | None = None) -> None:
        structures = list(make_structures(num_structures, max_atoms=8))
        super().__init__(
            structures, cutoff_angstrom=4.0, line_cutoff_angstrom=3.0, dtype=torch.float64, device=CPU
        )  # fmt: skip
        self.broken, self.made, self.most = broken, [], 0

    def load_micro_batch(self, indices):
        if self.broken in indices:
            raise OSError(f"structure {self.broken} cannot be read")
        made = super().load_micro_batch(indices)
        self.made.append(weakref.ref(made.batch.positions))
        gc.collect()
        self.most = max(self.most, sum(one() is not None for one in self.made))
        return made


@pytest.fixture
def prefetcher_of():
    """A maker of prefetchers that are closed at the end; afterwards no thread of theirs is left."""
    made = []

    def make(loader, shares):
        made.append(Prefetcher(loader, lambda step: shares[step], range(len(shares))))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not any(thread.name == "janus-loader" for thread in threading.enumerate())


def test_steps_and_micro_batches_come_in_order_and_are_counted(prefetcher_of):
    shares = [[[0], [1, 2]], [], [[3]], [[], [4]], [[5]]]
    loader, timer = WatchedLoader(6), PhaseTimer(CPU)
    prefetcher = prefetcher_of(loader, shares)
    for share in shares:
        batches = prefetcher.step(timer)
        assert len(batches) == len(share)
        taken = list(batches)
        assert [one.indices for one in taken] == share
        assert batches.counts["micro_batches"] == len(share)
        assert batches.counts["structures"] == sum(map(len, share))
        for name in ("atoms", "edges", "bonds", "angles"):
            assert batches.counts[name] == sum(getattr(one.batch, f"num_{name}") for one in taken)
    assert timer.phase_s["data"] > 0


def test_a_step_of_many_micro_batches_holds_three_at_once(prefetcher_of):
    loader = WatchedLoader(12)
    prefetcher = prefetcher_of(loader, [[[number] for number in range(12)]] * 2)

    def use(micro_batch):  # as the trainer: it lets go of one before it asks for the next
        assert micro_batch.batch.num_structures == 1
        time.sleep(0.02)  # the thread runs as far ahead as it may

    for _ in range(2):
        batches = prefetcher.step(PhaseTimer(CPU))
        left = iter(batches)
        for _ in range(len(batches)):
            use(next(left))
    assert len(loader.made) == 24
    assert loader.most == 3


def test_an_error_reaches_the_user_at_the_micro_batch_that_failed(prefetcher_of):
    prefetcher = prefetcher_of(WatchedLoader(4, broken=2), [[[0]], [[1], [2], [3]]])
    assert len(list(prefetcher.step(PhaseTimer(CPU)))) == 1
    batches = iter(prefetcher.step(PhaseTimer(CPU)))
    assert next(batches).indices == [1]
    with pytest.raises(OSError, match="structure 2 cannot be read"):
        next(batches)


def test_it_can_be_closed_in_the_middle_of_a_step(prefetcher_of):
    loader = WatchedLoader(40)
    prefetcher = prefetcher_of(loader, [[[number] for number in range(40)]])
    next(iter(prefetcher.step(PhaseTimer(CPU))))
    prefetcher.close()
    assert len(loader.made) < 40
