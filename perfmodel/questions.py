"""What a plan is asked for: a run of so many epochs or steps, by when, for how much; and which candidates answer it.

It owns the arithmetic of runs (steps, seconds, node-hours) and the choice among priced candidates. It does not own
prices (``search``) nor words for people (``advice``).

A run takes start-up + steps x step seconds on its nodes; an epoch has floor(structures / batch) steps, at least one, as
``janus.train.config.RunConfig.num_steps`` says. Not in it: queues, checkpoints, validation, failures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Prefer = Literal["time", "node-hours", "nodes"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """num_structures: of an epoch; epochs or steps of the run (neither: one epoch is what is priced, and with a budget
    the run is as long as the budget allows); deadline_s: wall clock, start-up included; node_s: budget.

    prefer: among candidates that keep to all this; None: fewest nodes under a deadline, else the least time (under a
    budget alone: most epochs). Raises UserError for impossible numbers.
    """

    num_structures: int
    epochs: float | None = None
    steps: int | None = None
    deadline_s: float | None = None
    node_s: float | None = None
    prefer: Prefer | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UserError(f"--epochs {self.epochs:g} and --steps {self.steps} are both given: keep one of them")
        for name, value in (("--epochs", self.epochs), ("--steps", self.steps), ("--deadline-hours", self.deadline_s),
                            ("--node-hours", self.node_s)):  # fmt: skip
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value:g}: it must be above 0")

    @property
    def open_ended(self) -> bool:
        """Whether the length of the run is what is asked for."""
        return self.epochs is None and self.steps is None and self.node_s is not None

    @property
    def words(self) -> str:
        """The run in words."""
        if self.steps is not None:
            return f"{self.steps:,} steps"
        epochs = 1.0 if self.epochs is None else self.epochs
        return f"{epochs:g} epoch" + ("s" if epochs != 1 else "")

    def num_steps(self, structures: Floats) -> Floats:
        """Steps of the run by structures per step [C]."""
        if self.steps is not None:
            return np.full(len(structures), float(self.steps))
        return (1.0 if self.epochs is None else self.epochs) * np.maximum(1.0, self.num_structures // structures)


@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """The run on every candidate [C]: steps, seconds with start-up (0 where it is n/a), nodes, and epochs that budget
    and deadline allow (infinite without either).
    """

    num_steps: Floats
    run_s: Floats
    nodes: Floats
    epochs_allowed: Floats

    @property
    def node_s(self) -> Floats:
        return self.run_s * self.nodes


def runs_of(goal: Goal, step_s: Floats, structures: Floats, nodes: Floats, start_up_s: Floats) -> Runs:
    """The run of every candidate. All arrays [C]."""
    steps = goal.num_steps(structures)
    epoch_s = np.maximum(1.0, goal.num_structures // structures) * step_s
    allowed_s = np.full(len(step_s), np.inf)
    if goal.node_s is not None:
        allowed_s = np.minimum(allowed_s, goal.node_s / nodes)
    if goal.deadline_s is not None:
        allowed_s = np.minimum(allowed_s, goal.deadline_s)
    return Runs(
        num_steps=steps, run_s=start_up_s + steps * step_s, nodes=nodes,
        epochs_allowed=np.maximum(allowed_s - start_up_s, 0.0) / epoch_s,
    )  # fmt: skip


def keeps_to(goal: Goal, runs: Runs) -> NDArray[np.bool_]:
    """Which candidates make the deadline and stay in the budget [C]."""
    kept = np.ones(len(runs.run_s), dtype=bool)
    if goal.open_ended:
        return runs.epochs_allowed > 0
    if goal.deadline_s is not None:
        kept &= runs.run_s <= goal.deadline_s
    if goal.node_s is not None:
        kept &= runs.node_s <= goal.node_s
    return kept


def objective(goal: Goal, runs: Runs) -> Floats:
    """What the goal wants least of, for every candidate [C]: lower is better."""
    prefer = goal.prefer
    if prefer is None and goal.open_ended:
        return -runs.epochs_allowed
    if prefer is None:
        prefer = "nodes" if goal.deadline_s is not None else "time"
    if prefer == "node-hours":
        return runs.node_s
    if prefer == "nodes":  # among as many nodes the fastest
        return runs.nodes + runs.run_s / (1.0 + float(runs.run_s.max(initial=0.0)))
    return runs.run_s


def ranked(goal: Goal, runs: Runs) -> Ints:
    """Numbers of the candidates that keep to the goal, best first. Raises UserError where none does."""
    kept = np.flatnonzero(keeps_to(goal, runs))
    if not len(kept):
        raise UserError(none_keeps(goal, runs))
    value = objective(goal, runs)[kept]
    return np.asarray(kept[np.lexsort((runs.node_s[kept], runs.run_s[kept], value))])


def none_keeps(goal: Goal, runs: Runs) -> str:
    """Why no candidate keeps to the goal, and what the nearest one takes."""
    if goal.open_ended:
        cheapest = int(np.argmin(runs.nodes))
        return (
            f"the budget of {goal.node_s or 0:.3g} node-seconds ends before the first step on "
            f"{num_nodes(runs.nodes[cheapest])}: give more node-hours"
        )
    fastest, cheapest = int(np.argmin(runs.run_s)), int(np.argmin(runs.node_s))
    if goal.deadline_s is not None and runs.run_s[fastest] > goal.deadline_s:
        return (
            f"{goal.words} cannot be done in {hours(goal.deadline_s)}: the fastest candidate takes "
            f"{hours(float(runs.run_s[fastest]))} on {num_nodes(runs.nodes[fastest])}: allow more nodes or time"
        )
    return (
        f"{goal.words} cannot be done for {(goal.node_s or 0) / 3600:.3g} node-hours"
        + (f" in {hours(goal.deadline_s)}" if goal.deadline_s is not None else "")
        + f": the cheapest candidate takes {runs.node_s[cheapest] / 3600:.3g} node-hours and "
        f"{hours(float(runs.run_s[cheapest]))} on {num_nodes(runs.nodes[cheapest])}: allow more of either"
    )


def num_nodes(number: float) -> str:
    """1 node, 2 nodes."""
    return f"{number:,.0f} node" + ("s" if number != 1 else "")


def hours(seconds: float) -> str:
    """A time in the unit that reads best."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:,.3g} h" if seconds < 1000 * 3600 else f"{seconds / 3600:,.0f} h"


def node_numbers(low: int, high: int) -> tuple[int, ...]:
    """Numbers of nodes tried first in a range: its ends and the powers of two between."""
    powers = [2**power for power in range(40) if low < 2**power < high]
    return tuple(sorted({low, *powers, high}))


def between(low: int, high: int, most: int = 7) -> tuple[int, ...]:
    """Numbers tried after it: evenly between two neighbours, rounded to multiples that divide well."""
    step = max(1, (high - low) // (most + 1))
    step = 2 ** int(np.log2(step))
    return tuple(number for number in range(low + step, high, step) if number % step == 0)[: 2 * most + 1]
