"""``janus calibrate``: measures this host for real (one and two ranks), and refuses what it cannot measure."""

import json

import pytest

from janus.cli.main import main
from perfmodel.collective_rates import COLLECTIVES
from perfmodel.host import require_calibrated_here
from perfmodel.machine import load_machine


@pytest.mark.timeout(280)
def test_calibration_of_this_host_makes_a_machine_file(tmp_path, capsys):
    path = tmp_path / "host.toml"
    assert main(["calibrate", "--quick", "--out", str(path), "--ranks", "1,2", "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    machine = load_machine(path)
    require_calibrated_here(machine)
    assert [rates.ranks for rates in machine.rates] == [1, 2]
    assert machine.rates[1].all_reduce_bytes_per_s > 1e6
    assert machine.rates[0].fused_s["gated_norm"]["double"] > 0
    assert 1e9 < machine.peak("float32").flops_per_s < 1e13
    assert machine.rates[0].fused_row_s["gated_norm"]["double"] > 0
    assert set(machine.rates[0].families) == {"matris", "matris-moe"}
    assert machine.rates[0].grouped_flops_per_s > 1e8
    assert 0 <= machine.rates[1].overlap_efficiency <= 1
    assert set(machine.start_up_s) == {1, 2}
    assert {entry.collective for entry in machine.collectives} == set(COLLECTIVES)
    assert {"fit_median_abs_error", "held_out_median_abs_error"} <= set(document["errors"])
    assert machine.provenance["torch"]
    assert machine.quality


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "host.txt"], "a machine file's name ends in .toml"),
        (["--out", "host.toml", "--ranks", "two"], "write numbers with commas between"),
        (["--out", "host.toml", "--ranks", "0", "--device", "cpu"], "use numbers from 1 to"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, sentence, capsys):
    assert main(["calibrate", *words]) == 2
    assert sentence in capsys.readouterr().err
