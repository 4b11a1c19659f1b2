"""``janus study watch``: what it shows, when it writes the page, how it ends."""

import io
import os
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
from rich.console import Console

from janus.cli.main import main
from janus.cli.study_status import read_status
from janus.cli.study_watch import View, live_view
from scaling_studies.records import FAILED, RECORD_FOLDER, RUNNING, write_record
from scaling_studies.study import Declaration, write_declaration
from tests.record_sets import prediction, record
from tests.study_cases import weak

OPEN = {"step_s": (), "phase_s": {}, "wall_s": None, "rank_times": None}


@pytest.fixture
def study(tmp_path):
    """A weak study of 1 and 2 ranks, two jobs each, of which the point of 1 rank is done."""
    folder = tmp_path / "study"
    write_declaration(folder, Declaration(studies=(weak(name="weak"),)))
    for ranks in (1, 2):
        write_record(folder / RECORD_FOLDER, prediction(0.1, ranks=ranks))
    for attempt in (1, 2):
        write_record(folder / RECORD_FOLDER, record(attempt=attempt))
    return folder


def complete(folder):
    for attempt in (3, 4):
        write_record(folder / RECORD_FOLDER, record(ranks=2, attempt=attempt))


def frame(folder) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(live_view(View(folder=folder, status=read_status(folder, ask=False), seen_at=datetime.now())))
    return console.file.getvalue()


def test_a_frame_names_points_jobs_and_failures(study):
    write_record(study / RECORD_FOLDER, record(ranks=2, attempt=1, state=FAILED, reason="exit code 3", **OPEN))
    write_record(study / RECORD_FOLDER, record(ranks=2, attempt=2, state=RUNNING, **OPEN))
    text = frame(study)
    assert "2 of 4 good attempts" in text
    lines = [line.split() for line in text.splitlines()]
    (first,) = [line for line in lines if line[:1] == ["1"]]
    (second,) = [line for line in lines if line[:1] == ["2"]]
    assert " ".join(first).endswith(" 2 of 2 - -")
    assert " ".join(second).endswith(" 0 of 2 running 1")
    assert "weak, 2: FAILED: exit code 3" in text
    assert "no runner at work" in text


def test_it_ends_by_itself_when_all_is_complete_with_the_page_written(study, tmp_path, capsys):
    complete(study)
    assert main(["study", "watch", str(study), "--page", str(tmp_path / "page.html"), "--title", "Ours"]) == 0
    assert "every point is complete" in capsys.readouterr().out
    assert "<h1>Ours</h1>" in (tmp_path / "page.html").read_text()


def test_a_campaign_that_has_not_written_its_points_is_not_complete(tmp_path):
    write_declaration(tmp_path, Declaration(studies=(weak(name="weak"),)))
    view = View(folder=tmp_path, status=read_status(tmp_path, ask=False), seen_at=datetime.now())
    assert view.status.rows == ()
    assert not view.is_complete


def test_a_folder_without_a_campaign_and_a_hasty_look_are_one_sentence(tmp_path, study, capsys):
    assert main(["study", "watch", str(tmp_path)]) == 2
    assert main(["study", "watch", str(study), "--every", "0.1"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2
    assert "use 1 second or more" in errors[1]


def await_page(process, page, old: bytes = b"") -> bytes:
    """The page once it is another one than before. A watch that has ended, or that takes a minute, is a failure."""
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if page.exists() and (text := page.read_bytes()) != old:
            return text
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[1])


def test_the_page_follows_the_records_and_ctrl_c_leaves_cleanly(study, tmp_path):
    page = tmp_path / "page.html"
    words = [sys.executable, "-m", "janus", "study", "watch", str(study), "--page", str(page), "--every", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = await_page(process, page)
        write_record(study / RECORD_FOLDER, record(ranks=2, attempt=3, step_s=(0.123, 0.123, 0.123)))
        assert b"123" in await_page(process, page, first)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped watching" in out
    assert "Traceback" not in err
