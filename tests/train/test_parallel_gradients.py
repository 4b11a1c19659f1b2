"""Gradients of several ranks equal those of one process in float64, however the batch is cut up."""

import json
from pathlib import Path

import pytest
from train_runs import launch, make_store

SCRIPT = Path(__file__).with_name("gradients_on_ranks.py")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("gradients") / "ten.store")
    done = launch(2, str(SCRIPT), str(store.path))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_ranks_were_really_started(measured):
    assert (measured["world_size"], measured["launcher"], len(measured["ranks"])) == (2, "mpiexec", 2)


def test_every_gradient_and_the_loss_equal_one_process(measured):
    """Tolerance: float64 sums in another order, 1e-10 of each tensor's norm (seen: 1e-11, gate tables under recompute,
    whose gradients are differences of nearly equal terms); a wrong adjoint shows as 0.1 and more.
    """
    for results in measured["ranks"]:
        assert len(results) == 8
        for case, numbers in results.items():
            assert numbers["norm"] > 1e-3, case
            assert numbers["gradient"] < 1e-10, (case, numbers)
            assert numbers["loss"] < 1e-12, (case, numbers)


def test_the_cases_are_what_they_claim(measured):
    results = measured["ranks"][0]
    assert results["matris: empty rank"]["micro_batches"] == [1, 0]
    assert sum(results["matris: micro-batches"]["micro_batches"]) > 2
    assert results["matris-moe: uneven"]["micro_batches"] == [1, 1]
