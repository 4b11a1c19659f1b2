"""The quickstart's own part: its folder and its options. The parts it runs have tests of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus.cli import quickstart
from janus.cli.main import main


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert "not from a quickstart" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_its_own_folder_is_emptied(tmp_path: Path) -> None:
    out = tmp_path / "first"
    assert quickstart._fresh_folder(out) == out
    (out / "old").write_text("x")
    quickstart._fresh_folder(out)
    assert [path.name for path in out.iterdir()] == [quickstart.MARKER]


@pytest.mark.parametrize("option", ["--count", "--steps", "--ranks"])
def test_numbers_out_of_range_are_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--out", str(tmp_path / "q"), option, "-1"]) == 2
    assert f"{option} is -1" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()
