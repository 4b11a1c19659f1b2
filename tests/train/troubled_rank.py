"""Runs ``janus`` on a rank in trouble of the kind named by the first word; the other words are janus's own.

memory=BYTES: so much address space beyond what the imports took. error: SIGUSR1 raises an exception, wherever the rank
is. disk=RANK: no file of that rank may be larger than 2 kB. deaf=COLLECTIVE/PHASE: what that collective brings in that
phase of a step arrives as zeros, on every axis: the silent kind of error.
"""

import os
import re
import resource
import signal
import sys
from pathlib import Path

from torch import Tensor

import janus.parallel.mpi_axis
import janus.parallel.torch_axis
import janus.train.session  # and with it torch: the cap on memory is for the run, not for libraries
from janus.cli.main import main
from janus.parallel.axis import Pending
from janus.parallel.ledger import current_phase


def cap_memory(num_bytes: int) -> None:
    now = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    cap = int(now[1]) * 1024 + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))


def cap_files(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def fail(number: int, frame: object) -> None:
    raise ValueError("something odd on purpose")


def deafen(axis_type: type, collective: str, phase: str) -> type:
    """The transport with one collective whose result is lost in one phase; its first argument is the output."""

    class Deaf(axis_type):
        def _count(self, collective: str, sent_bytes: int, named_phase: str) -> None:
            self.phase = named_phase or current_phase()
            super()._count(collective, sent_bytes, named_phase)

    def run(self: Deaf, output: Tensor, *arguments: object) -> Pending:
        pending = getattr(axis_type, f"_{collective}")(self, output, *arguments)
        if self.phase != phase:
            return pending

        def lose() -> None:
            pending.wait()
            output.zero_()

        return Pending(lose)

    setattr(Deaf, f"_{collective}", run)
    return Deaf


def get_into_trouble(kind: str, value: str) -> None:
    if kind == "memory":
        cap_memory(int(value))
    if kind == "error":
        signal.signal(signal.SIGUSR1, fail)
    if kind == "disk" and os.environ["PMI_RANK"] == value:
        cap_files(2000)
    if kind == "deaf":
        for module, name in ((janus.parallel.mpi_axis, "MpiAxis"), (janus.parallel.torch_axis, "TorchAxis")):
            setattr(module, name, deafen(getattr(module, name), *value.split("/")))


get_into_trouble(*sys.argv[1].partition("=")[::2])
sys.exit(main(sys.argv[2:]))
