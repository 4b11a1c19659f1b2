"""Step time: phases and causes add up, limits, contention, what cannot be priced."""

from dataclasses import replace

import pytest

from janus.errors import UserError
from janus.layout import Layout
from janus.presets import preset
from perfmodel.machine import load_machine
from perfmodel.step_time import PHASE_NAMES, predict_step, rates_for
from perfmodel.workload import Counts
from tests.host_machine import write_host

MODEL = preset("matris-tiny")
COUNTS = Counts(2, 64, 2726, 786, 8888)


@pytest.fixture
def machine(tmp_path):
    return load_machine(write_host(tmp_path / "host.toml"))


def test_phases_and_causes_add_up_to_the_step(machine):
    shares = [[COUNTS, COUNTS], [COUNTS.scaled(0.5)]]
    prediction = predict_step(MODEL, shares, Layout(replicas=2), machine)
    assert tuple(prediction.phase_s) == PHASE_NAMES
    assert sum(prediction.phase_s.values()) == pytest.approx(prediction.step_s)
    assert sum(prediction.cause_s.values()) == pytest.approx(prediction.step_s)
    assert prediction.step_s > max(prediction.rank_s) > min(prediction.rank_s)
    assert prediction.cause_s["wait"] == pytest.approx(max(prediction.rank_s) - sum(prediction.rank_s) / 2)


def test_one_rank_does_not_communicate(machine):
    prediction = predict_step(MODEL, [COUNTS], Layout(), machine)
    assert prediction.phase_s["sync"] == 0
    assert sum(prediction.communication_s.values()) == 0


def test_more_work_and_recompute_take_longer(machine):
    plain = predict_step(MODEL, [COUNTS], Layout(), machine)
    assert predict_step(MODEL, [COUNTS + COUNTS], Layout(), machine).step_s > plain.step_s
    again = predict_step(MODEL, [COUNTS], Layout(), machine, recompute=True)
    assert again.step_s > plain.step_s
    assert again.memory_bytes < plain.memory_bytes
    assert again.flops_model == plain.flops_model
    assert again.flops_executed > plain.flops_executed


def test_splitting_into_micro_batches_costs_launches_only(machine):
    whole = predict_step(MODEL, [[COUNTS]], Layout(), machine)
    halves = predict_step(MODEL, [[COUNTS.scaled(0.5)] * 2], Layout(), machine)
    assert halves.cause_s["launches"] == pytest.approx(2 * whole.cause_s["launches"])
    assert halves.cause_s["operators"] == pytest.approx(whole.cause_s["operators"])
    assert halves.memory_bytes < whole.memory_bytes


def test_infinite_speed_leaves_nothing(machine):
    fast = replace(
        machine.rates[0], matmul_flops_per_s=float("inf"), matmul_bytes_per_s=float("inf"), op_s=0.0, batch_s=0.0,
        plain_bytes_per_s=float("inf"), optimizer_bytes_per_s=float("inf"), optimizer_tensor_s=0.0,
        data_structure_s=0.0, data_edge_s=0.0, data_angle_s=0.0, fresh_bytes_per_s=float("inf"),
    )  # fmt: skip
    assert predict_step(MODEL, [COUNTS], Layout(), replace(machine, rates=(fast,))).step_s == 0


def test_filling_not_measured_takes_the_next_fuller_and_says_so(machine):
    rates, notes = rates_for(machine, 3)
    assert rates.ranks == 4
    assert notes == ["3 ranks were not calibrated: rates of 4 ranks are used"]
    exact, none = rates_for(machine, 2)
    assert (exact.ranks, none) == (2, [])


def test_beyond_the_fullest_filling_ranks_take_turns(machine):
    rates, notes = rates_for(machine, 8)
    assert rates.matmul_flops_per_s == pytest.approx(machine.rates[2].matmul_flops_per_s / 2)
    assert "8 ranks share 2 cores" in notes[0]


def test_oversubscription_is_marked(machine):
    four = predict_step(MODEL, [COUNTS] * 4, Layout(replicas=4), machine)
    two = predict_step(MODEL, [COUNTS] * 2, Layout(replicas=2), machine)
    assert four.oversubscribed
    assert not two.oversubscribed
    assert four.step_s > two.step_s


def test_threads_that_were_not_calibrated_are_noted(machine):
    assert (
        "2 threads per rank were not calibrated" in predict_step(MODEL, [COUNTS], Layout(), machine, threads=2).notes[0]
    )


def test_a_rank_without_structures_waits(machine):
    prediction = predict_step(MODEL, [[COUNTS], []], Layout(replicas=2), machine)
    assert prediction.rank_s[1] == 0
    assert prediction.cause_s["wait"] == pytest.approx(prediction.rank_s[0] / 2)


def test_units_dtypes_and_machines_that_cannot_be_priced(machine):
    with pytest.raises(UserError, match="unit of 2 ranks"):
        predict_step(MODEL, [COUNTS] * 2, Layout(unit=2, shard_degree=2), machine)
    with pytest.raises(UserError, match="calibrated in float32, not float64"):
        predict_step(MODEL, [COUNTS], Layout(), machine, dtype="float64")
    with pytest.raises(UserError, match="dtype 'int3' is not known"):
        predict_step(MODEL, [COUNTS], Layout(), machine, dtype="int3")


def test_catalogue_machine_prices_a_span_of_nodes():
    machine = load_machine("lineshine")
    one_node = predict_step(MODEL, [COUNTS] * 16, Layout(replicas=16), machine)
    two_nodes = predict_step(MODEL, [COUNTS] * 32, Layout(replicas=32), machine)
    assert two_nodes.phase_s["sync"] > one_node.phase_s["sync"] > 0
    blind = replace(machine, fabric=None)
    with pytest.raises(UserError, match=r"no \[fabric\] table"):
        predict_step(MODEL, [COUNTS] * 32, Layout(replicas=32), blind)
