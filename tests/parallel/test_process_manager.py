"""Ranks under Hydra: how they find each other without MPI, and that they may end one after another."""

import socket
import threading

import pytest

from janus.parallel.process_manager import ProcessManager
from tests.train_runs import launch

STAGGERED = """
import os, sys, time
from janus.parallel.communication import connect
ranks = connect(device="cpu", transport="gloo", timeout_s=60)
ranks.barrier()
time.sleep(0.3 * ranks.rank)
print(ranks.rank, ranks.world_size, ranks.local_rank, ranks.local_size, "mpi4py" in sys.modules, flush=True)
os._exit(5 if ranks.rank == 0 else 0)
"""
LEAVING = """
import sys
from janus.parallel.communication import connect
ranks = connect(device="cpu", transport=sys.argv[1], timeout_s=60)
ranks.leave(3)
"""


def test_the_end_of_one_rank_kills_no_other():
    done = launch(3, "-c", STAGGERED)
    assert done.returncode == 5
    assert sorted(done.stdout.splitlines()) == [f"{rank} 3 {rank} 3 False" for rank in range(3)]


@pytest.mark.parametrize("transport", ["gloo", "mpi"])
def test_all_leave_with_the_code_they_choose(transport):
    done = launch(3, "-c", LEAVING, transport)
    assert (done.returncode, done.stderr) == (3, "")


def managed(answers):
    """A manager whose other end gives these answers, one a question; the questions it was asked."""
    ours, theirs = socket.socketpair()
    asked = []

    def serve():
        with theirs, theirs.makefile("r") as lines:
            for answer in answers:
                asked.append(lines.readline().strip())
                theirs.sendall(f"cmd={answer}\n".encode())

    threading.Thread(target=serve, daemon=True).start()
    return lambda: ProcessManager({"PMI_FD": str(ours.detach())}), asked


def test_the_address_of_rank_0_reaches_the_others():
    made, asked = managed([
        "response_to_init pmi_version=1 pmi_subversion=1 rc=0", "my_kvsname kvsname=kvs_1", "barrier_out",
        "get_result rc=0 msg=success value=host:123", "finalize_ack",
    ])  # fmt: skip
    manager = made()
    assert manager.broadcast("", is_source=False) == "host:123"
    manager.leave()
    assert asked == [
        "cmd=init pmi_version=1 pmi_subversion=1", "cmd=get_my_kvsname", "cmd=barrier_in",
        "cmd=get kvsname=kvs_1 key=janus", "cmd=finalize",
    ]  # fmt: skip


@pytest.mark.parametrize("answer", ["response_to_init pmi_version=2 rc=1", "something"])
def test_a_manager_that_speaks_otherwise_is_refused(answer):
    made, _ = managed([answer])
    with pytest.raises(RuntimeError, match="the process manager answered"):
        made()
