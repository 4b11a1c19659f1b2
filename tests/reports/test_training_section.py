"""One training run beside the studies: values of its files, n/a for what they do not say."""

import pytest

from reports.sections import training
from reports.training import TrainingRun
from tests.record_sets import record
from tests.reports.blocks import campaign_of, picture_of, table_of, texts, words


def made(run, steps):
    return training.sections(campaign_of([record()], training=TrainingRun(run=run, steps=tuple(steps))))


def test_a_training_run_is_shown_with_its_loss_and_errors():
    steps = [
        {"step": step, "loss": 1.0 / (step + 1), "energy_mae_ev_per_atom": 0.02, "forces_mae_ev_per_angstrom": None}
        for step in range(40)
    ]
    run = {"world_size": 2, "parameters": 140271, "validation": {"forces": {"mae": 0.25}}, "wall_s": 12.0}
    sections = made(run, steps)
    rows = dict(texts(table_of(sections, "training-run")))
    assert rows["force error (mean absolute), structures kept apart"] == "250 meV/Å"
    assert rows["energy error (mean absolute), last batch"] == "20 meV/atom"
    assert rows["loss, first tenth"] == "0.5208"  # the mean of 1, 1/2, 1/3 and 1/4
    assert rows["loss, last tenth"] == "0.026"  # of 1/37 ... 1/40
    assert (rows["structures trained on"], rows["step time, measured (median)"]) == ("n/a", "n/a")
    assert "not a point of the studies" in words(sections)
    data = picture_of(sections, "training-loss").data
    assert [cell.number for cell in data.rows[3]] == pytest.approx([4, 0.25, 0.5 * (1 / 3 + 1 / 4)])


def test_a_planned_run_shows_its_prediction_beside_its_step_time():
    steps = [{"step": step, "loss": 1.0, "step_s": 9.0 if step == 0 else 0.5} for step in range(10)]
    rows = dict(texts(table_of(made({"planned": {"step_s": 0.4}}, steps), "training-run")))
    assert rows["step time, measured (median)"] == "500 ms"
    assert rows["step time, predicted by the plan"] == "400 ms"
    assert rows["error of the plan"] == "−20.0 %"


def test_without_a_run_or_without_a_loss_there_is_no_section():
    assert training.sections(campaign_of([record()])) == ()
    assert made({}, [{"step": 0, "loss": None}]) == ()
