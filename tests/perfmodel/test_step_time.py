"""Step time: phases and causes add up in every layout, limits, overlap, contention, what cannot be priced."""

import math
from dataclasses import fields, replace
from functools import lru_cache

import numpy as np
import pytest

from janus.errors import UserError
from janus.layout import Layout
from janus.presets import preset
from perfmodel.collective_rates import CollectiveRates
from perfmodel.machine import load_machine
from perfmodel.network.noise import Noise
from perfmodel.prices import MEETING_S
from perfmodel.step_parts import StepParts
from perfmodel.step_time import (
    CAUSES,
    COMMUNICATION_CAUSES,
    PHASE_NAMES,
    combine,
    not_faster_than_turns,
    predict,
    predict_step,
    predicted_parts,
    rates_for,
    what_helps,
)
from perfmodel.step_work import RunSettings, step_work
from perfmodel.workload import Counts
from tests.host_machine import write_host
from tests.perfmodel.sampled_data import sampled_data

MODEL = preset("matris-tiny")
COUNTS = Counts(2, 64, 2726, 786, 8888)
MIXED = preset("matris-moe-tiny")
DATA = sampled_data()
ALL_THREE = Layout(unit=4, shard_degree=4, graph_degree=4, expert_degree=4)


LAYOUTS = [
    Layout(), Layout(replicas=4), Layout(unit=4, shard_degree=4), Layout(unit=4, graph_degree=4),
    Layout(unit=4, expert_degree=4), Layout(unit=2, replicas=2, shard_degree=2, expert_degree=2),
    Layout(unit=4, shard_degree=2, graph_degree=4), Layout(unit=4, shard_degree=4, expert_degree=2), ALL_THREE,
]  # fmt: skip


@lru_cache
def work_of(layout, model=MIXED, **settings):
    return step_work(model, DATA, range(32), layout, RunSettings(**settings))


def with_cores(machine, cores, **changes):
    """The machine with more cores, its rates changed alike."""
    rates = tuple(replace(one, **changes) for one in machine.rates)
    return replace(machine, devices_per_node=cores, rates=rates)


def with_links(machine, latency_s, bytes_per_s):
    """The machine with measured collectives, all alike."""
    return replace(machine, collectives=tuple(
        CollectiveRates(transport="gloo", collective=collective, ranks=ranks, groups=1, latency_s=latency_s,
                        bytes_per_s=bytes_per_s)
        for collective in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all") for ranks in (2, 4)
    ))  # fmt: skip


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


@pytest.mark.parametrize("name", ["matris-tiny", "matris-moe-tiny"])
def test_every_second_has_a_phase_and_a_cause_in_every_layout(machine, name):
    model = preset(name)
    degrees = {"shard": "shard_degree", "graph": "graph_degree", "expert": "expert_degree"}
    for layout in LAYOUTS:
        if layout.expert_degree > 1 and model.experts is None:
            continue
        for settings in ({}, {"recompute": True, "max_work": 20_000, "clips": False}):
            prediction = predict(work_of(layout, model, **settings), machine)
            assert sum(prediction.phase_s.values()) == pytest.approx(prediction.step_s, rel=1e-12)
            assert sum(prediction.cause_s.values()) == pytest.approx(prediction.step_s, rel=1e-12)
            communication_s = sum(prediction.cause_s[cause] for cause in COMMUNICATION_CAUSES)
            assert sum(prediction.communication_s.values()) == pytest.approx(communication_s, rel=1e-12)
            assert min(prediction.phase_s.values()) >= 0
            assert min(prediction.cause_s.values()) >= -1e-15
            for axis, degree in degrees.items():
                assert (prediction.communication_s[axis] > 0) == (getattr(layout, degree) > 1), (layout, axis)


def test_a_unit_of_one_is_data_parallel(machine):
    work = work_of(Layout(replicas=4))
    counts = [[batch.counts for batch in rank.micro_batches] for rank in work.ranks]
    of_counts = predict_step(MIXED, counts, Layout(replicas=4), machine)
    assert predict(work, machine).step_s == pytest.approx(of_counts.step_s)


def test_free_links_leave_no_communication(machine, monkeypatch):
    monkeypatch.setitem(MEETING_S, "gloo", (0.0, 0.0))
    free = with_links(with_cores(machine, 8), 0.0, math.inf)
    for layout in LAYOUTS:
        prediction = predict(work_of(layout), free)
        assert sum(prediction.communication_s.values()) == 0
        assert prediction.step_s > max(prediction.rank_s)


def test_slower_links_are_never_faster(machine):
    host = with_cores(machine, 8, overlap_efficiency=0.7)
    for layout in LAYOUTS:
        work = work_of(layout)
        by_bandwidth = [predict(work, with_links(host, 1e-4, rate)).step_s for rate in (1e11, 1e9, 1e8, 1e7, 1e6)]
        assert by_bandwidth == sorted(by_bandwidth)
        by_latency = [predict(work, with_links(host, latency, 1e9)).step_s for latency in (0, 1e-5, 1e-4, 1e-2)]
        assert by_latency == sorted(by_latency)


def test_overlap_hides_but_never_more_than_runs_beside(machine):
    host = with_links(with_cores(machine, 8), 1e-3, 1e8)
    work = work_of(Layout(unit=4, shard_degree=4), MODEL)
    parts, _, _ = predicted_parts(work, host)
    steps = [float(combine(parts, efficiency).step_s[0]) for efficiency in (0.0, 0.5, 1.0)]
    assert steps == sorted(steps, reverse=True)
    hidden_s = steps[0] - steps[2]
    may_hide_s = (parts.gathers_s + parts.scatters_s).sum() - parts.last_scatter_s[0]
    assert 0 < hidden_s <= (may_hide_s + parts.sums_s.sum()) * (1 + 1e-9)
    assert steps[1] == pytest.approx((steps[0] + steps[2]) / 2)
    instant = replace(parts, compute_s=0 * parts.compute_s, unit_s=0 * parts.unit_s, slowest_s=0 * parts.slowest_s)
    assert combine(instant, 1.0).step_s == pytest.approx(combine(instant, 0.0).step_s)


def test_ranks_that_share_cores_hide_nothing(machine):
    work = work_of(Layout(unit=4, shard_degree=4), MODEL)

    def step_s(cores: int, efficiency: float) -> float:
        return predict(work, with_links(with_cores(machine, cores, overlap_efficiency=efficiency), 1e-3, 1e8)).step_s

    assert step_s(2, 0.9) == step_s(2, 0.0)
    assert step_s(8, 0.9) < step_s(8, 0.0)


def test_candidates_together_are_candidates_alone(machine):
    every = [predicted_parts(work_of(layout), machine)[0] for layout in LAYOUTS]
    together = StepParts(**{
        entry.name: np.concatenate([getattr(parts, entry.name) for parts in every]) for entry in fields(StepParts)
    })  # fmt: skip
    alone = [float(combine(parts, 0.5).step_s[0]) for parts in every]
    assert combine(together, 0.5).step_s == pytest.approx(alone, rel=1e-12)
    assert combine(together, np.full(len(every), 0.5)).step_s == pytest.approx(alone, rel=1e-12)


def test_the_slowest_decides(machine):
    host = with_cores(machine, 8)
    even = predict_step(MODEL, [COUNTS] * 4, Layout(replicas=4), host)
    uneven = predict_step(MODEL, [COUNTS] * 3 + [COUNTS.scaled(1.5)], Layout(replicas=4), host)
    assert uneven.cause_s["wait"] == pytest.approx(max(uneven.rank_s) - np.mean(uneven.rank_s))
    assert uneven.step_s - max(uneven.rank_s) == pytest.approx(even.step_s - max(even.rank_s), rel=0.05)


def test_ranks_of_a_unit_wait_inside_phases_and_units_at_the_sum(machine):
    host = with_cores(machine, 8)
    spread = predict(work_of(Layout(replicas=4), MODEL), host)
    coupled = predict(work_of(Layout(unit=4, shard_degree=4), MODEL), host)
    assert spread.phase_s["sync"] > spread.cause_s["wait"] > 0
    assert coupled.phase_s["sync"] < coupled.cause_s["wait"]
    assert coupled.step_s - sum(coupled.communication_s.values()) >= max(spread.rank_s)


def test_ranks_that_wait_give_their_cores_away(machine):
    """4 ranks on 2 cores: even work is shared out evenly, one busy rank has a core of its own."""
    even = predict_step(MODEL, [COUNTS] * 4, Layout(replicas=4), machine)
    assert even.cause_s["wait"] == 0
    one = predict_step(MODEL, [[COUNTS], [], [], []], Layout(replicas=4), machine)
    computed_s = np.mean(one.rank_s) + one.cause_s["wait"]
    assert computed_s == pytest.approx(max(one.rank_s) / 2)
    half = predict_step(MODEL, [[COUNTS], [COUNTS], [], []], Layout(replicas=4), machine)
    assert np.mean(half.rank_s) + half.cause_s["wait"] == pytest.approx(max(half.rank_s) / 2)
    three = predict_step(MODEL, [[COUNTS], [COUNTS], [COUNTS], []], Layout(replicas=4), machine)
    assert np.mean(three.rank_s) + three.cause_s["wait"] == pytest.approx(0.75 * max(three.rank_s))


def test_noise_only_adds_waits(machine):
    host = with_cores(machine, 8)
    work = work_of(ALL_THREE)
    quiet, noisy = predict(work, host), predict(work, host, noise=Noise(compute_deviation=0.05))
    assert noisy.step_s > quiet.step_s
    changed = {cause for cause in CAUSES if noisy.cause_s[cause] != pytest.approx(quiet.cause_s[cause], abs=1e-12)}
    assert changed == {"wait"}


def test_corrections_multiply_phases(machine):
    class Corrections:
        def factor(self, model, phase):
            return {"FE": 2.0, "sync": 0.5}.get(phase, 1.0)

    work = work_of(ALL_THREE)
    plain, corrected = predict(work, machine), predict(work, machine, corrections=Corrections())
    assert corrected.phase_s["FE"] == pytest.approx(2 * plain.phase_s["FE"])
    assert corrected.phase_s["sync"] == pytest.approx(plain.phase_s["sync"] / 2)
    assert corrected.phase_s["FF"] == plain.phase_s["FF"]
    assert sum(corrected.cause_s.values()) == pytest.approx(corrected.step_s)


def test_what_helps_most_comes_first(machine):
    work = work_of(ALL_THREE)
    step_s = predict(work, machine).step_s
    helps = what_helps(work, machine)
    assert [seconds for _, seconds in helps] == sorted(seconds for _, seconds in helps)
    assert all(seconds < step_s for _, seconds in helps)
    by_name = dict(helps)
    gained_s = step_s - by_name["exchanges of experts: free"]
    assert gained_s == pytest.approx(predict(work, machine).communication_s["expert"])
    assert "halos and sums over graph groups: free" not in dict(what_helps(work_of(Layout(replicas=4)), machine))


def test_a_few_units_stand_for_many(machine):
    host = with_cores(machine, 256)
    layout = Layout(unit=2, replicas=48, shard_degree=2)
    arguments = (MODEL, sampled_data(384), range(384), layout, RunSettings())
    every, some = (predict(step_work(*arguments, represented=number), host) for number in (None, 6))
    assert len(some.rank_s) < len(every.rank_s)
    assert some.step_s == pytest.approx(every.step_s, rel=0.02)


def test_a_fabric_prices_units_and_says_what_it_assumes():
    work = work_of(Layout(unit=8, replicas=4, shard_degree=8, graph_degree=2, expert_degree=8))
    prediction = predict(work, load_machine("lineshine"))
    used = {axis for axis, value in prediction.communication_s.items() if value}
    assert {"shard", "graph", "expert", "world"} <= used
    assert any("overlap" in note for note in prediction.notes)
    assert any("deviates by 2 %" in note for note in prediction.notes)


def test_traffic_of_a_second_memory_hides_behind_compute_until_it_is_longer():
    machine = load_machine("lineshine")
    work = work_of(Layout(unit=4, shard_degree=4, graph_degree=4, expert_degree=4))
    small = replace(machine, memory_bytes_per_node=machine.memory_bytes_per_node / 1e4)
    fast, slow = (replace(small, second_memory_bytes_per_s=rate) for rate in (1e15, 1e6))
    inside = predict(work, machine)
    assert inside.cause_s["memory tiers"] == 0
    assert predict(work, fast).step_s == pytest.approx(inside.step_s)
    assert predict(work, slow).step_s > predict(work, fast).step_s
    assert predict(work, slow).cause_s["memory tiers"] > 0
    unknown = predict(work, replace(small, second_memory_bytes_per_s=None))
    assert any("second memory takes no time" in note for note in unknown.notes)


def test_ranks_that_share_cores_are_not_faster_than_their_turns(machine):
    """A timing of four ranks on two cores that says a quarter slower than two ranks cannot be."""
    lucky = replace(
        machine.rates[2], **{name: getattr(machine.rates[1], name) / 1.25 for name in (
            "matmul_flops_per_s", "matmul_bytes_per_s", "plain_bytes_per_s", "fresh_bytes_per_s",
        )}, op_s=1.25 * machine.rates[1].op_s,
    )  # fmt: skip
    held = not_faster_than_turns(lucky, machine, 4, 1)
    assert held.matmul_flops_per_s == pytest.approx(machine.rates[1].matmul_flops_per_s / 2)
    assert held.op_s == pytest.approx(2 * machine.rates[1].op_s)
    assert held.data_edge_s == lucky.data_edge_s
    slower = replace(machine.rates[2], matmul_flops_per_s=machine.rates[2].matmul_flops_per_s / 2)
    assert not_faster_than_turns(slower, machine, 4, 1) is slower
    assert not_faster_than_turns(machine.rates[1], machine, 2, 1) is machine.rates[1]
