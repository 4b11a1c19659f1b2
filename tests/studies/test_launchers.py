"""Command lines: of any janus command on ranks, and of one attempt."""

import sys
from pathlib import Path

from scaling_studies.cells import resolve_cells
from scaling_studies.launchers import attempt_job, launch_command
from scaling_studies.study import ExecutorSettings
from tests.study_cases import data, weak


def test_any_command_can_be_started_on_ranks():
    command, environment = launch_command(3, ["train", "--help"])
    assert Path(command[0]).name == "mpiexec"
    assert command[1:] == ["-n", "3", sys.executable, "-m", "janus", "train", "--help"]
    assert environment["OMP_NUM_THREADS"] == "1"
    assert launch_command(1, ["train"])[0] == [sys.executable, "-m", "janus", "train"]


def test_the_job_of_an_attempt_says_every_setting_and_all_resources(tmp_path):
    settings = ExecutorSettings(kind="slurm", ranks_per_node=2, threads=4, queue="long", account="abc", gpus_per_node=2)
    (cell,) = resolve_cells(weak(ranks=(3,), recompute=True, time_out_s=900.0), data(), executor=settings)
    made = attempt_job("tag", tmp_path, cell, tmp_path / "cell.store", trainer=("trainer",))
    words = made.job.command
    assert words[:5] == ["trainer", "--data", str(tmp_path / "cell.store"), "--out", str(tmp_path / "run")]
    assert "--batch.structures=6" in words
    assert "--run.recompute=true" in words
    assert "--run.threads=4" in words
    job = made.job
    assert (job.ranks, job.nodes, job.ranks_per_node, job.threads, job.gpus_per_node) == (3, 2, 2, 4, 2)
    assert (job.queue, job.account, job.time_limit_s) == ("long", "abc", 900.0)
