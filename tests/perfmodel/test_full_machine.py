"""The full-machine lines: sizes, identities, monotony, assumptions listed; no published value goes into them."""

from dataclasses import replace

import pytest

from janus.errors import UserError
from janus.layout import Layout
from janus.presets import preset
from perfmodel.full_machine import (
    FullMachineAssumptions,
    job_work,
    predict_strong_scaling,
    predict_weak_scaling,
    rank_memory_bytes,
)
from perfmodel.machine import load_machine
from perfmodel.mean_configurations import MEAN_CONFIGURATION, mean_configurations
from perfmodel.prices import FabricPrices
from perfmodel.step_time import predict
from perfmodel.unit_prices import UnitPrices
from perfmodel.workload import step_flops
from tests.host_machine import write_host

SIZES = [8.0, 1e6, 5e9]


@pytest.fixture(scope="module")
def study():
    return predict_weak_scaling()


@pytest.fixture(scope="module")
def strong():
    return predict_strong_scaling(load_machine("cnis"))


def test_from_one_unit_to_the_whole_machine(study):
    first, last = study.points[0], study.points[-1]
    assert (first.units, first.ranks, first.nodes, first.efficiency) == (1, 8, 1, 1.0)
    assert (last.units, last.ranks, last.nodes) == (40_960, 327_680, 20_480)
    assert last.layout.world_size == last.ranks
    assert last.start_up_s > first.start_up_s > 0


def test_identities_of_flops_time_and_peak(study):
    for point in study.points:
        assert sum(point.phase_s.values()) == pytest.approx(point.step_s)
        assert sum(point.cause_s.values()) == pytest.approx(point.step_s)
        assert point.eflops == pytest.approx(point.flops_model / point.step_s / 1e18)
        peak = study.machine.peak("float32").flops_per_s * point.ranks
        assert point.percent_of_peak == pytest.approx(100 * point.flops_model / point.step_s / peak)
        flops = step_flops(study.model, MEAN_CONFIGURATION, recompute=False)
        assert point.flops_model == pytest.approx(flops.model_total * point.units, rel=1e-6)


def test_efficiency_falls_with_scale(study, strong):
    for line in (study, strong):
        efficiencies = [point.efficiency for point in line.points]
        assert efficiencies == sorted(efficiencies, reverse=True)
        assert 0 < efficiencies[-1] < 1


def test_the_strong_line_keeps_the_batch(strong):
    assert [point.units for point in strong.points] == [352, 704, 1408, 2816, 5632]
    first, last = strong.points[0], strong.points[-1]
    assert last.flops_model == pytest.approx(first.flops_model, rel=1e-4)
    assert last.efficiency == pytest.approx(first.step_s * first.units / last.step_s / last.units)


def test_no_noise_and_no_seconds_between_units_is_perfectly_weak():
    fast = load_machine("lineshine")
    network = replace(fast.network, nic_bytes_per_s=1e30, node_bytes_per_s=1e30, node_latency_s=0.0)
    numbers = {**fast.fabric.numbers, "link_bytes_per_s": 1e30, "wire_latency_s": 0.0, "switch_latency_s": 0.0}
    fast = replace(fast, network=network, fabric=replace(fast.fabric, numbers=numbers), transport=None)
    line = predict_weak_scaling(fast, units=[2, 1024], given=FullMachineAssumptions(compute_deviation=0.0))
    assert line.points[-1].efficiency == pytest.approx(1.0, abs=1e-4)


def test_one_unit_stands_for_alike_units_as_the_packing_of_all_would_have_it():
    machine, given = load_machine("cnis"), FullMachineAssumptions(configurations_per_unit=2)
    model = preset("matris-moe-tiny")
    one = predict(job_work(model, given, 8, 16), machine, prices=UnitPrices(machine))
    spread = replace(given, size_spread=1e-6)  # packed and worked out unit by unit
    all_of_them = predict(job_work(model, spread, 8, 16), machine, prices=FabricPrices(machine))
    assert one.step_s == pytest.approx(all_of_them.step_s, rel=0.02)


def test_different_sizes_wait_for_the_slowest_unit():
    machine = load_machine("cnis")
    alike = predict_weak_scaling(machine, units=[64]).points[0]
    different = predict_weak_scaling(machine, units=[64], given=FullMachineAssumptions(size_spread=0.3)).points[0]
    assert different.step_s > 1.3 * alike.step_s


@pytest.mark.parametrize("name", ["cnis", "lineshine"])
@pytest.mark.parametrize("units", [2, 24, 64])
def test_one_rank_for_a_unit_costs_what_all_its_ranks_do(name, units):
    machine = load_machine(name)
    layout = Layout(unit=8, replicas=units, shard_degree=8, graph_degree=8, expert_degree=8)
    bundled = UnitPrices(machine, all_reduces=("ring", "rabenseifner", "recursive_doubling"))
    every = FabricPrices(machine)
    for axis, collective in (("expert_copies", "all_reduce"), ("shard", "all_gather"), ("expert", "all_to_all")):
        expected = every.seconds(layout, axis, collective, SIZES)
        assert bundled.seconds(layout, axis, collective, SIZES) == pytest.approx(expected, rel=0.1)
    assert bundled.seconds(layout, "world", "all_reduce", 8.0) == pytest.approx(
        every.seconds(layout, "world", "all_reduce", 8.0), rel=0.5
    )


def test_recompute_is_taken_where_memory_asks_for_it():
    large = replace(load_machine("lineshine"), memory_bytes_per_node=16 * 100e9)
    small = replace(large, memory_bytes_per_node=16 * 20e9, second_memory_bytes_per_node=0.0)
    without, with_it = predict_weak_scaling(large, units=[1]), predict_weak_scaling(small, units=[1])
    assert without.points[0].flops_executed == pytest.approx(without.points[0].flops_model, rel=0.01)
    assert with_it.points[0].flops_executed > 1.9 * with_it.points[0].flops_model
    assert any("with activation recompute" in text for text in with_it.assumptions)
    model, given = preset("matris-moe-l"), FullMachineAssumptions(recompute=True)
    assert rank_memory_bytes(model, given) < rank_memory_bytes(model, replace(given, recompute=False))


def test_made_up_configurations_have_the_mean_and_their_elements_add_up():
    data = mean_configurations(2000, spread=0.4)
    assert data.edges.mean() == pytest.approx(MEAN_CONFIGURATION.edges, rel=0.03)
    atoms, edges = data.elements.of(range(2000))
    assert (atoms.sum(axis=1) == data.atoms).all()
    assert (edges.sum(axis=1) == data.edges).all()
    assert edges[atoms == 0].sum() == 0
    assert len(set(mean_configurations(5).edges.tolist())) == 1


def test_every_assumption_is_said(study):
    words = " ".join(study.assumptions)
    assert "per step" in words
    assert "fabric.children" in words
    assert all("assumed" in text or "not modelled" in text for text in study.assumptions)


def test_what_cannot_be_predicted_is_refused(tmp_path):
    with pytest.raises(UserError, match="mixture of experts"):
        predict_weak_scaling(model=preset("matris-10m"))
    with pytest.raises(UserError, match="holds from 1 to 40960 units"):
        predict_weak_scaling(units=[1, 50_000])
    with pytest.raises(UserError, match="one calibrated host"):
        predict_weak_scaling(load_machine(write_host(tmp_path / "host.toml")))
