"""``janus model`` as a user types it."""

from __future__ import annotations

import json

import pytest

from janus.cli.main import main


def test_list_as_json_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "list", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["matris-10m"]["total_parameters"] == 10_443_505
    assert {"matris-moe-s", "matris-moe-m", "matris-moe-l", "matris-tiny", "matris-moe-tiny"} <= set(entries)
    for entry in entries.values():
        assert sum(entry["parts"].values()) == entry["total_parameters"]
        assert entry["active_parameters"] <= entry["total_parameters"]


def test_show_prints_parts_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "show", "matris-moe-l"]) == 0
    text = capsys.readouterr().out
    assert "6 x message update routed experts" in text
    assert "num_experts = 72" in text


def test_unknown_preset_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "show", "matris-10"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean 'matris-10m'" in error
