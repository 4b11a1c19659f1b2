"""The full-machine line: sizes, identities, monotony, assumptions listed; no published value goes into it."""

from dataclasses import replace

import pytest

from janus.errors import UserError
from janus.presets import preset
from perfmodel.full_machine import PUBLISHED, FullMachineAssumptions, predict_weak_scaling
from perfmodel.machine import load_machine
from perfmodel.workload import step_flops
from tests.host_machine import write_host


@pytest.fixture(scope="module")
def study():
    return predict_weak_scaling()


def test_from_one_unit_to_the_whole_machine(study):
    first, last = study.points[0], study.points[-1]
    assert (first.units, first.ranks, first.nodes, first.efficiency) == (1, 8, 1, 1.0)
    assert (last.units, last.ranks, last.nodes) == (40_960, 327_680, 20_480)
    assert last.layout.world_size == last.ranks


def test_identities_of_flops_time_and_peak(study):
    for point in study.points:
        assert sum(point.phase_s.values()) == pytest.approx(point.step_s)
        assert point.eflops == pytest.approx(point.flops_model / point.step_s / 1e18)
        peak = study.machine.peak("float32").flops_per_s * point.ranks
        assert point.percent_of_peak == pytest.approx(100 * point.flops_model / point.step_s / peak)
        flops = step_flops(study.model, FullMachineAssumptions().counts_per_unit, recompute=False)
        assert point.flops_model == pytest.approx(flops.model_total * point.units)


def test_efficiency_falls_with_scale(study):
    efficiencies = [point.efficiency for point in study.points]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert 0 < efficiencies[-1] < 1


def test_no_imbalance_no_bytes_hidden_work_is_perfectly_weak():
    fast = load_machine("lineshine")
    fast = replace(fast, network=replace(fast.network, nic_bytes_per_s=1e30, node_bytes_per_s=1e30,
                                         fabric_latency_s=0.0, node_latency_s=0.0))  # fmt: skip
    line = predict_weak_scaling(fast, given=FullMachineAssumptions(replica_deviation=0.0))
    assert line.points[-1].efficiency == pytest.approx(1.0)


def test_recompute_is_taken_where_memory_asks_for_it(study):
    limit = 576e9 / 16
    without = predict_weak_scaling(units=[1], given=FullMachineAssumptions(recompute=False)).points[0]
    assert without.memory_bytes > limit > study.points[0].memory_bytes
    assert study.points[0].flops_executed > study.points[0].flops_model
    assert any("with activation recompute" in text for text in study.assumptions)


def test_every_assumption_is_said(study):
    words = " ".join(study.assumptions)
    assert "per step" in words
    assert "network.fabric_latency_s" in words
    assert all("assumed" in text or "not modelled" in text for text in study.assumptions)
    assert PUBLISHED["peak_eflops"] == 1.2


def test_what_cannot_be_predicted_is_refused(tmp_path):
    with pytest.raises(UserError, match="mixture of experts"):
        predict_weak_scaling(model=preset("matris-10m"))
    with pytest.raises(UserError, match="holds from 1 to 40960 units"):
        predict_weak_scaling(units=[1, 50_000])
    with pytest.raises(UserError, match="one calibrated host"):
        predict_weak_scaling(load_machine(write_host(tmp_path / "host.toml")))
