"""Losses and errors summed over ranks equal those of one process, however the batch is cut up.

Gradients are held to one process in tests/parallel/test_layouts.py.
"""

import json
from pathlib import Path

import pytest
from train_runs import launch, make_store

SCRIPT = Path(__file__).with_name("losses_on_ranks.py")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("losses") / "ten.store")
    done = launch(2, str(SCRIPT), str(store.path))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_ranks_were_really_started(measured):
    assert (measured["world_size"], measured["launcher"], len(measured["ranks"])) == (2, "mpiexec", 2)


def test_losses_and_errors_equal_one_process(measured):
    """float64 sums in another order."""
    for results in measured["ranks"]:
        assert len(results) == 4
        for case, numbers in results.items():
            assert min(numbers["wanted"]) > 1e-4, case
            assert numbers["found"] == pytest.approx(numbers["wanted"], rel=1e-12), case


def test_the_cases_are_what_they_claim(measured):
    counts = [{case: numbers["micro_batches"] for case, numbers in results.items()} for results in measured["ranks"]]
    assert [count["empty rank"] for count in counts] == [1, 0]
    assert sum(count["micro-batches"] for count in counts) > 2
    assert [count["uneven"] for count in counts] == [1, 1]
    assert counts[0]["divided structures"] == counts[1]["divided structures"] > 1
