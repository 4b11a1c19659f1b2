"""Axes on real ranks, over MPI and gloo: one launch per number of ranks, which loops over everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from janus.errors import UserError
from janus.parallel.axis import LoneAxis
from janus.parallel.communication import Communicator, connect
from janus.parallel.rendezvous import SINGLE
from tests.parallel.collective_cases import ROWS
from tests.train_runs import launch

SCRIPT = Path(__file__).parent / "axes_on_ranks.py"
ROW_BYTES = 40  # 5 float64


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest) -> list[dict]:
    """What every rank found, over both transports."""
    done = launch(request.param, str(SCRIPT), timeout_s=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["transport"] == "mpi"
    assert len(found["ranks"]) == request.param
    return found["ranks"]


@pytest.mark.parametrize("transport", ["mpi", "gloo"])
def test_exact_through_the_double_backward(ranks: list[dict], transport: str) -> None:
    errors = {(rank, name): e for rank, found in enumerate(ranks) for name, e in found[transport]["errors"].items()}
    assert len(errors) == len(ranks) * 18
    assert {key: error for key, error in errors.items() if not error <= 1e-14} == {}


@pytest.mark.parametrize("transport", ["mpi", "gloo"])
def test_ledger_counts_what_it_documents(ranks: list[dict], transport: str) -> None:
    """Two channels there and back: each collective and its adjoint twice in each of the four phases."""
    size = len(ranks)
    table = ROWS[size]
    for rank, found in enumerate(ranks):
        counted = {
            name: {(row["phase"], row["collective"]): (row["calls"], row["sent_bytes"]) for row in rows}
            for name, rows in found[transport]["counted"].items()
        }
        sent = sum(table[rank]) - table[rank][rank]
        received = sum(row[rank] for row in table) - table[rank][rank]
        expected = {
            "all-to-all": {"all_to_all": (4, 2 * ROW_BYTES * (sent + received))},
            "all-to-all of nothing": {"all_to_all": (4, 0)},
            "all-gather, reduce-scatter": {
                "all_gather": (2, 2 * (size - 1) * 3 * ROW_BYTES),
                "reduce_scatter": (2, 2 * (size - 1) * 3 * ROW_BYTES),
            },
            "all-reduce": {"all_reduce": (4, 4 * 2 * (size - 1) * 2 * ROW_BYTES // size)},
        }
        assert counted == {
            name: {(phase, c): values for phase in ("FE", "FF", "BF", "BE") for c, values in collectives.items()}
            for name, collectives in expected.items()
        }


def test_all_ranks_have_entered_as_many_collectives(ranks: list[dict]) -> None:
    """Groups of one rank enter none, so only the ranks of the larger uneven group are counted alike."""
    for transport in ("mpi", "gloo"):
        assert len({found[transport]["entered"] for found in ranks[1:]}) == 1


def test_one_process_has_lone_axes() -> None:
    communicator = Communicator(SINGLE, torch.device("cpu"), "none")
    axis = communicator.make_axis("graph", [[0]])
    assert isinstance(axis, LoneAxis)
    assert (axis.ranks, axis.index, axis.size) == ((0,), 0, 1)
    assert axis.ledger is communicator.ledger


@pytest.mark.parametrize("transport", ["auto", "gloo", "mpi"])
def test_one_process_needs_no_transport(transport: str) -> None:
    assert connect(device="cpu", transport=transport).transport == "none"


def test_mistakes_of_the_user_are_told() -> None:
    with pytest.raises(UserError, match="transport 'nccl' does not carry tensors on device 'cpu': use 'gloo' or 'mpi'"):
        connect(device="cpu", transport="nccl")


def test_srun_without_mpi_is_told() -> None:
    """Two ranks of a step by srun's variables, each of which MPI would see alone."""
    code = (
        "import os\n"
        "from janus.errors import UserError\n"
        "from janus.parallel.rendezvous import find_place\n"
        "step = {'SLURM_PROCID': '0', 'SLURM_STEP_NUM_TASKS': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '0'}\n"
        "try:\n"
        "    find_place(step, with_mpi=True)\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    assert launch(1, "-c", code).stdout.startswith("srun started 2 ranks but MPI sees 1: name the interface")
