"""What the tests of executors share: stand-ins for scheduler programs, and attempts with their scripts on disk."""

import pytest
from stand_in import StandIn

from scaling_studies.executors.base import AttemptJob
from scaling_studies.launch_scripts import Job


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """name -> its stand-in, first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return lambda name: StandIn(name, folder).answers()


@pytest.fixture
def make_attempt(tmp_path):
    """tag, command, changes of the job -> an attempt whose folder exists."""

    def make(tag="weak-ranks00002-abc-attempt01", command=("janus", "train"), **changes):
        values = {"ranks": 2, "nodes": 1, "ranks_per_node": 2, "threads": 1, "time_limit_s": 90.0, **changes}
        attempt = AttemptJob(tag=tag, folder=tmp_path / tag, job=Job(name="any", command=command, **values))
        attempt.folder.mkdir()
        return attempt

    return make
