"""Run under mpiexec by test_failure.py: one rank misbehaves in the way named by the first argument."""

import sys
import time

import torch

from janus.parallel.communication import connect
from janus.parallel.job import run_on_ranks


def misbehave(way: str, rank: int) -> None:
    if rank == 1:
        if way == "exception":
            raise ValueError("something odd on purpose")
        if way == "absent":
            time.sleep(60)


def main() -> None:
    communicator = connect(device="cpu")

    def work(watchdog) -> int:
        communicator.barrier()
        misbehave(sys.argv[1], communicator.rank)
        communicator.all_reduce_sum(torch.zeros(10))
        return 0

    run_on_ranks("train", communicator, work, hang_timeout_s=3.0)
    raise AssertionError("the watchdog must have ended this process")


main()
