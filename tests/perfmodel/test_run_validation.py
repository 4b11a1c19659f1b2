"""Prediction beside record: known errors are found where they were put, and the constant that was changed is named."""

import dataclasses

import numpy as np
import pytest

from janus.config import ModelConfig, to_mapping
from janus.errors import UserError
from janus.layout import Layout
from janus.train.config import BatchConfig, ParallelConfig, RunConfig, TrainConfig
from perfmodel.corrections import Pair, fit_corrections
from perfmodel.dataset import DataCounts
from perfmodel.machine import load_machine
from perfmodel.run_validation import (
    PHASES,
    MeasuredStep,
    compare,
    constants_of,
    settings_of,
    suspects,
    with_outside,
)
from perfmodel.step_time import predict
from perfmodel.step_work import step_work
from tests.host_machine import write_host

MODEL = ModelConfig(num_blocks=2, width=32)


def measured(phases: dict[str, float], number: int = 0) -> MeasuredStep:
    return MeasuredStep(step=number, step_s=sum(phases.values()), phase_s=with_outside(sum(phases.values()), phases))


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return load_machine(write_host(tmp_path_factory.mktemp("machine") / "host.toml"))


@pytest.fixture(scope="module")
def works():
    """Six steps of two ranks whose sizes differ, so that constants can be told apart."""
    generator = np.random.default_rng(3)
    edges = generator.integers(100, 6000, size=24)
    data = DataCounts(path="x", fingerprint="y", atoms=edges // 30 + 1, edges=edges, bonds=edges // 3, angles=edges * 2)
    settings = settings_of(to_mapping(TrainConfig(model=MODEL)))
    return [
        step_work(MODEL, data, range(4 * number, 4 * number + 4), Layout(replicas=2), settings) for number in range(6)
    ]


def phases_with(works, machine):
    return [with_outside(one.step_s, one.phase_s) for one in (predict(work, machine) for work in works)]


def test_a_line_of_the_record_is_read_as_means_over_ranks_with_the_rest_outside():
    line = {
        "step": 7, "step_s": 1.0,
        "ranks": [{"phase_s": {"FE": 0.2, "sync": 0.5}}, {"phase_s": {"FE": 0.4, "sync": 0.1}}],
    }  # fmt: skip
    step = MeasuredStep.of_line(line)
    assert step.phase_s["FE"] == pytest.approx(0.3)
    assert step.phase_s["outside"] == pytest.approx(0.4)
    assert sum(step.phase_s.values()) == pytest.approx(step.step_s)
    with pytest.raises(UserError, match=r"steps\.jsonl"):
        MeasuredStep.of_line({"step": 7})


def test_errors_lie_where_they_were_put():
    steps = [measured({"FE": 0.1, "FF": 0.2, "BF_BE": 0.5, "optimizer": 0.05}, n) for n in range(5)]
    predicted = [dict(step.phase_s) for step in steps]
    for phases in predicted:
        phases["FF"] += 0.03
        phases["BF_BE"] -= 0.01
    found = compare(predicted, steps)
    by_phase = {one.phase: one for one in found.phases}
    assert [one.phase for one in found.phases] == list(PHASES)
    assert found.worst_phase.phase == "FF"
    assert by_phase["FF"].share == pytest.approx(0.75)
    assert by_phase["FF"].error == pytest.approx(0.15)
    assert by_phase["BF_BE"].error == pytest.approx(-0.02)
    assert by_phase["data"].error is None
    assert found.error == pytest.approx(0.02 / 0.85)
    assert found.median_error == pytest.approx(0.02 / 0.85)


def test_settings_are_those_of_the_run():
    config = TrainConfig(
        model=MODEL, batch=BatchConfig(max_work=77), run=RunConfig(recompute=True),
        parallel=ParallelConfig(gathered_blocks=0, transport="mpi", bucket_bytes=99),
    )  # fmt: skip
    settings = settings_of(to_mapping(config))
    assert (settings.max_work, settings.recompute, settings.gathered_blocks) == (77, True, 0)
    assert (settings.transport, settings.bucket_bytes, settings.clips, settings.averages) == ("mpi", 99, True, True)
    assert settings_of(to_mapping(TrainConfig(model=MODEL))).transport == "gloo"


@pytest.mark.parametrize(
    ("constant", "factor"), [("op_s", 1.6), ("plain_bytes_per_s", 0.6), ("matmul_flops_per_s", 0.7)]
)
def test_the_constant_that_was_changed_is_the_likeliest(machine, works, constant, factor):
    """Steps as a machine with one other constant would take them."""
    name = f"rates.ranks_2_threads_1.{constant}"
    other = constants_of(machine, 2)[name](factor)
    steps = [
        MeasuredStep(step=number, step_s=sum(phases.values()), phase_s=phases)
        for number, phases in enumerate(phases_with(works, other))
    ]
    first = suspects(steps, lambda changed: phases_with(works, changed), machine, 2)[0]
    assert first.constant == name
    assert first.change == pytest.approx(factor, rel=0.05)
    assert first.explained > 0.99


def test_steps_as_predicted_have_no_suspect(machine, works):
    steps = [
        MeasuredStep(step=number, step_s=sum(phases.values()), phase_s=phases)
        for number, phases in enumerate(phases_with(works, machine))
    ]
    assert suspects(steps, lambda changed: phases_with(works, changed), machine, 2) == []


def test_corrections_take_errors_of_phases_away(machine, works):
    """Steps whose phases are off by known factors: fitted to some, the others are met."""
    factors = {"FE": 1.3, "FF": 0.8, "BF_BE": 1.1, "optimizer": 2.0}
    predicted = phases_with(works, machine)
    actual = [{name: seconds * factors.get(name, 1.0) for name, seconds in phases.items()} for phases in predicted]
    pairs = [
        Pair(model=MODEL, phase=name, predicted_s=phases[name], measured_s=true[name])
        for phases, true in zip(predicted[:3], actual[:3], strict=True) for name in factors
    ]  # fmt: skip
    corrections = fit_corrections(pairs, min_samples=3)
    for work, true in zip(works[3:], actual[3:], strict=True):
        found = predict(work, machine, corrections=corrections)
        assert found.step_s == pytest.approx(sum(true.values()), rel=1e-9)
        assert sum(found.cause_s.values()) == pytest.approx(found.step_s)


def test_every_constant_leaves_the_machine_it_was_made_from(machine):
    before = dataclasses.asdict(machine)
    for name, change in constants_of(machine, 1).items():
        assert change(1.1) != machine, name
    assert dataclasses.asdict(machine) == before
