"""Discrete events of a step: the players equal the streams of the network model, events equal formulas where nothing
overlaps, noise, shared cores, units that stand for others, traces."""

import json
from dataclasses import replace

import numpy as np
import pytest

from janus.layout import Layout, layouts_of
from janus.presets import preset
from perfmodel.machine import load_machine
from perfmodel.network.noise import Noise
from perfmodel.network.streams import COMPUTE, Operation, simulate_streams
from perfmodel.network.trace import stream_trace, write_trace
from perfmodel.play_streams import play, play_shared
from perfmodel.slowest import expected_slowest
from perfmodel.step_events import play_step
from perfmodel.step_time import predict
from perfmodel.step_work import RunSettings, step_work
from tests.host_machine import write_host
from tests.perfmodel.sampled_data import sampled_data

MODEL, MIXED = preset("matris-tiny"), preset("matris-moe-tiny")
NO_LOADER = {"data_structure_s": 0.0, "data_edge_s": 0.0, "data_angle_s": 0.0}


@pytest.fixture
def host(tmp_path):
    """A host with a core for every thread."""
    machine = load_machine(write_host(tmp_path / "host.toml"))
    return replace(machine, devices_per_node=16)


def changed(machine, **values):
    return replace(machine, rates=tuple(replace(one, **values) for one in machine.rates))


def work_of(layout, model=MIXED, data=None, **settings):
    return step_work(model, data or sampled_data(), range(32), layout, RunSettings(**settings))


def random_program(seed, num_operations=60):
    """Operations on three streams and two axes with random dependencies."""
    generator = np.random.default_rng(seed)
    program = []
    for number in range(num_operations):
        kind = generator.integers(3)
        axis = (None, "near", "far")[kind]
        after = tuple(sorted(generator.choice(number, min(number, 2), replace=False).tolist())) if number else ()
        program.append(Operation(
            name=f"operation {number}", stream=(COMPUTE, "near", "far")[kind], axis=axis, after=after,
            seconds=float(generator.exponential()) * (generator.random() > 0.2),
        ))  # fmt: skip
    return program


@pytest.mark.parametrize("seed", range(5))
def test_players_are_the_streams_of_the_network_model(seed):
    program, generator = random_program(seed), np.random.default_rng(seed)
    factor = generator.uniform(0.5, 2.0, 8)
    groups = {"near": np.arange(8) // 2, "far": np.arange(8) % 2}
    seconds = [one.seconds * (factor if one.axis is None else np.ones(8)) for one in program]
    expected = simulate_streams(program, groups, factor, record=True)
    found = play(program, seconds, groups, record=True)
    shared = play_shared(program, seconds, groups, cores=8, record=True)
    assert found.finish_s == pytest.approx(expected.finish_s, rel=1e-12)
    assert shared.finish_s == pytest.approx(expected.finish_s, rel=1e-12)

    def by_name(spans):
        return {(span.rank, span.name): (span.begin_s, span.end_s, span.waited_s) for span in spans
                if span.end_s > span.begin_s}  # fmt: skip

    for spans in (found.spans, shared.spans):
        assert by_name(spans).keys() == by_name(expected.spans).keys()
        for key, times in by_name(expected.spans).items():
            assert by_name(spans)[key] == pytest.approx(times, rel=1e-9, abs=1e-9)


def test_ranks_share_cores():
    compute = [Operation(name="work", stream=COMPUTE, seconds=1.0)]
    meet = [*compute, Operation(name="meet", stream="world", seconds=0.5, axis="world", after=(0,))]
    groups = {"world": np.zeros(4, np.int64)}

    def step_s(program, work, cores):
        return play_shared(program, [np.array(work), np.full(4, 0.5)][: len(program)], groups, cores).step_s

    assert step_s(compute, [1.0] * 4, 2) == pytest.approx(2.0)
    assert step_s(compute, [1.0, 0.0, 0.0, 0.0], 2) == pytest.approx(1.0)
    assert step_s(compute, [3.0, 1.0, 1.0, 1.0], 2) == pytest.approx(4.0)  # 2 s shared by four, then alone
    assert step_s(meet, [1.0] * 4, 2) == pytest.approx(2.5)  # what is sent needs no core


@pytest.mark.parametrize("settings", [{}, {"max_work": 20_000}, {"recompute": True, "clips": False}])
def test_events_are_the_formulas_where_nothing_overlaps(host, settings):
    """With overlap efficiency 0, layouts whose waits are all at one level, and even work in a unit."""
    machine = changed(host, overlap_efficiency=0.0, **NO_LOADER)
    for model, layout in (
        (MODEL, Layout()), (MODEL, Layout(replicas=4)), (MODEL, Layout(unit=4, shard_degree=4)),
        (MIXED, Layout(replicas=4)), (MIXED, Layout(unit=4, shard_degree=4)),
    ):  # fmt: skip
        work = work_of(layout, model, sampled_data(even=True), **settings)
        played = play_step(work, machine)
        assert played.step_s == pytest.approx(predict(work, machine).step_s, rel=1e-12), layout
        assert played.analytic_s == pytest.approx(played.step_s, rel=1e-12)


def test_events_stay_near_the_formulas_in_every_layout(host):
    """Overlap and uneven ranks: the formulas add up phases, events blocks."""
    machine = changed(host, overlap_efficiency=0.8)
    for layout in [one for one in layouts_of(4) if 2 not in (one.shard_degree, one.graph_degree)]:
        for settings in ({"max_work": 20_000}, {"recompute": True, "expert_strategy": "weights"}):
            work = work_of(layout, **settings)
            assert play_step(work, machine).step_s == pytest.approx(predict(work, machine).step_s, rel=0.02), layout


def test_a_host_whose_ranks_share_cores_is_near_its_formula(host):
    machine = replace(host, devices_per_node=2)
    for layout in (Layout(replicas=4), Layout(unit=4, shard_degree=4), Layout(unit=4, expert_degree=4)):
        work = work_of(layout)
        assert play_step(work, machine).step_s == pytest.approx(predict(work, machine).step_s, rel=0.03), layout


def test_noise_is_what_the_formulas_expect_of_it(host):
    machine, noise = changed(host, **NO_LOADER), Noise(compute_deviation=0.05)
    work = work_of(Layout(replicas=16), MODEL, sampled_data(even=True))
    drawn = [play_step(work, machine, noise=replace(noise, seed=seed)).step_s for seed in range(60)]
    quiet = play_step(work, machine)
    slowest = expected_slowest(quiet.compute_s, 1, noise) - quiet.compute_s.max()
    assert np.mean(drawn) - quiet.step_s == pytest.approx(slowest, rel=0.2)
    assert predict(work, machine, noise=noise).step_s - quiet.step_s == pytest.approx(slowest, rel=1e-6)


def test_a_straggler_holds_up_all(host):
    work = work_of(Layout(unit=2, replicas=8, shard_degree=2))
    quiet = play_step(work, host)
    slow = play_step(work, host, noise=Noise(straggler_fraction=0.2, straggler_slowdown=2.0, seed=1))
    assert 1.5 * quiet.step_s < slow.step_s < 2.1 * quiet.step_s


def test_a_few_units_stand_for_many(host):
    machine = replace(host, devices_per_node=256)
    layout, noise = Layout(unit=2, replicas=48, shard_degree=2), Noise(compute_deviation=0.05, seed=3)
    work = step_work(MODEL, sampled_data(384), range(384), layout, RunSettings())
    every, some = (play_step(work, machine, noise=noise, units=number) for number in (48, 6))
    assert (len(every.ranks), len(some.ranks), some.of_ranks) == (96, 12, 96)
    assert some.step_s == pytest.approx(every.step_s, rel=1e-9)


def test_one_stream_is_never_faster(host):
    work = work_of(Layout(unit=4, shard_degree=4, graph_degree=4, expert_degree=4), recompute=True)
    assert play_step(work, host, one_stream=True).step_s >= play_step(work, host).step_s


def test_trace_of_a_step(host, tmp_path):
    work = work_of(Layout(unit=2, replicas=2, shard_degree=2, graph_degree=2), MODEL)
    played = play_step(work, host, record=True)
    path = tmp_path / "step.json"
    write_trace(stream_trace(played.spans, [f"rank {rank}" for rank in played.ranks]), path)
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    assert {event["cat"] for event in events} >= {COMPUTE, "shard", "graph", "sums"}
    assert max(event["ts"] + event["dur"] for event in events) == pytest.approx(1e6 * played.step_s)
    for stream in (COMPUTE, "shard"):  # operations of a stream follow one another
        mine = sorted((event["ts"], event["dur"]) for event in events if (event["cat"], event["pid"]) == (stream, 0))
        ends = np.array([begin + length for begin, length in mine])
        starts = np.array([begin for begin, _ in mine])
        assert (starts[1:] >= ends[:-1] - 1e-3).all()
