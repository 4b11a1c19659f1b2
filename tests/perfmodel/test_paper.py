"""The published table: identities hold and fail, rows are the step predictor's, searches find what was planted."""

from dataclasses import replace

import numpy as np
import pytest

from janus.errors import UserError
from janus.presets import preset
from perfmodel.full_machine import FullMachineAssumptions, job_work
from perfmodel.machine import load_machine
from perfmodel.mean_configurations import MEAN_CONFIGURATION
from perfmodel.network.noise import Noise
from perfmodel.paper import PUBLISHED, ROW_KEYS, published
from perfmodel.paper_identities import Formulas, across_machines, identities
from perfmodel.paper_model import EVERYTHING, NOTHING, PaperModel, one_assignment
from perfmodel.paper_parts import Work
from perfmodel.paper_search import Space, Unknown, search, survey
from perfmodel.paper_slowest import slowest_in_unit, slowest_over_mean
from perfmodel.paper_unknowns import LARGEST_BATCH, unknowns_of
from perfmodel.start_up import start_up_seconds, sustained_flops_per_s, sustained_over_peak
from perfmodel.step_time import predict
from perfmodel.unit_prices import UnitPrices
from perfmodel.workload import step_flops
from tests.host_machine import write_host

FEW = {"generations": 25, "restarts": 1}


@pytest.fixture(scope="module")
def cnis():
    machine = load_machine("cnis")
    return PaperModel(machine), unknowns_of(machine)


@pytest.fixture(scope="module")
def formulas():
    return Formulas.of(MEAN_CONFIGURATION)


def verdicts(name, formulas, **changed):
    rows = dict(published(name))
    rows |= {key: replace(rows[key], printed=printed) for key, printed in changed.items()}
    return {one.name: one for one in identities(load_machine(name), rows, formulas)}


def test_every_row_has_a_value_a_tag_and_a_source():
    for rows in PUBLISHED.values():
        assert set(rows) == set(ROW_KEYS)
        assert all(number.low < number.value < number.high for number in rows.values())
        assert all(
            number.tag in ("first-hand", "second-hand", "inferred") and number.source for number in rows.values()
        )
    assert published("lineshine")["weak_percent"].half_unit == pytest.approx(0.05)
    with pytest.raises(UserError, match="the paper has lineshine and cnis"):
        published("frontier")


def test_what_the_published_numbers_say_of_each_other(formulas):
    lineshine, cnis = verdicts("lineshine", formulas), verdicts("cnis", formulas)
    assert lineshine["sustained / peak by percent of peak"].verdict == "contradicts"  # 86.61 beside 86.11
    assert cnis["sustained / peak by percent of peak"].verdict == "agrees"
    assert cnis["FP32 peak of the machine"].verdict == "agrees"  # 1.0 is rounded
    for name in ("speed-up of M", "speed-up of L"):
        assert lineshine[name].verdict == cnis[name].verdict == "agrees"
    batch = "batch of L's step on the full machine, model FLOPs of the preset"
    assert cnis[batch].verdict == "agrees"
    assert lineshine[batch].verdict == "contradicts"
    assert across_machines(published).verdict == "agrees"


@pytest.mark.parametrize(
    ("row", "printed", "identity"),
    [("step_l_baseline_s", "9.71", "speed-up of L"), ("speedup_m", "2.9", "speed-up of M"),
     ("sustained_percent", "26.84", "sustained / peak by percent of peak"),
     ("sustained_eflops", "0.5623", "sustained / peak by EFLOPS"),
     ("peak_percent", "25.52", "FP32 peak of the machine"), ("weak_percent", "89.1", "parallel efficiency, weak"),
     ("step_l_s", "5.66", "batch of L's step on the full machine, model FLOPs of the preset")],
)  # fmt: skip
def test_a_changed_number_breaks_its_identity(formulas, row, printed, identity):
    assert verdicts("cnis", formulas)[identity].verdict == "agrees"
    assert verdicts("cnis", formulas, **{row: printed})[identity].verdict == "contradicts"


def test_batches_are_eflops_times_step_over_flops(formulas):
    batch = verdicts("cnis", formulas)["batch of L's step on the full machine, model FLOPs of the preset"]
    flops = step_flops(preset("matris-moe-l"), MEAN_CONFIGURATION, recompute=False).model_total
    assert batch.left_value.middle == pytest.approx(0.7623e18 / 0.7273 * 2.66 / flops, rel=1e-3)


@pytest.mark.parametrize("each", [2, 4])
def test_the_rows_are_of_the_step_predictor(cnis, each):
    model, _ = cnis
    machine, units = model.machine, 64
    given = FullMachineAssumptions(configurations_per_unit=each, recompute=False)
    step = predict(job_work(preset("matris-moe-l"), given, units, each * units), machine, prices=UnitPrices(machine),
                   noise=Noise(compute_deviation=given.compute_deviation))  # fmt: skip
    space = unknowns_of(machine)
    values = space.assignments(space.defaults()) | one_assignment({"size_spread": 0.0, "micro_batch": 4.0})
    one = np.ones(1)
    found = model.step(values, "l", each * units * one, units * one)
    assert found.step_s[0] == pytest.approx(step.step_s, rel=0.03)
    for cause in ("grouped products", "plain traffic", "launches", "optimizer"):
        assert found.cause_s[cause][0] == pytest.approx(step.cause_s[cause], rel=0.03)


def test_many_assignments_at_once_are_each_alone(cnis):
    model, space = cnis
    cube = space.spread(7, np.random.default_rng(3))
    together = model(space.assignments(cube))
    for place in range(7):
        alone = model(space.assignments(cube[place : place + 1]))
        for row in ROW_KEYS:
            assert together[row][place] == pytest.approx(alone[row][0], rel=1e-9)


def test_rows_obey_the_identities(cnis):
    model, space = cnis
    values = space.assignments(space.spread(50, np.random.default_rng(1)))
    rows = model(values)
    assert rows["speedup_l"] == pytest.approx(rows["step_l_baseline_s"] / rows["step_l_s"])
    assert rows["sustained_eflops"] == pytest.approx(rows["peak_eflops"] * rows["sustained_over_peak"] / 100)
    assert rows["peak_percent"] == pytest.approx(100 * rows["peak_eflops"] / 2.951168)
    flops = values["batch_peak"] * model.flops_of_one("l", values)
    peak_s = model.step(values, "l", values["batch_peak"], model.full_units(values)).step_s
    assert rows["peak_eflops"] == pytest.approx(flops / peak_s / 1e18)


def test_a_machine_that_costs_more_takes_longer(cnis):
    model, space = cnis
    values = space.assignments(space.defaults())
    for key, worse in (("product_share", 0.5), ("memory_share", 0.4), ("launch_s", 4e-5), ("injection", 1.0),
                       ("taper", 4.0), ("node_link", 0.4), ("overlap", 0.5), ("size_spread", 0.4),
                       ("edges", 11_000.0)):  # fmt: skip
        changed = values | one_assignment({key: worse})
        for lacks in (NOTHING, EVERYTHING):
            assert model.step_times_of(changed, "l", lacks) >= model.step_times_of(values, "l", lacks), key
    assert model.worth(values, "l")["all"][0] == pytest.approx(model(values)["speedup_l"][0])
    assert "sdma" not in model.lacks()


def test_the_slowest_unit():
    one = np.ones(1)
    alike = slowest_over_mean(0 * one, 0 * one, np.array([1.0, 2.5, 8.0]), 256 * np.ones(3))
    assert alike == pytest.approx([1.0, 1.2, 1.0], rel=1e-3)  # 3 configurations where the mean has 2.5
    assert slowest_over_mean(0 * one, 0 * one, 0.1 * one, 256 * one)[0] == pytest.approx(10.0)
    assert slowest_over_mean(0.25 * one, 0 * one, 2 * one, 256 * one)[0] > 1.1
    noisy = slowest_over_mean(np.zeros(2), np.full(2, 0.02), np.ones(2), np.array([16.0, 2048.0]))
    assert 1 < noisy[0] < noisy[1] < 1.12
    assert slowest_in_unit(np.array([0.0, 0.02])) == pytest.approx([1.0, 1.028], abs=2e-3)


def test_bands_hold_defaults_and_samples(cnis):
    model, space = cnis
    found = survey(space, model, ROW_KEYS, num_samples=300)
    again = survey(space, model, ROW_KEYS, num_samples=300)
    assert found == again
    sampled = model(space.assignments(space.spread(50, np.random.default_rng(9))))
    for row in ROW_KEYS:
        band = found.bands[row]
        assert band.low <= band.low_5 <= band.high_95 <= band.high
        assert band.low <= band.default <= band.high
        assert sampled[row].max() <= band.high * 1.3
    deciding = {one.key: one for one in found.deciding if one.row == "sustained_over_peak"}
    assert deciding["outside_s"].correlation < -0.5
    assert deciding["steps"].correlation > 0.2
    assert deciding["product_m"].swing == 0
    assert found.of_row("peak_eflops", 1)[0].swing == max(
        one.swing for one in found.deciding if one.row == "peak_eflops"
    )


def test_a_planted_assignment_is_found_and_the_search_is_the_same_again(cnis):
    model, space = cnis
    planted = space.defaults()
    for key, place in (("product_share", 0.8), ("batch_step_m", 0.95), ("baseline_products", 0.2), ("outside_s", 0.8)):
        planted[0, space.keys.index(key)] = place
    rows = model(space.assignments(planted))
    targets = {row: float(rows[row][0]) for row in ROW_KEYS}
    found = search(space, model, targets, **FEW)
    assert found.exists
    assert found.worst < 0.10
    assert len(found.accepted) > 0
    assert len(found.moved) < len(space) / 2  # near the defaults, from which four were moved
    again = search(space, model, targets, **FEW)
    assert (again.values, again.tried) == (found.values, found.tried)
    assert not found.stopped_early


def test_what_cannot_be_reproduced_is_said(cnis):
    model, space = cnis
    rows = model(space.assignments(space.defaults()))
    targets = {row: float(rows[row][0]) for row in ROW_KEYS} | {"speedup_l": 50.0}
    found = search(space, model, targets, generations=6, restarts=1)
    assert not found.exists
    assert found.worst > 0.10


def test_limits_bind_a_search():
    space = Space([Unknown(key="x", label="x", unit="", value=0.5, low=0.0, high=1.0, scale="linear", reason="none")])
    free = search(space, lambda values: {"y": values["x"], "z": values["x"]}, {"y": 0.8}, **FEW)
    bound = search(space, lambda values: {"y": values["x"], "z": values["x"]}, {"y": 0.8}, limits={"z": 0.6}, **FEW)
    assert free.exists
    assert not bound.exists
    assert bound.values["x"] == pytest.approx(0.65, abs=0.06)


def test_unknowns_have_ranges_around_defaults_and_reasons():
    for name in PUBLISHED:
        space = unknowns_of(load_machine(name))
        assert all(one.reason and one.label for one in space.unknowns)
        values = {key: float(value[0]) for key, value in space.assignments(space.defaults()).items()}
        assert values == pytest.approx({one.key: one.value for one in space.unknowns})
        assert space.cube_of(values) == pytest.approx(space.defaults())
        assert values["batch_peak"] <= LARGEST_BATCH
    assert "sdma" not in unknowns_of(load_machine("cnis")).keys


def test_memory_and_idle_units_are_told(cnis):
    model, space = cnis
    values = space.assignments(space.defaults())
    rows = model(values | one_assignment({"batch_step_m": 1408.0}))
    assert rows["units_over_batch"][0] == pytest.approx(4.0)
    less = model(values | one_assignment({"kept": 0.2}))["memory_over_available"][0]
    assert less < model(values)["memory_over_available"][0]
    assert Work(model=preset("matris-moe-l"), planned=False).settings().expert_replication is False


def test_on_lineshine_a_cpu_is_a_device_or_its_domains_are():
    model = PaperModel(load_machine("lineshine"))
    space = unknowns_of(model.machine)
    values = space.assignments(space.defaults())
    assert model.full_units(values)[0] == 5120
    inside = values | one_assignment({"unit_place": 0.0})
    assert model.full_units(inside)[0] == 40_960
    # the same configurations per unit of eight: eight times the machine, less what crosses nodes
    alone, together = (model.step(one, "l", 320 * np.ones(1), 160 * np.ones(1)) for one in (inside, values))
    assert 6 < alone.cause_s["grouped products"][0] / together.cause_s["grouped products"][0] < 8.01
    assert together.cause_s["exchanges"][0] > 0
    assert model.worth(values, "m")["sdma"][0] > 1


def test_start_up(tmp_path):
    seconds, notes = start_up_seconds(load_machine("cnis"), 45_056)
    assert seconds == pytest.approx((35.52 / 25.84 - 1) * 1000 * 2.66, rel=1e-6)
    assert "assumed" in notes[0]
    assert "fitted to the published" in notes[0]
    few, _ = start_up_seconds(load_machine("cnis"), 8)
    assert few < seconds / 10
    other, notes = start_up_seconds(load_machine("frontier"), 78_848)
    assert 100 < other < 3000
    assert "mean of what lineshine and cnis" in notes[0]
    host = load_machine(write_host(tmp_path / "host.toml"))
    assert start_up_seconds(replace(host, start_up_s={}), 2)[0] is None
    assert start_up_seconds(replace(host, start_up_s={1: 3.0, 4: 5.0}), 2)[0] == 5.0
    assert sustained_over_peak(2.0, 1000, 500) == pytest.approx(0.8)
    assert sustained_flops_per_s(1e18, 2.0, 1000, 500) == pytest.approx(0.4e18)
