"""The workload formulas against the real model: parameters exactly, FLOPs to torch's counter, phase by phase."""

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from janus.model.build import build_model
from janus.model.potential import evaluate_potential
from janus.presets import PRESETS, preset
from perfmodel.workload import (
    Counts,
    gradient_bytes,
    parameter_counts,
    parameter_tensors,
    phase_work,
    step_flops,
    total_counts,
)
from tests.perfmodel.real_steps import counts_of, executed_flops, small_batch

TOLERANCE = 0.005  # what the formulas leave out: 3 x 3 products of strain and lattice, the magnetic moments' place
CASES = {
    "matris-tiny": preset("matris-tiny"),
    "matris one block": replace(preset("matris-tiny"), num_blocks=1, width=48),
    "matris compat": replace(
        preset("matris-4m"), num_blocks=2, width=32, cutoff_angstrom=5.0, line_cutoff_angstrom=3.5
    ),
    "moe-tiny": preset("matris-moe-tiny"),
    "moe three blocks": replace(preset("matris-moe-tiny"), num_blocks=3, width=64),
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_and_tensors_are_exact(name):
    model = build_model(preset(name), device="meta")
    counted = parameter_counts(preset(name))
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.total == sum(counted.parts.values())
    assert parameter_tensors(preset(name)) == sum(parameter.requires_grad for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert gradient_bytes(preset(name)) == 4 * trained


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("matris-moe-s", 1.09e9, 0.19e9), ("matris-moe-m", 2.47e9, 0.56e9), ("matris-moe-l", 11.5e9, 2.89e9)],
)
def test_published_totals_within_two_percent(name, total, active):
    counted = parameter_counts(preset(name))
    assert counted.total == pytest.approx(total, rel=0.02)
    assert counted.active == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_executed_flops_match_what_a_real_step_dispatches(case, recompute):
    config = CASES[case]
    batch = small_batch(config)
    counted = executed_flops(config, batch, recompute=recompute)
    executed = step_flops(config, counts_of(batch), recompute=recompute).executed
    assert executed["FE"] == pytest.approx(counted["FE"], rel=TOLERANCE)
    assert executed["FF"] == pytest.approx(counted["FF"], rel=TOLERANCE)
    assert executed["BF"] + executed["BE"] == pytest.approx(counted["BF_BE"], rel=TOLERANCE)


@pytest.mark.parametrize("case", ["matris-tiny", "moe-tiny"])
def test_model_flops_match_the_plain_operators(case, monkeypatch):
    """Model FLOPs: what the plain definitions execute, nothing made again; counted by FlopCounterMode itself."""
    from janus.kernels import operators, reference

    monkeypatch.setattr(operators, "_form", lambda tensor: reference)
    config = CASES[case]
    batch = small_batch(config)
    with FlopCounterMode(display=False) as counter:
        prediction = evaluate_potential(build_model(config), batch, create_graph=True)
        sum(term.square().sum() for term in (prediction.energy, prediction.forces)).backward()
    flops = step_flops(config, counts_of(batch), recompute=False)
    assert flops.model_total == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


def test_flops_are_linear_in_the_counts_but_for_products_of_weights():
    config, counts = preset("matris-tiny"), Counts(2, 64, 2726, 786, 8888)
    one, two = step_flops(config, counts, recompute=False), step_flops(config, counts + counts, recompute=False)
    assert two.model_total == pytest.approx(2 * one.model_total, rel=1e-4)
    assert two.model_total < 2 * one.model_total


def test_step_is_six_forwards_of_model_flops():
    flops = step_flops(preset("matris-small"), Counts(2, 64, 4992, 1152, 19584), recompute=False)
    assert flops.model_total / flops.model["FE"] == pytest.approx(6.0, rel=0.01)


def test_empty_batch_costs_nothing_but_the_products_of_weights():
    flops = step_flops(preset("matris-tiny"), Counts(0, 0, 0, 0, 0), recompute=False)
    assert flops.model_total == 3 * 2 * 2 * 32 * 32 * 7  # twice 2 d d n: forward, and two products backward


def test_recompute_adds_work_to_every_kind_of_cost():
    counts = Counts(2, 64, 2726, 786, 8888)
    plain = phase_work(preset("matris-tiny"), counts, recompute=False, item_bytes=4)
    again = phase_work(preset("matris-tiny"), counts, recompute=True, item_bytes=4)
    assert again["FE"] == plain["FE"]
    for phase in ("FF", "BF", "BE"):
        assert again[phase].flops > plain[phase].flops
        assert again[phase].launches > plain[phase].launches
    # gradients by BF and BE are added up in BE, but in recomputed blocks only at their inputs
    assert sum(work.plain_bytes for work in again.values()) > sum(work.plain_bytes for work in plain.values())


def test_counts_add_up():
    parts = [Counts(1, 2, 3, 4, 5), Counts(1, 2, 3, 4, 5)]
    assert total_counts(parts) == Counts(2, 4, 6, 8, 10)
    assert total_counts([]) == Counts(0, 0, 0, 0, 0)
    assert Counts(1, 2, 30, 4, 5).work == 35
