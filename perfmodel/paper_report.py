"""The published table beside the model: rows, bands, the found assignment, identities, deciding unknowns, conflicts.

It owns putting these together as plain values. It does not own any of them (``paper``, ``paper_identities``,
``paper_model``, ``paper_search``) nor how they are printed (``janus/cli/validate_paper.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from perfmodel.machine import Machine
from perfmodel.mean_configurations import MEAN_CONFIGURATION
from perfmodel.paper import ROW_KEYS, ROWS, Published, published
from perfmodel.paper_identities import Formulas, Identity, across_machines, identities
from perfmodel.paper_model import MODELS, WORDS_OF_LACKS, PaperModel, one_assignment
from perfmodel.paper_search import (
    GENERATIONS,
    RESTARTS,
    Assignments,
    Found,
    Space,
    Survey,
    conflicts,
    search,
    survey,
)
from perfmodel.paper_unknowns import BEYOND, LARGEST_BATCH, unknowns_of

TOLERANCE = 0.10
LIMITS = {"memory_over_available": 1.0, "units_over_batch": 1.0}  # of an assignment that makes sense
MOST_DECIDING = 4
SAMPLES_OF_ACCEPTED = 400


def machine_report(
    machine: Machine, *, search_seconds: float = 30.0, seed: int = 0, rows: Mapping[str, Published] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Everything about one of the paper's machines. rows: default the published ones.

    search_seconds: of computing, at most, for each search; 0: none. advance: called once a generation
    (``num_generations`` of them at most). Raises UserError for a machine that is not in the paper.
    """
    rows = rows or published(machine.name)
    model, space = PaperModel(machine), unknowns_of(machine)
    seen = survey(space, model, ROW_KEYS, seed=seed)
    report: dict[str, Any] = {
        "machine": machine.name,
        "unknowns": [_unknown(one) for one in space.unknowns],
        "identities": [_identity(one) for one in identities(machine, rows, Formulas.of(MEAN_CONFIGURATION))],
    }  # fmt: skip
    found = None
    if search_seconds > 0:
        space, found = _searched(machine, model, rows, search_seconds, seed, advance)
        report["search"] = _found(space, model, found)
        report["search"]["within_reported_batch"] = space.unknowns[0].high <= LARGEST_BATCH
        if not found.exists:
            left_out = conflicts(space, model, _targets(rows), limits=LIMITS, seed=seed, limit_s=search_seconds,
                                 advance=advance)  # fmt: skip
            report["search"]["conflicts"] = left_out
    report["rows"] = [_row(one.key, rows, seen, found) for one in ROWS]
    report["worth"] = _worth(model, space, found)
    return report


def num_generations() -> int:
    """Calls of ``advance`` for one machine whose first search finds an assignment."""
    return GENERATIONS * RESTARTS


def across() -> dict[str, Any]:
    """The identity between the two machines."""
    return _identity(across_machines(published))


def _targets(rows: Mapping[str, Published]) -> dict[str, float]:
    return {key: rows[key].value for key in ROW_KEYS}


def _searched(
    machine: Machine, model: PaperModel, rows: Mapping[str, Published], seconds: float, seed: int,
    advance: Callable[[], None],
) -> tuple[Space, Found]:  # fmt: skip
    """Within the reported batch; where no assignment is there, beyond it."""
    for largest in (LARGEST_BATCH, BEYOND * LARGEST_BATCH):
        space = unknowns_of(machine, largest_batch=largest)
        found = search(space, model, _targets(rows), limits=LIMITS, tolerance=TOLERANCE, seed=seed, limit_s=seconds,
                       advance=advance)  # fmt: skip
        if found.exists:
            break
    return space, found


def _unknown(one: Any) -> dict[str, Any]:
    return {
        "key": one.key, "label": one.label, "unit": one.unit, "default": one.value, "default_in_words":
        one.say(one.value), "low": one.low, "high": one.high, "scale": one.scale, "choices": list(one.choices),
        "words": list(one.words), "reason": one.reason,
    }  # fmt: skip


def _identity(one: Identity) -> dict[str, Any]:
    return {
        "name": one.name, "verdict": one.verdict, "relation": one.relation, "unit": one.unit, "gap": one.gap,
        "left": one.left, "left_low": one.left_value.low, "left_high": one.left_value.high,
        "right": one.right, "right_low": one.right_value.low, "right_high": one.right_value.high, "note": one.note,
    }  # fmt: skip


def _row(key: str, rows: Mapping[str, Published], seen: Survey, found: Found | None) -> dict[str, Any]:
    number, band = rows[key], seen.bands[key]
    label = next(row for row in ROWS if row.key == key)
    return {
        "key": key, "label": label.label, "unit": label.unit, "published": number.value, "printed": number.printed,
        "tag": number.tag, "source": number.source, "note": number.note,
        "at_defaults": band.default, "error_at_defaults": band.default / number.value - 1,
        "low": band.low, "high": band.high, "low_5": band.low_5, "high_95": band.high_95,
        "in_band": band.low <= number.value <= band.high,
        "found": None if found is None else found.rows[key],
        "error_of_found": None if found is None else found.rows[key] / number.value - 1,
        "deciding": [{"key": one.key, "swing": one.swing, "correlation": one.correlation}
                     for one in seen.of_row(key, MOST_DECIDING)],
    }  # fmt: skip


def _found(space: Space, model: PaperModel, found: Found) -> dict[str, Any]:
    accepted = space.assignments(found.accepted) if len(found.accepted) else {}
    values = {}
    for one in space.unknowns:
        value = found.values[one.key]
        entry: dict[str, Any] = {"value": value, "in_words": one.say(value), "moved": found.moved.get(one.key, 0.0)}
        if accepted:
            seen = accepted[one.key]
            entry |= {"accepted_low": float(seen.min()), "accepted_high": float(seen.max())}
            if one.scale == "choice":
                entry["accepted_choices"] = sorted(set(seen.tolist()))
        values[one.key] = entry
    return {
        "exists": found.exists, "tolerance": TOLERANCE, "worst_error": found.worst, "tried": found.tried,
        "accepted": len(found.accepted), "stopped_early": found.stopped_early, "values": values,
        "facts": model.facts(one_assignment(found.values)),
    }  # fmt: skip


def _worth(model: PaperModel, space: Space, found: Found | None) -> dict[str, Any]:
    """What each thing that the baseline lacks is worth, for M and L: at the defaults, found, and over the accepted."""
    default = space.assignments(space.defaults())
    result: dict[str, Any] = {}
    for size in MODELS:
        columns = {"at_defaults": model.worth(default, size)}
        if found is not None:
            columns["found"] = model.worth(one_assignment(found.values), size)
        many = model.worth(_some(space, found), size) if found is not None and len(found.accepted) else None
        result[size] = [
            {
                "key": key, "label": WORDS_OF_LACKS.get(key, "all of it: the speed-up"),
                **{name: float(column[key][0]) for name, column in columns.items()},
                **({} if many is None else {"low": float(many[key].min()), "high": float(many[key].max())}),
            }
            for key in columns["at_defaults"]
        ]  # fmt: skip
    return result


def _some(space: Space, found: Found) -> Assignments:
    """Some of the accepted assignments, evenly from all that were met."""
    count = min(len(found.accepted), SAMPLES_OF_ACCEPTED)
    return space.assignments(found.accepted[np.linspace(0, len(found.accepted) - 1, count).astype(np.int64)])
