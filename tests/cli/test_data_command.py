"""`janus data` as a user types it: exit codes, one sentence per mistake, one JSON document on stdout."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from janus.cli.main import main
from janus.data.store import StructureStore
from tests.data.sample_files import BAD_FRAMES, frame, good_frames


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


@pytest.fixture
def good_file(tmp_path):
    path = tmp_path / "good.xyz"
    path.write_text("".join(good_frames(5)))
    return path


def test_make_pack_check_stats_in_a_row(tmp_path, capsys):
    path = tmp_path / "alloys.xyz"
    assert run("make", "--out", path, "--count", 12, "--seed", 7, "--max-atoms", 16) == 0
    assert run("pack", path, "--cutoff", 5, "--line-cutoff", 3.5) == 0
    assert run("check", path, tmp_path / "alloys.store") == 0
    assert run("stats", tmp_path / "alloys.store", "--ranks", 2, "--per-rank", 3) == 0
    shown = capsys.readouterr().out
    assert "12 structures, seed 7" in shown
    assert "checked 12 structures in 1 files, and 1 stores: no problem" in shown
    assert "load balance over 2 ranks, 3 structures each" in shown
    store = StructureStore.open(tmp_path / "alloys.store")
    assert (len(store), store.cutoff_angstrom, store.line_cutoff_angstrom) == (12, 5.0, 3.5)


def test_make_writes_a_store_at_once_and_the_same_twice(tmp_path, capsys):
    for name in ("a.store", "b.store"):
        assert run("make", "--out", tmp_path / name, "--count", 6, "--max-atoms", 8, "--json") == 0
        assert json.loads(capsys.readouterr().out)["num_structures"] == 6
    one, other = (StructureStore.open(tmp_path / name).fingerprint for name in ("a.store", "b.store"))
    assert one == other


@pytest.mark.parametrize("command", ["pack", "stats", "check"])
def test_json_is_one_document_on_stdout(good_file, capsys, command):
    assert run(command, good_file, "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == f"janus.data-{command}/1"
    assert document.get("num_structures", document.get("num_entries")) == 5
    assert captured.err == ""


def test_stats_of_a_file_leaves_nothing_behind(good_file, capsys):
    assert run("stats", good_file, "--cutoff", 5, "--line-cutoff", 3, "--json") == 0
    assert json.loads(capsys.readouterr().out)["cutoff_angstrom"] == 5.0
    assert [child.name for child in good_file.parent.iterdir()] == ["good.xyz"]


def spoiled_store(folder: Path) -> Path:
    (folder / "a.xyz").write_text("".join(good_frames(2)))
    run("pack", folder / "a.xyz")
    (folder / "a.store" / "energy.npy").write_bytes(b"short")
    return folder / "a.store"


def spoiled_file(folder: Path) -> Path:
    path = folder / "bad.xyz"
    path.write_text(good_frames(1)[0] + frame(info="energy=nan") + good_frames(2)[1] + frame(info="energy=-inf"))
    return path


MISTAKES = {
    "missing file": (lambda folder: ["pack", folder / "none.xyz"], "none.xyz: no such file (rule missing-file)"),
    "bad structure": (lambda folder: ["pack", spoiled_file(folder)], "index 1 (0-based): energy is nan (rule"),
    "stats of a bad file": (lambda folder: ["stats", spoiled_file(folder)], "index 1 (0-based)"),
    "damaged store": (lambda folder: ["stats", spoiled_store(folder)], "is damaged, energy.npy has 5 bytes instead of"),
    "unknown ending": (lambda folder: ["make", "--out", folder / "a.csv"], "use .xyz, .extxyz or .store"),
    "no structures": (lambda folder: ["make", "--out", folder / "a.xyz", "--count", 0], "the count is 0"),
    "several files, no name": (lambda folder: ["pack", "a.xyz", "b.xyz"], "--out NAME.store"),
    "store name": (lambda folder: ["pack", spoiled_file(folder), "--out", folder / "a"], "must end in .store"),
    "negative limit": (lambda folder: ["pack", spoiled_file(folder), "--max-force", -1], "must be 0 or more"),
    "cutoffs": (lambda folder: ["pack", spoiled_file(folder), "--cutoff", 3], "need 0 < line cutoff <= cutoff"),
    "not a folder": (lambda folder: ["pack", spoiled_file(folder), "--out", "/dev/null/a.store"], "cannot write"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, capsys, name):
    words, sentence = MISTAKES[name]
    assert run(*words(tmp_path)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("janus data: ")
    assert error.count("\n") == 1


def test_a_failed_pack_keeps_the_store_that_was_there(good_file, tmp_path, capsys):
    target = tmp_path / "kept.store"
    assert run("pack", good_file, "--out", target) == 0
    before = StructureStore.open(target).fingerprint
    assert run("pack", good_file, "--out", target) == 2
    assert "kept.store exists" in capsys.readouterr().err
    assert run("pack", spoiled_file(tmp_path), "--out", target, "--force") == 2
    assert StructureStore.open(target).fingerprint == before
    assert StructureStore.open(target).verify() == []


def test_skip_bad_prints_and_writes_what_it_left_out(tmp_path, capsys):
    path = spoiled_file(tmp_path)
    assert run("pack", path, "--skip-bad") == 0
    shown = capsys.readouterr().out
    assert "left out 2 of 4 structures" in shown
    assert "not-finite: 2" in shown
    assert f"{path}, index 3 (0-based): energy is -inf (rule not-finite)" in shown
    account = json.loads((tmp_path / "bad.store" / "skipped.json").read_text())
    assert account["indices_of_rule"] == {"not-finite": {str(path): [1, 3]}}
    assert run("pack", path, "--skip-bad", "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"]["num_skipped"] == 2


def test_check_lists_every_problem_of_every_path(tmp_path, capsys):
    path = tmp_path / "all.xyz"
    path.write_text("".join(text for text, _, _ in BAD_FRAMES.values()))
    words = [path, tmp_path / "none.xyz", spoiled_store(tmp_path), "--json"]
    capsys.readouterr()
    assert run("check", *words) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["clean"] is False
    found = {problem["index"]: problem["rule"] for problem in document["problems"] if problem["source"] == str(path)}
    assert found == dict(enumerate(rule for _, rule, _ in BAD_FRAMES.values()))
    assert document["count_of_rule"]["missing-file"] == 1
    assert len(document["damaged_stores"]) == 1
    assert run("check", *words[:-1]) == 2
    assert f"{len(BAD_FRAMES) + 2} with a problem" in capsys.readouterr().out


def test_warnings_do_not_fail_a_check(tmp_path, capsys):
    path = tmp_path / "twice.xyz"
    path.write_text(frame() * 2)
    assert run("check", path) == 0
    assert "warning: " in capsys.readouterr().out


def test_check_finds_a_changed_byte_in_a_store(good_file, capsys):
    run("pack", good_file)
    changed = good_file.with_suffix(".store") / "positions.npy"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert run("check", changed.parent) == 2
    assert "positions.npy does not match its hash" in capsys.readouterr().out


def test_help_has_examples_and_no_command_prints_it(capsys):
    assert run() == 2
    assert "janus data make" in capsys.readouterr().out
    for command in ("make", "pack", "check", "stats"):
        with pytest.raises(SystemExit) as caught:
            run(command, "--help")
        assert caught.value.code == 0
        assert f"  janus data {command} " in capsys.readouterr().out


def test_an_interrupted_pack_says_so_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("".join(good_frames(30_000)))
    command = [sys.executable, "-m", "janus", "data", "pack", str(path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    while process.poll() is None and not list(tmp_path.glob(".a.store.partial-*/positions.npy")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "janus data: interrupted\n")
    assert [child.name for child in tmp_path.iterdir()] == ["a.xyz"]
