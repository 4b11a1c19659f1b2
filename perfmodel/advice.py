"""The plan in words: why this layout, what it costs, what lost and why, what would help, what is assumed.

It owns sentences and nothing else; numbers come from the plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from perfmodel.memory_tiers import place_in_tiers
from perfmodel.planner import Finalist, Other, Plan
from perfmodel.questions import hours
from perfmodel.search import describe
from perfmodel.sensitivity import Outcome

SMALL = 0.02  # of a step: causes below are not mentioned
MOST_HELPS = 3


def explanation(plan: Plan) -> list[str]:
    """Paragraphs, one string each."""
    parts = [answer(plan), _why(plan), _cost(plan), _memory(plan), *_lost(plan), *_sensitive(plan), _helps(plan)]
    return [part for part in (*parts, _assumed(plan)) if part]


def answer(plan: Plan) -> str:
    """The one sentence that answers the question."""
    chosen, goal = plan.chosen, plan.goal
    where = _where(plan)
    cost = f"{chosen.node_s / 3600:,.3g} node-hours"
    if goal.open_ended:
        epochs = chosen.num_steps / max(1, goal.num_structures // chosen.structures)
        budget = f"{(goal.node_s or 0) / 3600:,.6g} node-hours"
        return f"{budget} buy {epochs:,.3g} epochs on {where}, in {hours(chosen.run_s)}."
    if goal.deadline_s is not None and chosen.run_s > goal.deadline_s:
        return (
            f"{goal.words} in {hours(goal.deadline_s)}: {where} miss it, they take {hours(chosen.run_s)} for {cost}: "
            "allow more nodes or time."
        )
    if goal.deadline_s is not None:
        made = f"{goal.words} in {hours(goal.deadline_s)}: {where} make it in {hours(chosen.run_s)} for {cost}."
        return made + _cheapest(plan, goal.deadline_s)
    return f"{goal.words} on {where}: {hours(chosen.run_s)}, {cost}."


def _cheapest(plan: Plan, deadline_s: float) -> str:
    """The cheapest that makes the deadline, where it is another number of nodes."""
    making = [point for point in plan.front if point.run_s <= deadline_s]
    point = min(making, key=lambda one: one.node_s, default=None)
    if point is None or point.nodes == plan.chosen.nodes or point.node_s >= plan.chosen.node_s:
        return ""
    return f" Cheapest as searched: {point.nodes:,} nodes, {hours(point.run_s)}, {point.node_s / 3600:,.3g} node-hours."


def _where(plan: Plan) -> str:
    chosen = plan.chosen
    ranks = f"{chosen.layout.world_size:,} ranks"
    if plan.machine.is_calibrated_host:
        return f"{ranks} of {plan.machine.name}"
    return f"{chosen.nodes:,} nodes ({ranks}) of {plan.machine.name}"


def _why(plan: Plan) -> str:
    chosen = plan.chosen
    pieces = f"{chosen.micro_batches:.3g} micro-batch" + ("es" if chosen.micro_batches != 1 else "")
    return (
        f"Chosen: {chosen.words}, {chosen.structures:,} structures per step, {pieces}; "
        f"{chosen.verdict.removeprefix('chosen: ')}, of {plan.found.considered:,} candidates, {len(plan.found):,} of "
        f"which fit in memory; {len(plan.finalists)} were worked out in full and by discrete events."
    )


def _cost(plan: Plan) -> str:
    prediction = plan.chosen.prediction
    causes = sorted(prediction.cause_s.items(), key=lambda item: -item[1])
    said = [f"{cause} {100 * value / prediction.step_s:.0f} %" for cause, value in causes
            if value > SMALL * prediction.step_s]  # fmt: skip
    start = "n/a" if plan.start_up_s is None else hours(plan.start_up_s)
    return (
        f"A step takes {hours(prediction.step_s)} by formulas, {hours(plan.chosen.events_step_s)} by discrete events: "
        f"{', '.join(said)}. Start-up: {start}."
    )


def _memory(plan: Plan) -> str:
    chosen = plan.chosen
    causes = sorted(chosen.memory.cause_bytes.items(), key=lambda item: -item[1])
    said = [f"{cause} {value / 1e9:.2f}" for cause, value in causes if value > SMALL * chosen.memory.total_bytes]
    return (
        f"Memory: {chosen.memory_bytes / 1e9:.2f} GB of {plan.memory_limit_bytes / 1e9:.2f} GB per rank, most at "
        f"'{chosen.memory.peak}' ({', '.join(said)} GB)." + _second_memory(plan)
    )


def _second_memory(plan: Plan) -> str:
    if not plan.machine.second_memory_bytes_per_node:
        return ""
    tiers = place_in_tiers(plan.chosen.memory, plan.machine)
    if not tiers.second_bytes:
        return " All of it lies in the first memory."
    what = ", ".join(f"{cause} {size / 1e9:.2f}" for cause, size in tiers.second.items())
    return f" {tiers.second_bytes / 1e9:.2f} GB of it lie in the second memory ({what} GB)."


def _lost(plan: Plan) -> list[str]:
    rest = [one for one in plan.finalists if one is not plan.chosen][:3]
    lines = [f"Lost: {one.words}: {one.verdict}." for one in rest]
    every: tuple[Finalist | Other, ...] = (*plan.finalists, *plan.others)
    plain = next((one for one in every if one.layout.is_pure_data_parallel), None)
    if plain is not None and plain not in rest and plain is not plan.chosen:
        lines.append(f"Plain data parallelism: {plain.verdict}.")
    elif plain is None and not plan.chosen.layout.is_pure_data_parallel:
        lines.append(_plain_missing(plan))
    return lines


def _plain_missing(plan: Plan) -> str:
    fits = (plan.found.candidates["unit"] == 1).any()
    return "Plain data parallelism is far slower." if fits else "Plain data parallelism does not fit in memory."


def _sensitive(plan: Plan) -> list[str]:
    fragile = [one for one in plan.sensitivity if not one.still_best]
    if not fragile:
        tried = len({one.constant for one in plan.sensitivity})
        return [f"The choice stays the best (within 1 %) when any one of {tried} constants is off by its uncertainty."]
    return [
        f"If {one.constant} is {100 * abs(one.change):.0f} % {'lower' if one.change < 0 else 'higher'} "
        f"({one.source}), {_better(plan, one)}."
        for one in fragile[:4]
    ]


def _better(plan: Plan, one: Outcome) -> str:
    if one.best == plan.chosen.number:
        return "nothing that was searched on as many ranks keeps to the deadline or the budget"
    return f"{describe(plan.found.candidates, one.best)} is better by {_percent(one.loss)}"


def _percent(loss: float) -> str:
    return f"{100 * loss:.1f} %" if loss < 100 else "far"


def _helps(plan: Plan) -> str:
    step_s = plan.chosen.prediction.step_s
    useful = [(what, 1 - seconds / step_s) for what, seconds in plan.helps if 1 - seconds / step_s > SMALL / 2]
    said = [f"{what} (-{100 * gain:.0f} %)" for what, gain in useful[:MOST_HELPS]]
    return f"What would help most: {'; '.join(said)}." if said else ""


def _assumed(plan: Plan) -> str:
    lines: Sequence[str] = plan.notes
    number = len(plan.machine.assumptions())
    words = f"{number} numbers of the machine file are assumed, not published. " if number else ""
    return words + "; ".join(lines) + ("." if lines else "")
