"""Where the results come from: each required field with all its values, and the factors with their levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from reports import values
from reports.campaign import Campaign
from reports.document import Block, Column, Heading, Section, Table, Text, Tone, Value
from reports.samples import provenance_gaps
from reports.wording import count_of, plain
from scaling_studies.provenance import MAY_BE_EMPTY, MEANINGS
from scaling_studies.records import Record

SHOWN_VALUES = 3  # of a field that differs, before the rest is counted
SHOWN_CHARACTERS = 400  # of one value
PER_JOB = ("start", "end", "job_id")  # differ from job to job by their nature: shown by range
SHOWN_LEVELS, LEVEL_CHARACTERS = 8, 120  # of a factor
CONTROLLED = ("mode", "ranks", "layout", "nodes", "model", "dtype", "machine", "executor")  # by the study
UNCONTROLLED = (
    "host", "node_list", "code_revision", "code_version", "library_versions", "operating_system", "clocks", "driver",
    "devices", "environment",
)  # fmt: skip


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section; of a predicted campaign, what the predictions come from."""
    jobs = [job for view in campaign.measured_views for point in view.points for job in point.jobs]
    blocks: list[Block] = []
    if jobs:
        blocks += [_words(jobs), _fields(jobs), Heading(text="Factors and their levels"), _factors(jobs)]
    predictions = [record for record in campaign.records if record.source == "predicted"]
    if predictions:
        blocks += [Heading(text="Predictions"), _predictions(predictions)]
    if not blocks:
        blocks.append(Text(text="Nothing was measured or predicted, so there is none: n/a."))
    return (Section(id="provenance", title="Provenance", short="Provenance", blocks=tuple(blocks)),)


def _words(jobs: Sequence[Record]) -> Text:
    gaps = Counter(name for own in provenance_gaps(jobs) for name in own)
    if not gaps:
        return Text(text=f"Every required field is on record for all of the {count_of(len(jobs), 'job')} that count.")
    listed = ", ".join(f"{name} ({count_of(number, 'job')})" for name, number in gaps.items())
    return Text(text=f"Not recorded, so those jobs cannot be reproduced from this report: {listed}.", style="warning")


def _fields(jobs: Sequence[Record]) -> Table:
    """Required fields first, then what else was kept; each with its different values."""
    others = dict.fromkeys(name for job in jobs for name in job.provenance if name not in MEANINGS)
    rows = []
    for name in (*MEANINGS, *others):
        found = texts_of(name, jobs)
        parts = _differing_parts([job.provenance.get(name) for job in jobs])
        rows.append((name.replace("_", " "), parts or _shown(name, found), values.count(len(set(found))),
                     MEANINGS.get(name, "")))  # fmt: skip
    columns = (Column(name="field"), Column(name="value"), Column(name="different values", numeric=True),
               Column(name="what it is"))  # fmt: skip
    return Table(name="provenance", columns=columns, rows=tuple(rows), folded=True,
                 caption="Provenance of the jobs that count; a field that differs shows its values.")  # fmt: skip


def _differing_parts(found: Sequence[object]) -> str:
    """Of tables that differ, like resolved configurations, the settings that do; empty for other values."""
    distinct = list({repr(value): value for value in found}.values())
    tables = [_flat(value) for value in distinct if isinstance(value, Mapping)]
    if len(tables) < 2 or len(tables) < len(distinct):
        return ""
    names = list(dict.fromkeys(name for table in tables for name in table))
    levels = {name: list(dict.fromkeys(table.get(name, "not set") for table in tables)) for name in names}
    parts = [f"{name}: {_short(' | '.join(own), LEVEL_CHARACTERS)}" for name, own in levels.items() if len(own) > 1]
    return f"differs in {'; '.join(parts)} ({count_of(len(names) - len(parts), 'setting')} the same)"


def _flat(value: Mapping[str, object], above: str = "") -> dict[str, str]:
    """Settings of nested tables by their dotted names."""
    found: dict[str, str] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{above}{name}.") if isinstance(inner, Mapping) else {f"{above}{name}": plain(inner)}
    return found


def texts_of(name: str, jobs: Sequence[Record]) -> list[str]:
    """A field of each job as people read it: "none" where that is known, "n/a" where nothing is."""
    known: dict[str, str] = {}
    found = []
    for job in jobs:
        value = job.provenance.get(name)
        key = repr(value)
        if key not in known:
            known[key] = "none" if name in MAY_BE_EMPTY and value is not None and not value else plain(value)
        found.append(known[key])
    return found


def _shown(name: str, found: Sequence[str]) -> str:
    """All values of a field: a range for those that differ by nature, else the most frequent ones with their number."""
    counted = Counter(found)
    if name in PER_JOB and len(counted) > 1:
        return f"{min(found)} to {max(found)}"
    parts = [
        _short(value) if len(counted) == 1 else f"{_short(value)} ({count_of(number, 'job')})"
        for value, number in counted.most_common(SHOWN_VALUES)
    ]
    rest = len(counted) - SHOWN_VALUES
    return " | ".join(parts) + (f" | and {rest:,} more" if rest > 0 else "")


def _short(text: str, most: int = SHOWN_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _factors(jobs: Sequence[Record]) -> Table:
    """What can change a time: the same in all jobs, varied by the studies, or differing by itself."""
    rows = [_factor(name, [plain(getattr(job, name)) for job in jobs], controlled=True) for name in CONTROLLED]
    rows.append(_factor("structures in a step", [f"{job.structures}" for job in jobs], controlled=True))
    rows += [_factor(name, texts_of(name, jobs), controlled=False) for name in UNCONTROLLED]
    columns = (Column(name="factor"), Column(name="levels", numeric=True), Column(name="kind"),
               Column(name="values"))  # fmt: skip
    return Table(name="factors", columns=columns, rows=tuple(rows),
                 caption="What may change a time, and whether it was constant, varied on purpose or differed.",
                 note="Differed: it was not controlled, so part of the spread of jobs may come from it.")  # fmt: skip


def _factor(name: str, found: Sequence[str], *, controlled: bool) -> tuple[Value | str, ...]:
    levels = sorted(set(found), key=_order)
    kind = "constant" if len(levels) == 1 else "varied on purpose" if controlled else "differed"
    text = "; ".join(_short(level, LEVEL_CHARACTERS) for level in levels[:SHOWN_LEVELS]) + (
        "; ..." if len(levels) > SHOWN_LEVELS else ""
    )
    tone: Tone = "bad" if kind == "differed" else ""
    return (name.replace("_", " "), values.count(len(levels)), Value(text=kind, tone=tone), text)


def _order(text: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    try:
        return (0, float(text), "")
    except ValueError:
        return (1, 0.0, text)


def _predictions(records: Sequence[Record]) -> Table:
    """By what, for which machine and model each study was predicted."""
    rows: dict[tuple[str, ...], None] = {}
    for record in records:
        rows[(record.study, record.machine, record.model, record.dtype, record.method)] = None
    columns = tuple(Column(name=name) for name in ("study", "machine", "model", "dtype", "method"))
    caption = "What each study was predicted for, and by what."
    return Table(name="prediction-provenance", columns=columns, rows=tuple(rows), caption=caption)
