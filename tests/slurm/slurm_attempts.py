"""Attempts for a real Slurm: their folders and scripts, and waiting until their jobs are so far."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slurm_cluster import Cluster

from scaling_studies.executors.base import ENDED, RUNNING, AttemptJob, JobStatus
from scaling_studies.executors.slurm import SlurmExecutor
from scaling_studies.launch_scripts import Job


def new_attempt(executor: SlurmExecutor, study: Path, tag: str, command: str, **changes: Any) -> AttemptJob:
    """An attempt whose ranks run a shell command, its script on disk. changes: fields of Job."""
    folder = study / "attempts" / tag
    folder.mkdir(parents=True)
    shape: dict[str, Any] = {"ranks": 1, "nodes": 1, "ranks_per_node": 1, "threads": 1, "time_limit_s": 600, **changes}
    attempt = AttemptJob(tag=tag, folder=folder, job=Job(name=tag, command=["bash", "-c", command], **shape))
    attempt.script.write_text(executor.render(attempt))
    return attempt


def submit(executor: SlurmExecutor, *attempts: AttemptJob) -> list[str]:
    """Job ids in the order of the attempts, all of which must be taken."""
    taken = executor.submit(attempts)
    return [taken[attempt.tag] for attempt in attempts]


def wait_ended(
    cluster: Cluster, executor: SlurmExecutor, job_ids: Sequence[str], patience_s: float = 30.0
) -> list[JobStatus]:
    """The statuses of jobs, once all have ended."""
    return _wait_state(cluster, executor, job_ids, ENDED, patience_s)


def wait_begun(cluster: Cluster, executor: SlurmExecutor, *attempts: AttemptJob) -> list[str]:
    """Submit attempts and wait until the program of each is at work (it writes a file ``at_work``)."""
    job_ids = submit(executor, *attempts)
    _wait_state(cluster, executor, job_ids, RUNNING, 30.0)
    cluster.wait_for("programs at work", lambda: all((attempt.folder / "at_work").exists() for attempt in attempts))
    return job_ids


def facts(attempt: AttemptJob, event: str) -> dict[str, Any]:
    """begin.json or end.json of an attempt."""
    return json.loads((attempt.folder / f"{event}.json").read_text())


def _wait_state(
    cluster: Cluster, executor: SlurmExecutor, job_ids: Sequence[str], state: str, patience_s: float
) -> list[JobStatus]:
    def all_there() -> bool:
        return all(status.state == state for status in executor.poll(job_ids).values())

    cluster.wait_for(f"jobs {', '.join(job_ids)} to be {state}", all_there, patience_s)
    return [executor.poll(job_ids)[job_id] for job_id in job_ids]
