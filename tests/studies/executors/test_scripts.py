"""Scripts of attempts, really run: what they write down, and what a signal does at every point of their life."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from janus.errors import UserError
from scaling_studies.executors.scripts import DIRECTIVE, attempt_script
from scaling_studies.launch_scripts import SCHEDULERS


def start(attempt, **options):
    attempt.script.write_text(attempt_script("local", attempt, **options))
    with attempt.log.open("ab") as log:
        return subprocess.Popen(["bash", str(attempt.script)], stdout=log, stderr=log, start_new_session=True)


def facts(attempt, event):
    return json.loads((attempt.folder / f"{event}.json").read_text())


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("what the test waits for did not happen")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_script_is_bash_and_asks_for_its_own_name_log_and_limit(scheduler, make_attempt, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    attempt = make_attempt(time_limit_s=30.0)
    text = attempt_script(scheduler, attempt, setup=("module load x",), directives=("--site-option=1",))
    attempt.script.write_text(text)
    assert subprocess.run(["bash", "-n", str(attempt.script)], check=False).returncode == 0
    assert "\nmodule load x\n" in text
    if scheduler == "local":
        assert "site-option" not in text
        return
    prefix = DIRECTIVE[scheduler]
    directives = [line for line in text.splitlines() if line.startswith(prefix)]
    assert f"{prefix} --site-option=1" in directives
    assert any(attempt.tag in line for line in directives)
    assert any("01" in line or "1m" in line for line in directives), "a limit of one minute, not of ten"
    words = attempt.folder / ("log.txt" if scheduler == "slurm" else "scheduler.txt")
    assert any(line.endswith(str(words)) for line in directives)
    assert text.index(directives[-1]) < text.index("set -e"), "directives after a command are not read"


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code_and_both_facts_are_written(code, make_attempt):
    attempt = make_attempt(ranks=1, command=("bash", "-c", f"echo said; pwd; exit {code}"))
    assert start(attempt, setup=("export SITE=1",)).wait() == code
    assert facts(attempt, "end")["exit_code"] == code
    assert (attempt.folder / "begin.json").exists()
    assert attempt.log.read_text() == f"said\n{attempt.folder}\n"


def test_a_setup_that_fails_ends_the_attempt_before_the_program(make_attempt):
    attempt = make_attempt(ranks=1, command=("touch", "started"))
    assert start(attempt, setup=("false",)).wait() == 1
    assert not (attempt.folder / "started").exists()


def test_setup_may_use_variables_that_are_not_set(make_attempt):
    attempt = make_attempt(ranks=1, command=("true",))
    assert start(attempt, setup=('module() { echo "$NOT_SET"; }', "module load x")).wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM])
def test_a_signal_reaches_the_program_and_the_end_is_written(number, make_attempt):
    program = "trap 'touch asked; exit 0' TERM; touch started; while :; do sleep 0.02; done"
    attempt = make_attempt(ranks=1, command=("bash", "-c", program))
    process = start(attempt)
    wait_for((attempt.folder / "started").exists)
    process.send_signal(number)
    assert process.wait() == 143
    assert (attempt.folder / "asked").exists()
    assert facts(attempt, "end")["exit_code"] == 143


def test_a_signal_before_the_program_starts_nothing(make_attempt):
    attempt = make_attempt(ranks=1, command=("touch", "started"))
    process = start(attempt, setup=("touch ready", "sleep 0.5"))
    wait_for((attempt.folder / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert not (attempt.folder / "started").exists()


@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_ranks_are_started_by_the_launcher_of_this_python(launcher, make_attempt):
    attempt = make_attempt(command=("true",), launcher=launcher)
    text = attempt_script("local", attempt)
    start_line = next(line for line in text.splitlines() if line.endswith(" true &"))
    assert start_line.split()[0] == launcher
    assert "2" in start_line
    path = next(line for line in text.splitlines() if line.startswith("export PATH="))
    found = subprocess.run(["bash", "-c", f"{path}\ncommand -v {launcher}"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == shutil.which(launcher, path=str(sys.executable).rpartition("/")[0])


def test_names_and_folders_that_a_scheduler_cannot_take_are_refused(make_attempt, tmp_path):
    with pytest.raises(UserError, match="cannot name a job"):
        attempt_script("local", make_attempt(tag="-" + "x" * 20))
    with pytest.raises(UserError, match="cannot name a job"):
        attempt_script("local", make_attempt(tag="x" * 220))
    with_space = make_attempt(tag="a b".replace(" ", "_"))
    object.__setattr__(with_space, "folder", tmp_path / "a b")
    with pytest.raises(UserError, match="choose a study folder"):
        attempt_script("slurm", with_space)
    assert "cd '" in attempt_script("local", with_space)
