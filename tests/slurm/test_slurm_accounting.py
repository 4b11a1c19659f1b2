"""The Slurm executor where the site keeps accounting: jobs that the controller has forgotten are still known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm_accounting import ACCOUNTING_PROGRAMS, AccountingCluster
from slurm_attempts import new_attempt, wait_ended
from slurm_cluster import slurm, why_not

from scaling_studies.executors.base import UNKNOWN
from scaling_studies.executors.slurm import SlurmExecutor
from scaling_studies.records import DONE, FAILED

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def accounting() -> Iterator[AccountingCluster]:
    if reason := why_not(ACCOUNTING_PROGRAMS):
        pytest.skip(reason)
    cluster = AccountingCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_forgotten_jobs_are_known_by_accounting_alone(accounting, tmp_path):
    executor = SlurmExecutor(arrays=True)
    attempts = [new_attempt(executor, tmp_path, f"member-{n}", f"exit {n}") for n in range(2)]
    attempts.append(new_attempt(executor, tmp_path, "long", "touch at_work; sleep 300", ranks=2, nodes=2))
    taken = executor.submit(attempts)
    accounting.wait_for("work", (attempts[2].folder / "at_work").exists)
    slurm("scancel", taken["long"])
    ids = [taken[tag] for tag in ("member-0", "member-1", "long")]
    wait_ended(accounting, executor, ids)
    accounting.wait_for("Slurm to forget", lambda: not slurm("squeue", "-h", "-t", "all").stdout, patience_s=120)
    statuses = [executor.poll([*ids, "987654"])[job_id] for job_id in [*ids, "987654"]]
    assert [(status.outcome, status.reason, status.nodes) for status in statuses[:3]] == [
        (DONE, "", "n1"), (FAILED, "exit code 1", "n2"), (FAILED, "cancelled by user 0", "n[3-4]"),
    ]  # fmt: skip
    assert statuses[3].state == UNKNOWN
    assert executor.find([*taken, "no-such-attempt"]) == taken
    accounting.stop_daemon("slurmdbd")
    assert {status.state for status in executor.poll(ids).values()} == {UNKNOWN}
    accounting.start_data_base_daemon()
