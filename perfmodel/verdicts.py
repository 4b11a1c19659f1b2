"""Verdicts of a plan in words: why the chosen candidate was taken, and how far another one is behind.

It owns these words. It does not own the choice (``planner``) nor the explanation of the whole plan (``advice``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfmodel.questions import Goal

if TYPE_CHECKING:
    from perfmodel.planner import Finalist

MISSED = "worked out in full it does not keep to the deadline or the budget"


def reason(goal: Goal, *, kept: bool) -> str:
    """Why the chosen one was taken. kept: whether it keeps to the goal once worked out in full."""
    prefer = goal.prefer
    if prefer is None:
        prefer = "nodes" if goal.deadline_s is not None and not goal.open_ended else "time"
    if goal.open_ended and goal.prefer is None:
        return "the most epochs within the budget"
    what = {"time": "the fastest", "node-hours": "the cheapest in node-hours", "nodes": "the one of fewest nodes"}[
        prefer
    ]
    if goal.deadline_s is None and goal.node_s is None:
        return f"{what} that fits"
    return f"{what} that fits and keeps to deadline and budget" if kept else f"{what} that fits; {MISSED}"


def compared(one: Finalist, best: Finalist) -> str:
    """Why a finalist lost: how much slower or dearer, and which cause costs it the most over the chosen one."""
    words = slower(one.events_step_s / one.structures, best.events_step_s / best.structures)
    if one.nodes != best.nodes:
        words += f" on {one.nodes} nodes"
    scale = best.structures / one.structures
    mine, others = one.prediction.cause_s, best.prediction.cause_s
    worst = max(mine, key=lambda cause: scale * mine[cause] - others.get(cause, 0.0))
    extra_s = scale * mine[worst] - others.get(worst, 0.0)
    how = "recomputed " if one.recompute and not best.recompute else ""
    return words + (f", mostly {how}{worst} (+{1e3 * extra_s:.3g} ms)" if extra_s > 0 else "")


def slower(one_s: float, best_s: float) -> str:
    """The ratio of two times in words."""
    ratio = one_s / best_s - 1
    return f"slower by {100 * ratio:.1f} %" if ratio >= 0 else f"faster by {-100 * ratio:.1f} % per structure"
