"""Rows alive in a second-order step: the tables against the live tensors of real steps."""

from collections import Counter

import numpy as np
import pytest

from janus.config import ExpertConfig, ModelConfig
from perfmodel.live_rows import ROW_KINDS, live_rows, row_vector
from tests.perfmodel.live_tensors import distinct_batch, live_tensors
from tests.perfmodel.real_steps import counts_of

CUTOFFS = {"cutoff_angstrom": 4.2, "line_cutoff_angstrom": 3.0}
EXPERTS = ExpertConfig(num_experts=6, top_k=3, message_hidden=30, feature_hidden=26, num_shared_experts=2)
MODELS = {
    "matris": ModelConfig(num_blocks=2, width=20, num_radial=6, num_angular=5, **CUTOFFS),
    "compat": ModelConfig(num_blocks=2, width=20, num_radial=6, compat=True, **CUTOFFS),
    "moe": ModelConfig(family="matris-moe", num_blocks=2, width=20, num_heads=2, angle_width=14, num_radial=6,
                       num_angular=5, experts=EXPERTS, **CUTOFFS),
}  # fmt: skip


@pytest.fixture(scope="module", params=[(name, recompute) for name in MODELS for recompute in (False, True)], ids=str)
def case(request):
    """Model, whether it recomputes, its rows by kind, and the numbers per row that were alive."""
    name, recompute = request.param
    model = MODELS[name]
    batch = distinct_batch(model)
    vector = row_vector(model, counts_of(batch))
    rows = {kind: round(number) for kind, number in zip(ROW_KINDS, vector, strict=True) if number}
    return model, recompute, vector, live_tensors(model, batch, rows, recompute=recompute)


def _vector(numbers: Counter) -> np.ndarray:
    return np.array([numbers[kind] for kind in ROW_KINDS])


def test_what_fe_and_ff_keep_is_exact(case):
    """Every row kind, to the half number per row by which the tables round odd sizes; ``compat``: bytes to 5 %."""
    model, recompute, vector, found = case
    table = live_rows(model, recompute=recompute)
    for expected, measured in ((table.after_energies, found["FE"]), (table.after_forces, found["FF"])):
        there = vector > 0
        if model.compat:
            assert expected @ vector == pytest.approx(_vector(measured) @ vector, rel=0.05)
        else:
            np.testing.assert_allclose(expected[there], _vector(measured)[there], atol=0.5)


def test_peak_of_the_backward_is_near(case):
    """The moments are those of whole blocks; between them the peak lies within 5 % (seen: 3 %)."""
    model, recompute, vector, found = case
    predicted = float((live_rows(model, recompute=recompute).numbers @ vector).max())
    assert predicted == pytest.approx(float(_vector(found["peak"]) @ vector), rel=0.05)


def test_rows_of_ghosts_and_of_copies():
    model = MODELS["moe"]
    batch = counts_of(distinct_batch(model))
    vector = dict(zip(ROW_KINDS, row_vector(model, batch), strict=True))
    assert vector["message_copies"] == 3 * batch.edges
    assert vector["feature_copies"] == 3 * batch.atoms
    assert vector["edge_pairs"] == batch.edges / 2
    assert dict(zip(ROW_KINDS, row_vector(MODELS["matris"], batch), strict=True))["message_copies"] == 0
