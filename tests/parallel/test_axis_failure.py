"""A rank that fails, hangs or is killed between collectives over axes: it is named, and all ranks stop."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.train_runs import launch

SCRIPT = Path(__file__).parent / "failing_axis.py"
LIMIT_S = 30.0  # in which all ranks must have stopped


@pytest.mark.parametrize(
    ("transport", "way", "expected"),
    [
        ("mpi", "exception", "janus train: rank 3 on {host}: ValueError: something odd on purpose; all ranks stop"),
        # rank 2 waits for rank 3 in their own group, behind the others but not to blame
        ("mpi", "absent", "janus train: rank 3 on {host} did not come to a collective"),
        ("gloo", "absent", "janus train: rank 3 on {host} did not come to a collective"),
        ("mpi", "killed", "janus: rank 3 (process "),
    ],
)
def test_the_rank_is_named(transport: str, way: str, expected: str, tmp_path: Path) -> None:
    start = time.monotonic()
    done = launch(4, str(SCRIPT), transport, way, str(tmp_path), timeout_s=LIMIT_S + 15)
    assert time.monotonic() - start < LIMIT_S + 10  # start-up included
    assert done.returncode != 0
    assert expected.format(host=os.uname().nodename) in done.stderr
    assert done.stderr.count("all ranks stop") == 1
