"""Seconds of computing: coefficients of rows equal the work itself, causes, rates that are missing, scaling."""

from dataclasses import replace

import numpy as np
import pytest

from janus.presets import preset
from perfmodel.compute_time import (
    COMPUTE_CAUSES,
    FEATURES,
    batch_seconds,
    compute_seconds,
    feature_costs,
    features_of,
    fresh_memory_bytes,
    loader_seconds,
    optimizer_seconds,
    row_matrix,
    scaled_rates,
    work_coefficients,
)
from perfmodel.machine import load_machine
from perfmodel.workload import PHASES, Counts, phase_work
from tests.host_machine import write_host

WHOLE = Counts(2, 64, 2726, 786, 8888)
PART = Counts(3, 40, 1500, 400, 5000, ghosts=17, shared_pairs=120, shared_bonded_pairs=30)
SPREAD = replace(PART, message_copies=2345.0, feature_copies=77.0, message_experts=5.5, feature_experts=3.0)


@pytest.fixture
def rates(tmp_path):
    return load_machine(write_host(tmp_path / "host.toml")).rates[0]


@pytest.mark.parametrize("name", ["matris-tiny", "matris-moe-tiny"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("counts", [WHOLE, PART, SPREAD], ids=["whole", "part", "spread"])
def test_work_is_affine_in_the_rows(name, recompute, counts):
    """The coefficients come from unit counts; any other counts must give what ``phase_work`` gives."""
    model = preset(name)
    rows = row_matrix(model, [counts])
    found = np.tensordot(rows, work_coefficients(model, dtype="float32", recompute=recompute), axes=1)[0]
    work = phase_work(model, counts, recompute=recompute, item_bytes=4)
    fresh = fresh_memory_bytes(model, counts, recompute=recompute, dtype="float32")
    for place, phase in enumerate(PHASES):
        expected = features_of(
            work[phase], fresh_bytes=fresh.get(phase, 0.0), batches={"FE": 1, "FF": 1}.get(phase, 0.5)
        )
        assert found[place] == pytest.approx(expected, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("name", ["matris-tiny", "matris-moe-tiny"])
def test_recomputed_blocks_touch_less_memory_anew(name):
    model = preset(name)
    plain, again = (fresh_memory_bytes(model, WHOLE, recompute=one, dtype="float32") for one in (False, True))
    assert 0 < again["FE"] < plain["FE"]
    assert 0 < again["FF"] < plain["FF"]
    assert plain["BF_BE"] == again["BF_BE"] == 0


def test_copies_elsewhere_keep_their_memory_elsewhere():
    model = preset("matris-moe-tiny")
    top_k = model.experts.top_k
    there = replace(WHOLE, message_copies=0.0, feature_copies=0.0)
    here = replace(WHOLE, message_copies=top_k * WHOLE.edges, feature_copies=top_k * WHOLE.atoms)
    bytes_of = [fresh_memory_bytes(model, one, recompute=False, dtype="float32")["FE"] for one in (there, WHOLE, here)]
    assert bytes_of[0] < bytes_of[1] == pytest.approx(bytes_of[2])


def test_an_empty_micro_batch_costs_its_launches_and_fixed_part(rates):
    empty = Counts(0, 0, 0, 0, 0)
    causes = dict(zip(COMPUTE_CAUSES, batch_seconds(
        preset("matris-tiny"), [empty], rates, dtype="float32", recompute=False
    )[0].sum(axis=0), strict=True))  # fmt: skip
    assert causes["launches"] > 0
    assert causes["batch"] == pytest.approx(3 * rates.batch_s)
    assert causes["operators"] == 0


def test_no_micro_batches_cost_nothing(rates):
    phases, causes = compute_seconds(preset("matris-tiny"), [], rates, dtype="float32", recompute=False)
    assert set(phases.values()) == set(causes.values()) == {0.0}


def test_every_feature_costs_its_rate_in_one_cause(rates):
    costs = feature_costs(rates, 4)
    assert costs.shape == (len(FEATURES), len(COMPUTE_CAUSES))
    assert ((costs > 0).sum(axis=1) == 1).all()
    assert costs[FEATURES.index("flops"), COMPUTE_CAUSES.index("products")] == 1 / rates.matmul_flops_per_s
    grouped = replace(rates, grouped_flops_per_s=1e9, grouped_call_s=3e-5, step_stretch=2.0)
    costs = feature_costs(grouped, 4)[:, COMPUTE_CAUSES.index("grouped products")]
    assert costs[FEATURES.index("grouped_flops")] == 2e-9
    assert costs[FEATURES.index("grouped_calls")] == 3e-5


def test_grouped_products_that_were_not_timed_cost_what_products_and_launches_do(rates):
    costs = feature_costs(rates, 4)[:, COMPUTE_CAUSES.index("grouped products")]
    assert costs[FEATURES.index("grouped_flops")] == 1 / rates.matmul_flops_per_s
    assert costs[FEATURES.index("grouped_calls")] == rates.op_s


def test_twice_the_ranks_on_the_same_cores_take_twice_as_long(rates):
    model = preset("matris-moe-tiny")
    alone = compute_seconds(model, [WHOLE], rates, dtype="float32", recompute=False)[0]
    shared = compute_seconds(model, [WHOLE], scaled_rates(rates, 2.0, 2), dtype="float32", recompute=False)[0]
    assert shared == pytest.approx({phase: 2 * seconds for phase, seconds in alone.items()})
    assert scaled_rates(rates, 2.0, 2).step_stretch == rates.step_stretch


def test_loader_and_optimizer(rates):
    assert loader_seconds([WHOLE, WHOLE], rates) == pytest.approx(2 * loader_seconds([WHOLE], rates))
    assert loader_seconds([WHOLE], rates, divided=True) > loader_seconds([WHOLE], rates)
    full = optimizer_seconds(1e6, 10, rates, dtype="float32")
    assert full == pytest.approx(12 * 4e6 / rates.optimizer_bytes_per_s + 10 * rates.optimizer_tensor_s)
    assert optimizer_seconds(1e6, 10, rates, dtype="float32", averages=False) < full
    assert optimizer_seconds(1e6, 10, rates, dtype="float32", clips=False) < full
    assert optimizer_seconds(5e5, 5, rates, dtype="float32") == pytest.approx(full / 2)
