"""``janus report`` from the command line: the files, its refusals and its exit codes."""

import json
import subprocess
import sys

import pytest

from janus.cli import report
from janus.cli.main import main
from reports import files
from scaling_studies.records import RECORD_FOLDER, write_record
from tests.record_sets import prediction, record


def written(folder, records):
    for entry in records:
        write_record(folder / RECORD_FOLDER, entry)
    return folder


@pytest.fixture
def study(tmp_path):
    return written(tmp_path / "study", [record(), prediction(0.1)])


def test_every_file_is_written_and_said(study, tmp_path, capsys):
    assert main(["report", str(study), "--out", str(tmp_path / "out" / "ours.html"), "--title", "Ours & theirs"]) == 0
    said = capsys.readouterr().out
    for name in ("ours.html", "ours.pdf", "ours.md", "ours.tex", "ours-data"):
        assert str(tmp_path / "out" / name) in said
        assert (tmp_path / "out" / name).exists()
    assert "<h1>Ours &amp; theirs</h1>" in (tmp_path / "out" / "ours.html").read_text()
    assert (tmp_path / "out" / "ours.pdf").read_bytes().startswith(b"%PDF-")


def test_only_what_is_asked_for_is_written(study, tmp_path):
    assert main(["report", str(study), "--out", str(tmp_path / "o" / "r.html"), "--only", "md", "--only", "tex"]) == 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["r.md", "r.tex"]


def test_json_is_one_document_and_names_refused_files(study, tmp_path, capsys):
    (study / RECORD_FOLDER / "torn.json").write_text("{")
    assert main(["report", str(study), "--out", str(tmp_path / "r.html"), "--only", "html", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["refused"] == ["torn.json"]
    assert told["files"] == [str(tmp_path / "r.html")]
    assert "torn.json" in (tmp_path / "r.html").read_text()


def test_an_earlier_study_is_held_against_this_one(tmp_path):
    old = written(tmp_path / "old", [record(), prediction(0.1)])
    new = written(tmp_path / "new", [record(step_s=(0.2, 0.2, 0.2)), prediction(0.1)])
    out = tmp_path / "r.html"
    assert main(["report", str(new), "--out", str(out), "--only", "html", "--against", str(old)]) == 0
    assert 'id="regression"' in out.read_text()


def test_an_empty_folder_is_one_sentence_exit_code_2_and_no_page(study, tmp_path, capsys):
    (tmp_path / "page.html").write_text("old")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    assert main(["report", str(study), "--out", str(tmp_path / "page.html"), "--against", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2
    assert all("janus study run" in error for error in errors)
    assert (tmp_path / "page.html").read_text() == "old"


def test_a_run_that_cannot_be_read_is_one_sentence_and_exit_code_2(study, tmp_path, capsys):
    assert main(["report", str(study), "--out", str(tmp_path / "page.html"), "--run", str(tmp_path / "none")]) == 2
    assert "left no run.json" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_the_choices_are_the_formats_there_are():
    assert tuple(report.FORMATS) == tuple(files.FORMATS)


def test_help_has_examples():
    words = [sys.executable, "-m", "janus", "report", "--help"]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "examples:" in result.stdout
