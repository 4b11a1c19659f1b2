"""``janus machines`` as a user types it: list, show, check, draw; and what a machine without rates is told."""

import json
import re
from pathlib import Path

import pytest

from janus.cli.main import main
from perfmodel.machine import CATALOGUE, catalogue_names
from tests.host_machine import write_host

DOCS = Path(__file__).parents[2] / "docs" / "machines.md"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def test_list_has_every_machine_with_its_assumed_numbers(capsys):
    assert main(["machines", "list"]) == 0
    shown = capsys.readouterr().out
    assert main(["machines", "list", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(entries) == catalogue_names()
    for name in entries:
        assert name in shown
    frontier = entries["frontier"]
    assert (frontier["nodes"], frontier["devices_per_node"], frontier["fabric"]) == (9856, 8, "dragonfly")
    assert frontier["injection_bytes_per_s_per_node"] == 100e9
    assert frontier["peak_dtype"] == "float32"
    assert re.search(r"frontier\s+9,856 x 8\s+dragonfly\s+23.95 TFLOP/s float32\s+100 GB/s", shown)
    assert entries["cresco8"]["peak_flops_per_s"] is None
    assert all(0 < entry["num_assumed"] < entry["num_numbers"] for entry in entries.values())


def test_show_lists_assumed_numbers_apart(capsys):
    assert main(["machines", "show", "jupiter"]) == 0
    shown = capsys.readouterr().out
    published, assumed = shown.split("ASSUMED")
    assert "network.nic_bytes_per_s" in published
    assert "25 GB/s" in published
    assert "fabric.links_per_group_pair" in assumed
    assert "compute rates: n/a" in shown
    assert re.search(r"bisection bandwidth: [\d.]+ TB/s per direction", shown)


def test_show_as_json_has_every_number_with_unit_source_and_date(capsys):
    assert main(["machines", "show", "lineshine", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    numbers = {number["name"]: number for number in document["quantities"]}
    assert document["num_numbers"] == len(numbers)
    assert sum(number["assumed"] for number in numbers.values()) == document["num_assumed"]
    assert numbers["network.nic_bytes_per_s"]["unit"] == "B/s"
    assert numbers["fabric.children"]["value"] == [32, 32, 64]
    assert all(number["source"] and number["date"] for number in numbers.values())
    assert document["derived"]["devices"] == 327_680
    # full bisection: half of all NICs send over the cut
    assert document["derived"]["bisection_bytes_per_s"] == pytest.approx(20_480 / 2 * 200e9)
    assert document["has_compute_rates"]


def test_a_calibrated_host_is_shown_and_checked(tmp_path, capsys):
    host = write_host(tmp_path / "host.toml")
    assert main(["machines", "show", str(host)]) == 0
    shown = capsys.readouterr().out
    assert "bisection bandwidth: n/a" in shown
    assert "hostname:" in shown
    assert main(["machines", "check", str(host)]) == 0
    assert "sound" in capsys.readouterr().out


def test_check_names_everything_wrong_and_what_looks_odd(tmp_path, capsys):
    text = (CATALOGUE / "frontier.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("nics_per_node = {value = 4,", "nics_per_nod = {value = 4,").replace(
        "nodes = {value = 9856,", "nodes = {value = -1,"))  # fmt: skip
    assert main(["machines", "check", str(path)]) == 2
    shown = capsys.readouterr().out
    assert "wrong: nodes has the value -1" in shown
    assert "did you mean 'nics_per_node'" in shown
    assert "2 wrong or missing" in shown
    path.write_text(text.replace("nic_bytes_per_s = {value = 25e9", "nic_bytes_per_s = {value = 200e9"))
    assert main(["machines", "check", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    assert "bits?" in document["warnings"][0]


def test_check_finds_a_fabric_that_does_not_hold_the_nodes_or_has_a_strange_key(tmp_path, capsys):
    text = (CATALOGUE / "frontier.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("groups = {value = 77,", "groups = {value = 70,"))
    assert main(["machines", "check", str(path)]) == 2
    assert "on 70 groups with room for" in capsys.readouterr().out
    path.write_text(text.replace("groups = {value = 77,", "group = {value = 77,"))
    assert main(["machines", "check", str(path)]) == 2
    assert "did you mean 'groups'" in capsys.readouterr().out


def test_the_file_of_the_documentation_is_sound(tmp_path, capsys):
    blocks = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    minimal = next(block for block in blocks if block.startswith("schema"))
    path = tmp_path / "cluster.toml"
    path.write_text(minimal)
    assert main(["machines", "check", str(path)]) == 0
    assert "0 warnings" in capsys.readouterr().out
    assert main(["machines", "show", str(path)]) == 0
    assert main(["machines", "draw", str(path), "--nodes", "8", "--out", str(tmp_path / "cluster.svg")]) == 0
    assert (tmp_path / "cluster.svg").read_text().startswith("<?xml")


def test_the_documentation_explains_every_name_of_a_file():
    from dataclasses import fields

    from perfmodel.machine import DEVICE_KEYS, FILE_KEYS, PEAK_DTYPES, Network
    from perfmodel.network.fabric import FAMILY_CLASSES, allowed_keys

    text = DOCS.read_text()
    names = {*FILE_KEYS, *DEVICE_KEYS, *PEAK_DTYPES, *FAMILY_CLASSES}
    names |= {entry.name for entry in fields(Network)}
    names |= {key for family in FAMILY_CLASSES for key in allowed_keys(family)}
    assert sorted(name for name in names if f"`{name}`" not in text) == []


def test_draw_says_what_is_in_the_picture(tmp_path, capsys):
    out = tmp_path / "fabric.svg"
    words = ["machines", "draw", "frontier", "--nodes", "8", "--out", str(out), "--set", "groups=2",
             "--set", "switches_per_group=4", "--set", "ports_per_switch=4", "--set", "routing=minimal"]  # fmt: skip
    assert main(words) == 0
    # 8 x 4 NICs, 2 x 6 lines inside groups, 4 cables between the groups, each on its own pair of switches
    assert capsys.readouterr().out == f"frontier, 8 nodes, 8 switches, 48 lines: {out}\n"
    assert out.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show", "frontir"], "did you mean 'frontier'"),
        (["show", "none.toml"], "no file none.toml"),
        (["check", "none.toml"], "no file none.toml"),
        (["draw", "frontier", "--out", "picture.gif"], "a picture's name ends in .svg"),
        (["draw", "frontier", "--nodes", "0", "--out", "p.svg"], "--nodes is 0"),
        (["draw", "frontier", "--set", "groups", "--out", "p.svg"], "cannot read 'groups'"),
        (["draw", "frontier", "--set", "groups=a", "--out", "p.svg"], "fabric.groups is 'a': it must be a number"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["machines", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_plan_on_a_machine_without_rates_says_what_to_add(tmp_path, capsys):
    store = tmp_path / "few.store"
    assert main(["data", "make", "--out", str(store), "--count", "4", "--max-atoms", "8"]) == 0
    capsys.readouterr()
    words = ["plan", "--data", str(store), "--model", "matris-tiny", "--world-size", "2", "--machine", "frontier",
             "--out", str(tmp_path / "plan.json"), "--batches", "1"]  # fmt: skip
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "'frontier' is known from publications only and its compute rates are n/a" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "plan.json").exists()
