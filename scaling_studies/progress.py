"""Where a campaign stands, point by point, from its records alone. It runs, writes and prints nothing.

``janus study status`` and ``janus study watch`` show these rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from scaling_studies.records import DONE, JOB_SECONDS, MEASURED, OPEN_STATES, PREDICTED, RUNNING, Record

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class OpenAttempt:
    """An attempt that has not ended. age_s: since it began, or since it was submitted while it waits; None: n/a."""

    tag: str
    state: str
    job_id: str
    age_s: float | None


@dataclass(frozen=True, kw_only=True)
class PointProgress:
    """One point: good attempts and how many are wanted, attempts by state, what is in flight, what it cost so far.

    x: value of what the study scales (``scaled``). untimed: attempts that ran without a known duration or number of
    nodes; their cost is not in node_hours. last_failure: of the attempt that failed last, "" where none did;
    last_failed: its tag.
    """

    study: str
    mode: str
    scaled: str
    x: float
    ranks: int
    cell_id: str
    good: int
    wanted: int
    states: Mapping[str, int]
    in_flight: tuple[OpenAttempt, ...]
    node_hours: float
    untimed: int
    last_failure: str
    last_failed: str

    @property
    def is_complete(self) -> bool:
        return self.good >= self.wanted

    @property
    def failed(self) -> int:
        """Attempts that ended without counting."""
        return sum(number for state, number in self.states.items() if state not in (DONE, *OPEN_STATES))


def moment(text: str | None) -> datetime | None:
    """A time of a record as a point in time, UTC where it names no zone; None for what is missing or malformed."""
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


def seconds_between(begin: str | None, end: str | datetime | None) -> float | None:
    """Seconds from one time of a record to another; None where one is missing or the clock went backwards."""
    first, last = moment(begin), end if isinstance(end, datetime) else moment(end)
    if first is None or last is None or last < first:
        return None
    return (last - first).total_seconds()


def attempt_node_hours(record: Record, now: datetime) -> float | None:
    """Node-hours that an attempt has used: nodes times the time from its start to its end, or to ``now`` while it runs.

    0 for one that never started; None where the duration or the number of nodes is not known.
    """
    if record.started_at is None:
        return 0.0 if record.ended_at is None and record.state != DONE else _of_wall(record)
    duration_s = record.facts.get(JOB_SECONDS)  # by a clock that cannot be set
    if not isinstance(duration_s, int | float):
        duration_s = seconds_between(record.started_at, record.ended_at or (now if record.state == RUNNING else None))
    if duration_s is None or record.nodes is None:
        return None
    return record.nodes * duration_s / SECONDS_PER_HOUR


def _of_wall(record: Record) -> float | None:
    """Node-hours by the wall time of the process, for an attempt whose start is not on record."""
    if record.wall_s is None or record.nodes is None:
        return None
    return record.nodes * record.wall_s / SECONDS_PER_HOUR


def progress(
    records: Sequence[Record], *, now: datetime, wanted: Mapping[str, int] | None = None
) -> tuple[PointProgress, ...]:
    """A row for every cell that is to be measured, ordered by study and then by what it scales.

    wanted: cell id -> good attempts wanted, where a stop rule changed the declared number of repeats.
    A cell that was only predicted (no repeats planned) has no row. now: for the age of what is in flight.
    """
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        cells.setdefault((record.study, record.cell_id), []).append(record)
    studies = list(dict.fromkeys(study for study, _ in cells))
    rows = [
        _point(own, now, (wanted or {}).get(cell_id))
        for (_, cell_id), own in cells.items()
        if any(record.source == MEASURED or record.repeats_planned > 0 for record in own)
    ]
    return tuple(sorted(rows, key=lambda row: (studies.index(row.study), row.x, row.cell_id)))


def _point(own: Sequence[Record], now: datetime, wanted: int | None) -> PointProgress:
    attempts = [record for record in own if record.source == MEASURED]
    predictions = [record for record in own if record.source == PREDICTED]
    first = (predictions or attempts)[0]
    hours = [attempt_node_hours(record, now) for record in attempts]
    states = Counter(record.state for record in attempts)
    failures = [record for record in attempts if record.state not in (DONE, *OPEN_STATES)]
    failures.sort(key=lambda record: (_last_known_time(record), record.attempt))
    return PointProgress(
        study=first.study, mode=first.mode, scaled=first.scaled, x=first.x, ranks=first.ranks, cell_id=first.cell_id,
        good=states[DONE], wanted=max(record.repeats_planned for record in own) if wanted is None else wanted,
        states=dict(states), in_flight=tuple(_open(record, now) for record in attempts if record.state in OPEN_STATES),
        node_hours=sum(value for value in hours if value is not None), untimed=hours.count(None),
        last_failure=f"{failures[-1].state}: {failures[-1].reason}" if failures else "",
        last_failed=failures[-1].tag if failures else "",
    )  # fmt: skip


def _last_known_time(record: Record) -> str:
    """When an attempt ended; of one that left no end, when it was last heard of."""
    return record.ended_at or record.started_at or record.submitted_at or ""


def _open(record: Record, now: datetime) -> OpenAttempt:
    return OpenAttempt(
        tag=record.tag, state=record.state, job_id=record.job_id,
        age_s=seconds_between(record.started_at or record.submitted_at, now),
    )  # fmt: skip
