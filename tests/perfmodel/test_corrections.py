"""Corrections: what is fitted, when, to whom it applies, and that the file keeps it."""

from dataclasses import replace

import pytest

from janus.config import ModelConfig
from janus.errors import UserError
from perfmodel.corrections import (
    ANY_MODEL,
    MIN_SAMPLES,
    Corrections,
    Pair,
    fit_corrections,
    model_key,
    read_corrections,
    write_corrections,
)

NARROW, WIDE = ModelConfig(width=16), ModelConfig(width=32)


def pairs(model: ModelConfig, phase: str, ratios: list[float]) -> list[Pair]:
    return [Pair(model=model, phase=phase, predicted_s=0.1, measured_s=0.1 * ratio) for ratio in ratios]


def test_the_median_of_the_ratios_is_fitted_and_one_wild_step_does_not_move_it():
    found = fit_corrections(pairs(NARROW, "FE", [1.2, 1.19, 1.21, 1.2, 9.0]))
    assert found.factor(NARROW, "FE") == pytest.approx(1.2)
    correction = found.find(NARROW, "FE")
    assert correction is not None
    assert correction.samples == 5
    assert correction.quality == pytest.approx(0.01 / 2 / 1.2)


def test_a_model_of_its_own_comes_before_any_model_and_unknown_phases_stay_as_they_are():
    found = fit_corrections(pairs(NARROW, "FE", [1.5] * 5) + pairs(WIDE, "FF", [0.8] * 6))
    assert found.factor(NARROW, "FE") == pytest.approx(1.5)
    assert found.factor(WIDE, "FE") == pytest.approx(1.5), "no pairs of its own: those of any model"
    assert found.factor(NARROW, "FF") == pytest.approx(0.8)
    assert found.factor(NARROW, "sync") == 1.0
    both = fit_corrections(pairs(NARROW, "FE", [1.5] * 5) + pairs(WIDE, "FE", [1.1] * 7))
    assert (both.factor(NARROW, "FE"), both.factor(WIDE, "FE")) == (pytest.approx(1.5), pytest.approx(1.1))
    assert both.factor(replace(WIDE, num_blocks=9), "FE") == pytest.approx(1.1), "median of all twelve"


def test_too_few_pairs_and_phases_of_no_length_give_nothing():
    assert fit_corrections(pairs(NARROW, "FE", [2.0] * (MIN_SAMPLES - 1))).factors == {}
    nothing = [Pair(model=NARROW, phase="data", predicted_s=0.0, measured_s=1e-4) for _ in range(20)]
    assert fit_corrections(nothing).factor(NARROW, "data") == 1.0


def test_the_file_gives_back_what_was_written_and_belongs_to_its_machine(tmp_path):
    path = tmp_path / "kept" / "refit.json"
    found = fit_corrections(pairs(NARROW, "BF_BE", [1.1] * 5), machine="here", sources=["runs/first"])
    write_corrections(path, found)
    again = read_corrections(path)
    assert again == found
    assert {(model_key(NARROW), "BF_BE"), (ANY_MODEL, "BF_BE")} == set(again.factors)
    again.require_machine("here")
    with pytest.raises(UserError, match="fitted for machine 'here', the prediction is for 'there'"):
        again.require_machine("there")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not valid JSON"),
        ('{"schema": "janus.plan/1"}', "have schema 'janus.plan/1'"),
        ('{"schema": "janus.corrections/1", "machine": "m"}', "lack a field"),
        (
            '{"schema": "janus.corrections/1", "machine": "m", "date": "", "sources": [], "factors": '
            '{"any": {"FE": {"factor": -1, "quality": 0, "samples": 5}}}}',
            "a factor of -1.0",
        ),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_corrections(path)


def test_no_corrections_change_nothing():
    assert Corrections().factor(NARROW, "FE") == 1.0
