"""Runs and questions: arithmetic of epochs and node-hours, what is wanted, and one sentence where nothing answers."""

import numpy as np
import pytest

from janus.errors import UserError
from perfmodel.questions import Goal, between, hours, keeps_to, node_numbers, objective, ranked, runs_of

NODES = np.array([1.0, 2.0, 4.0, 8.0])
STEP_S = np.array([8.0, 4.4, 2.4, 1.8])  # ever less efficient
BATCH = np.full(4, 10.0)
START_S = np.full(4, 100.0)


def runs(goal):
    return runs_of(goal, STEP_S, BATCH, NODES, START_S)


def test_a_run_is_start_up_and_steps():
    goal = Goal(num_structures=1005, epochs=2)
    assert runs(goal).num_steps.tolist() == [200.0] * 4, "floor of structures / batch, twice"
    assert runs(goal).run_s.tolist() == pytest.approx([1700.0, 980.0, 580.0, 460.0])
    assert runs(goal).node_s[3] == pytest.approx(8 * 460)
    assert Goal(num_structures=5).num_steps(BATCH).tolist() == [1.0] * 4, "an epoch has a step at least"
    assert Goal(num_structures=5, steps=7).num_steps(BATCH).tolist() == [7.0] * 4


@pytest.mark.parametrize(
    ("wanted", "best"),
    [
        ({}, 3), ({"prefer": "node-hours"}, 0), ({"deadline_s": 600}, 2), ({"deadline_s": 1e6}, 0),
        ({"deadline_s": 1000, "prefer": "node-hours"}, 1), ({"deadline_s": 1000, "prefer": "time"}, 3),
        ({"node_s": 2000}, 1), ({"node_s": 1800}, 0),
    ],
)  # fmt: skip
def test_what_is_wanted_decides(wanted, best):
    goal = Goal(num_structures=1000, epochs=2, **wanted)
    assert ranked(goal, runs(goal))[0] == best


def test_a_budget_alone_asks_how_many_epochs():
    goal = Goal(num_structures=1000, node_s=10_000)
    assert goal.open_ended
    allowed = runs(goal).epochs_allowed
    assert allowed[0] == pytest.approx((10_000 - 100) / 800)
    assert allowed[3] == pytest.approx((10_000 / 8 - 100) / 180)
    assert ranked(goal, runs(goal))[0] == np.argmax(allowed) == 0
    soon = Goal(num_structures=1000, node_s=10_000, deadline_s=2000)
    assert runs(soon).epochs_allowed == pytest.approx((np.minimum(2000, 10_000 / NODES) - 100) / (100 * STEP_S))
    assert keeps_to(Goal(num_structures=1000, node_s=700), runs(Goal(num_structures=1000, node_s=700))).tolist() == [
        True, True, True, False
    ]  # fmt: skip


def test_among_as_many_nodes_the_fastest():
    goal = Goal(num_structures=100, epochs=1, deadline_s=1e9)
    both = runs_of(goal, np.array([3.0, 2.0]), BATCH[:2], np.array([4.0, 4.0]), START_S[:2])
    assert ranked(goal, both).tolist() == [1, 0]
    assert np.ptp(objective(goal, both)) < 1, "never worth a node"


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"epochs": 2, "deadline_s": 200}, "2 epochs cannot be done in 3.33 min: the fastest candidate takes 7"),
        ({"epochs": 2, "node_s": 20}, "cannot be done for 0.00556 node-hours: the cheapest candidate takes 0.4"),
        ({"node_s": 50}, "ends before the first step on 1 node: give more node-hours"),
    ],
)
def test_what_cannot_be_done_names_the_nearest(wanted, sentence):
    goal = Goal(num_structures=1000, **wanted)
    with pytest.raises(UserError, match=sentence):
        ranked(goal, runs(goal))


def test_impossible_goals_are_refused():
    with pytest.raises(UserError, match="--epochs 1 and --steps 2 are both given"):
        Goal(num_structures=1, epochs=1, steps=2)
    with pytest.raises(UserError, match="--deadline-hours is -1"):
        Goal(num_structures=1, deadline_s=-1)


def test_numbers_of_nodes():
    assert node_numbers(3, 20) == (3, 4, 8, 16, 20)
    assert node_numbers(5, 5) == (5,)
    assert between(8, 16) == (9, 10, 11, 12, 13, 14, 15)
    assert between(64, 128) == (72, 80, 88, 96, 104, 112, 120)
    assert between(1, 2) == ()
    assert [hours(90), hours(600), hours(7300), hours(36e5)] == ["90 s", "10 min", "2.03 h", "1,000 h"]
