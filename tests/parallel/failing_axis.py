"""Run under mpiexec by test_axis_failure.py: the last rank misbehaves between collectives over axes.

Arguments: transport, way ("exception", "absent", "killed"), folder of the guardians.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from janus.parallel import collectives
from janus.parallel.communication import connect
from janus.parallel.guardian import Guardian
from janus.parallel.job import run_on_ranks


def misbehave(way: str) -> None:
    if way == "exception":
        raise ValueError("something odd on purpose")
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def main() -> None:
    transport, way, folder = sys.argv[1:]
    communicator = connect(device="cpu", transport=transport)
    last = communicator.world_size - 1

    def work(watchdog) -> int:
        watchdog.before_exit = Guardian(Path(folder), communicator.rank).dismiss
        world = communicator.make_axis("expert", [list(range(last + 1))])
        pair = communicator.make_axis("graph", [list(range(last - 1)), [last - 1, last]])
        collectives.all_reduce(torch.ones(3), world)
        if communicator.rank == last:
            misbehave(way)
        # the last but one waits for the last; the others go on and wait for both
        for axis in (pair, world):
            collectives.finish(collectives.start_all_reduce(torch.ones(3), axis))
        return 0

    run_on_ranks("train", communicator, work, hang_timeout_s=3.0)
    raise AssertionError("the watchdog must have ended this process")


main()
