"""``janus calibrate``: measures this host for real (one and two ranks), and refuses what it cannot measure."""

import json

import pytest

from janus.cli.main import main
from perfmodel.host import require_calibrated_here
from perfmodel.machine import load_machine


@pytest.mark.timeout(280)
def test_calibration_of_this_host_makes_a_machine_file(tmp_path, capsys):
    path = tmp_path / "host.toml"
    assert main(["calibrate", "--out", str(path), "--ranks", "1,2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    machine = load_machine(path)
    require_calibrated_here(machine)
    assert [rates.ranks for rates in machine.rates] == [1, 2]
    assert machine.rates[1].all_reduce_bytes_per_s > 1e6
    assert machine.rates[0].fused_s["gated_norm"]["double"] > 0
    assert 1e9 < machine.peak("float32").flops_per_s < 1e13
    assert {"fit_median_abs_error", "held_out_median_abs_error"} <= set(document["errors"])
    assert machine.provenance["torch"]
    assert machine.quality


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "host.txt"], "a machine file's name ends in .toml"),
        (["--out", "host.toml", "--ranks", "two"], "write numbers with commas between"),
        (["--out", "host.toml", "--ranks", "0"], "use numbers from 1 to"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, sentence, capsys):
    assert main(["calibrate", *words]) == 2
    assert sentence in capsys.readouterr().err
