"""``janus report`` from the command line: the page, its refusals and its exit codes."""

import json
import subprocess
import sys

import pytest

from janus.cli.main import main
from scaling_studies.records import RECORD_FOLDER, write_record
from tests.record_sets import campaign, continuation


@pytest.fixture
def study(tmp_path):
    for entry in [*campaign(), *continuation()]:
        write_record(tmp_path / "study" / RECORD_FOLDER, entry)
    return tmp_path / "study"


def test_a_page_is_written_and_said(study, tmp_path, capsys):
    assert main(["report", str(study), "--out", str(tmp_path / "page.html"), "--title", "Ours & theirs"]) == 0
    assert "page.html" in capsys.readouterr().out
    assert "<h1>Ours &amp; theirs</h1>" in (tmp_path / "page.html").read_text()


def test_json_is_one_document_and_names_refused_files(study, tmp_path, capsys):
    (study / RECORD_FOLDER / "torn.json").write_text("{")
    assert main(["report", str(study), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == ["torn.json"]


def test_an_empty_folder_is_one_sentence_exit_code_2_and_no_page(tmp_path, capsys):
    (tmp_path / "page.html").write_text("old")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "janus study run" in error
    assert (tmp_path / "page.html").read_text() == "old"


def test_a_run_that_cannot_be_read_is_one_sentence_and_exit_code_2(study, tmp_path, capsys):
    assert main(["report", str(study), "--out", str(tmp_path / "page.html"), "--run", str(tmp_path / "none")]) == 2
    assert "left no run.json" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_help_has_examples():
    words = [sys.executable, "-m", "janus", "report", "--help"]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "examples:" in result.stdout
