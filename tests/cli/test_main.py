"""The command itself: which ``janus`` answers, help with examples, one sentence for a mistake, no torch to start."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import janus
from janus.cli.main import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "janus", *words], capture_output=True, text=True, check=False)


def test_import_janus_is_this_one() -> None:
    assert Path(janus.__file__).resolve() == REPOSITORY / "janus" / "__init__.py"


def test_version_prints_the_distribution_and_its_path() -> None:
    done = _run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"janus-umlip {janus.__version__} (")
    assert str(REPOSITORY / "janus") in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "examples:" in text
    assert f"janus {command}" in text.split("examples:")[1]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().out
    assert [command for command in COMMANDS if f"\n    {command}" not in text] == []


def test_an_unknown_command_is_a_mistake() -> None:
    done = _run("trian")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "'trian'" in done.stderr


@pytest.mark.parametrize(
    "words", [[], ["plan", "--help"], ["study", "--help"], ["report", "--help"], ["train", "--help"]]
)
def test_starting_imports_no_torch(words: list[str]) -> None:
    script = (
        "import sys\nfrom janus.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sigterm_cleans_up_like_an_interrupt(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "janus", "data", "make", "--out", str(tmp_path / "many.xyz"), "--count", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(path.stat().st_size for path in tmp_path.iterdir()):
        time.sleep(0.02)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.splitlines()[-1] == "janus data: terminated"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cutoffs", [("1e5", "3.5"), ("nan", "3.5"), ("3", "4"), ("-1", "-2")])
def test_impossible_cutoffs_are_refused_before_work(
    cutoffs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cutoff", cutoffs[0], "--line-cutoff", cutoffs[1]]
    assert main(["data", "make", "--out", str(tmp_path / "a.store"), "--count", "2", *words]) == 2
    assert "need 0 < line cutoff <= cutoff <= 30" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_calibrate_refuses_an_unwritable_place_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["calibrate", "--out", str(tmp_path / "file" / "m.toml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "choose another place" in error
