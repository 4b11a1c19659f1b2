"""The collectives of a training step: sizes, groups and prices against simple formulas; units that stand for all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from janus.errors import UserError
from janus.layout import Layout
from janus.presets import preset
from perfmodel.full_machine import MEAN_CONFIGURATION
from perfmodel.machine import load_machine
from perfmodel.network.noise import Noise
from perfmodel.network.routes import Transport
from perfmodel.network.training_step import (
    StepOutcome,
    StepSizes,
    representatives,
    represented_groups,
    step_program,
    step_sizes,
    training_step_collectives,
)

UNIT = {"unit": 8, "shard_degree": 8, "graph_degree": 8, "expert_degree": 8}
SIZES = StepSizes(num_blocks=2, gather_bytes=8e6, exchange_bytes=1e6, exchanges=4, halo_bytes=1e5, gradient_bytes=1e6,
                  expert_gradient_bytes=5e6, compute_s={"FE": 0.1, "FF": 0.1, "BF": 0.2, "BE": 0.2},
                  optimizer_s=0.01)  # fmt: skip


def small_step(replicas: int = 8, **options: object) -> StepOutcome:
    layout = Layout(replicas=replicas, **UNIT)
    return training_step_collectives(
        load_machine("cnis"), layout, SIZES, transport=Transport(overhead_s=2e-6), **options
    )


def test_one_rank_only_computes() -> None:
    outcome = training_step_collectives(load_machine("cnis"), Layout(), SIZES, transport=Transport(), ranks_per_node=1)
    assert outcome.step_s == pytest.approx(0.61)
    assert not outcome.prices_s


def test_calls_of_a_step() -> None:
    """Four visits of two blocks: 8 gathers and halos, 32 exchanges; in BE 2 of each gradient collective."""
    calls = {(axis, collective): number for (axis, collective, _), number in small_step().calls.items()}
    assert calls == {
        ("shard", "all_gather"): 8, ("graph", "all_to_all"): 8, ("expert", "all_to_all"): 32,
        ("shard", "reduce_scatter"): 2, ("shard_copies", "all_reduce"): 2, ("expert_copies", "all_reduce"): 2,
    }  # fmt: skip


def test_prices_in_a_node_by_hand() -> None:
    """CNIS: 50 GB/s and 2 us between ranks of a node; ring of 8, 7 rounds of an eighth."""
    prices = small_step().prices_s
    assert prices["shard", "all_gather", 8e6] == pytest.approx(7 * (4e-6 + 1e6 / 50e9), rel=1e-9)
    assert prices["expert", "all_to_all", 1e6] == pytest.approx(7 * (4e-6 + 0.125e6 / 50e9), rel=1e-9)


def test_copies_share_the_nics_of_their_node() -> None:
    """Eight all-reduces at once over 4 NICs of 50 GB/s: never faster than their bytes through half a NIC each."""
    seconds = small_step().prices_s["expert_copies", "all_reduce", 5e6]
    assert seconds >= 2 * 7 / 8 * 5e6 / 25e9


def test_without_overlap_every_collective_adds_up() -> None:
    outcome = small_step(overlap=False)
    total_s = sum(outcome.calls[key] * seconds for key, seconds in outcome.prices_s.items())
    assert outcome.step_s == pytest.approx(0.61 + total_s, rel=1e-9)
    assert small_step().step_s < outcome.step_s
    assert small_step().step_s >= 0.61
    assert small_step(one_stream=True).step_s >= small_step().step_s


def test_flows_and_closed_form_agree_inside_a_node() -> None:
    flows, formula = small_step(evaluator="flows"), small_step()
    for key in formula.prices_s:
        if key[0] in ("shard", "graph", "expert"):
            assert flows.prices_s[key] == pytest.approx(formula.prices_s[key], rel=1e-12)
    assert flows.prices_s["shard_copies", "all_reduce", 1e6] == pytest.approx(
        formula.prices_s["shard_copies", "all_reduce", 1e6], rel=0.5
    )


def test_a_few_units_stand_for_all() -> None:
    noise = Noise(compute_deviation=0.1, straggler_fraction=0.02, straggler_slowdown=1.3, seed=11)
    every = small_step(replicas=48, noise=noise, represented_units=48)
    few = small_step(replicas=48, noise=noise, represented_units=6)
    assert every.represented == 384
    assert few.represented == 48
    assert few.step_s == pytest.approx(every.step_s, rel=1e-9)
    assert every.step_s > small_step(replicas=48).step_s * 1.1


def test_the_slowest_unit_is_among_those_played() -> None:
    layout = Layout(replicas=20, **UNIT)
    factor = np.ones(160)
    factor[13 * 8 + 5] = 1.7
    assert 13 in representatives(factor, layout, 4)
    assert representatives(np.ones(160), layout, 4).tolist() == [0]
    first = replace(layout, placement="replica_first")
    assert (13 * 8 + 5) % 20 in representatives(factor, first, 4)


def test_groups_are_those_of_the_layout() -> None:
    layout = Layout(unit=8, replicas=3, shard_degree=4, graph_degree=2, expert_degree=8)
    numbers = represented_groups(layout, 3)
    for axis, found in numbers.items():
        groups = layout.groups(axis)  # type: ignore[arg-type]
        mine = {tuple(np.flatnonzero(found == number)) for number in np.unique(found)}
        assert mine == {tuple(group) for group in groups}, axis


def test_sizes_of_a_model() -> None:
    model, layout = preset("matris-moe-l"), Layout(replicas=2, **UNIT)
    sizes = step_sizes(model, MEAN_CONFIGURATION, layout, flops_per_s=1e13)
    everything = sizes.num_blocks * (8 * sizes.gradient_bytes + 8 * sizes.expert_gradient_bytes)
    assert everything == pytest.approx(11.5e9 * 4, rel=0.05)
    assert sizes.compute_s["BF"] == pytest.approx(2 * sizes.compute_s["FE"])
    with pytest.raises(UserError, match="mixture of experts"):
        step_sizes(preset("matris-6m"), MEAN_CONFIGURATION, layout, flops_per_s=1e13)


def test_a_job_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="5632"):
        small_step(replicas=5633)
    with pytest.raises(UserError, match="do not fill nodes"):
        training_step_collectives(load_machine("lineshine"), Layout(replicas=1, **UNIT), SIZES)


def test_a_program_reaches_all_it_waits_for() -> None:
    program = step_program(SIZES, Layout(replicas=2, **UNIT), lambda axis, collective, size: 1.0)
    for number, operation in enumerate(program):
        assert all(before < number for before in operation.after)
    last = program[-1]
    assert last.name == "optimizer"
    names = {program[before].name for before in last.after}
    assert {f"BE {block} sum gradients" for block in (0, 1)} <= names
