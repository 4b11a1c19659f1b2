"""Whether a finished attempt may count: every reason why not, in words for people.

It owns the checks of what ran against what the cell asks for; it does not own missing provenance (``provenance``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from janus.errors import UserError
from janus.train.config import train_config
from scaling_studies.attempt_files import AttemptFiles, end_before_begin, has_possible_times, rank_counts
from scaling_studies.cells import Cell


def invalid_reasons(cell: Cell, files: AttemptFiles) -> list[str]:
    """Why a finished run may not count as an attempt at this cell; empty when it may."""
    run, steps = files.run, files.steps
    wanted = cell.study.warm_up_steps + cell.study.steps
    reasons = []
    if run.get("world_size") != cell.ranks:
        reasons.append(f"ran on {run.get('world_size')} ranks, the cell has {cell.ranks}")
    if len(steps) != wanted:
        reasons.append(f"recorded {len(steps)} steps, the study asks for {wanted}")
    reasons += _code_reasons(cell, files) + _setting_reasons(cell, files.settings)
    for check in (_work_reason, _loss_reason, _time_reason):
        reasons += [reason for step in steps if (reason := check(cell, step))][:1]  # the first step that is off
    if cell.ranks > 1 and not _num_collectives(run):
        reasons.append(f"no collective on record: {cell.ranks} ranks cannot have trained together")
    if end_before_begin(files.begin, files.end):
        reasons.append(
            f"its end ({files.end['utc']}) lies before its begin ({files.begin['utc']}): the clock of "
            f"{files.end.get('host')} went backwards"
        )
    return reasons


def _code_reasons(cell: Cell, files: AttemptFiles) -> list[str]:
    """The code that ran is that of the cell, and it was the same when the job began."""
    ran = (files.run.get("provenance") or {}).get("code_version")
    began = (files.begin.get("code") or {}).get("version")
    if cell.code_version and ran != cell.code_version:
        return [f"ran code version {ran}, the cell has {cell.code_version}"]
    if began is not None and ran != began:
        return [f"ran code version {ran}, but the job began with {began}: the code was changed while it started"]
    return []


def _setting_reasons(cell: Cell, settings: Mapping[str, Any]) -> list[str]:
    """The first setting of the run that is not what the cell says, in words."""
    try:
        config = train_config(settings)
    except UserError as error:
        return [f"config.toml of the run cannot be used ({error})"]
    if config.model != cell.study.model_config:
        return [f"the run trained another model than {cell.study.model}"]
    for section, values in cell.train_settings.items():
        for name, value in values.items():
            found = getattr(getattr(config, section), name)
            if found != value:
                return [f"setting {section}.{name} of the run is {found}, the cell has {value}"]
    return []


def _work_reason(cell: Cell, step: Mapping[str, Any]) -> str:
    """The work of the ranks, or of the ranks that share a batch together, is what was planned."""
    found = _work_of_groups(cell, [entry.work for entry in rank_counts(step)])
    planned = _work_of_groups(cell, [entry.work for entry in cell.counts_per_rank])
    if found is None or planned is None:
        return f"step {step['step']} reports {len(step['ranks'])} ranks, the cell has {cell.ranks}"
    tolerance = cell.study.work_tolerance
    for work, plan in zip(found, planned, strict=True):
        if not abs(work - plan) <= tolerance * plan:  # so that a work that is no number does not pass
            return (
                f"work of a rank in step {step['step']} is {work}, planned {plan}: "
                f"not constant within {100 * tolerance:g} %"
            )
    return ""


def _work_of_groups(cell: Cell, works: Sequence[int]) -> list[int] | None:
    """Edges plus angles of every group of ranks that divides batches among itself, sorted; None: other ranks."""
    if len(works) != cell.ranks:
        return None
    groups: dict[int, int] = {}
    for rank, work in enumerate(works):
        group = cell.layout.coordinates(rank).data
        groups[group] = groups.get(group, 0) + work
    return sorted(groups.values())


def _loss_reason(cell: Cell, step: Mapping[str, Any]) -> str:
    loss = step.get("loss")
    is_finite = isinstance(loss, int | float) and math.isfinite(loss)
    return "" if is_finite else f"loss of step {step['step']} is not finite"


def _time_reason(cell: Cell, step: Mapping[str, Any]) -> str:
    if has_possible_times(step):
        return ""
    times = ", ".join(f"{entry['step_s']:g}" for entry in step["ranks"])
    return f"step {step['step']} took {times} s on its ranks: no step takes that, the clock is broken"


def _num_collectives(run: Mapping[str, Any]) -> int:
    """Calls of collectives in the last step, over all ranks."""
    return sum(int(row["calls"]) for rows in run.get("sent_last_step") or () for row in rows)
