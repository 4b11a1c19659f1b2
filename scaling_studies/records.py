"""The one record schema, for measured and predicted results alike, and its files.

It owns what a record says and how it is written and read; it does not own how one is obtained (``local``,
``predicted``) nor what is computed from several (``statistics``, ``ratios``).

One JSON file per attempt, written atomically, schema version inside. A file that cannot be read back is refused by
name and leaves the others readable.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from janus.errors import UserError
from scaling_studies.atomic import write_atomically

SCHEMA = "janus.record/2"
MEASURED, PREDICTED = "measured", "predicted"
SOURCES = (MEASURED, PREDICTED)
MODES = ("weak", "strong", "throughput")
PLANNED, SUBMITTED, RUNNING = "PLANNED", "SUBMITTED", "RUNNING"
DONE, FAILED, OOM, TIMEOUT, INVALID = "DONE", "FAILED", "OOM", "TIMEOUT", "INVALID"
OPEN_STATES = (PLANNED, SUBMITTED, RUNNING)  # an attempt that has not ended; its file is replaced as it goes on
FINAL_STATES = (DONE, FAILED, OOM, TIMEOUT, INVALID)  # its file is never written again
STATES = OPEN_STATES + FINAL_STATES
SCALED = ("ranks", "structures_per_rank")  # what a study scales: throughput studies scale the second
RECORD_FOLDER = "records"
MEMORY_LIMIT = "memory limit of a rank, bytes"  # key among the facts of a prediction
STUDY_PLACE = "place of the study"  # another one: which of the predicted studies was named first, second ...
JOB_SECONDS = "job_s"  # key among the facts of an attempt: how long its job's script ran, launcher included
JSON_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "dict": (dict,), "tuple": (list,),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RankCounts:
    """What one rank processes in one step. edges: directed, pair cutoff; bonds: directed, line cutoff."""

    structures: int
    atoms: int
    edges: int
    bonds: int
    angles: int

    @property
    def work(self) -> int:
        """Edges plus angles, the measure by which batches are packed."""
        return self.edges + self.angles


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The ceiling a percentage refers to: of all the devices the cell may use together, never of one by default."""

    flops_per_s: float
    name: str
    dtype: str
    source: str

    def times(self, num_devices: int) -> Peak:
        """The peak of so many devices together, its name saying how many."""
        if num_devices < 1:
            raise ValueError(f"{num_devices} devices have no peak")
        name = f"{num_devices:,} x {self.name}" if num_devices > 1 else self.name
        return Peak(flops_per_s=self.flops_per_s * num_devices, name=name, dtype=self.dtype, source=self.source)


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """A measured or published limit of all the devices the cell uses together. unit: "FLOP/s" or "byte/s"."""

    value: float
    unit: str
    name: str
    dtype: str
    source: str


@dataclass(frozen=True, kw_only=True)
class PhaseWorkload:
    """What one phase of one step does, all ranks together, by the formulas of perfmodel. bytes: of memory moved."""

    flops: float
    bytes: float


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """Per rank, medians over the steps after warm-up [s]. busy_s: working; wait_s: waiting for other ranks."""

    step_s: tuple[float, ...]
    busy_s: tuple[float, ...]
    wait_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One attempt at one cell, or the prediction for one cell.

    cell_id: short hash of the resolved cell; attempt: 1, 2, ... (0 for a prediction); repeat: 0-based repeat served.
    method: how the numbers came about ("janus train", "perfmodel, analytic"); clock: what a step time is, in words.
    scaled, scale, base_scale: what the study scales, its value here and at the base point (None: it is the ranks).
    step_s: every step time after warm-up [s], raw; warm_up_step_s: those before, kept and not used.
    phase_s: phase -> one value per step of step_s [s], mean over ranks; the rest of the step is outside any phase.
    phase_cause_s: phase -> cause -> seconds of a step, predictions only. rank_times: measured attempts only.
    start_up_s: from the start of the process to the first step; loop_s: the training loop, all its steps; wall_s: the
    whole process. model_flops, executed_flops: per step over all ranks; the second includes recomputation.
    peak: None when not known; shown as "n/a", never guessed. ceilings: for the roofline, as peak.
    workload: phase -> FLOPs and bytes of a step. memory_bytes: largest peak of any rank; memory_parts: cause -> bytes.
    expert_rows_per_rank: rows that the experts of each rank work on in one step (known from the composition).
    submitted_at, started_at, ended_at: UTC, ISO 8601. job_id: as the scheduler names it, "" where there is none.
    state: see STATES; a final state other than DONE carries ``reason``.
    facts: free key -> value pairs about this record for people (assumptions, counts of devices, ...).
    """

    source: str
    method: str
    study: str
    question: str
    mode: str
    cell_id: str
    repeats_planned: int
    ranks: int
    base_ranks: int
    model: str
    dtype: str
    machine: str
    layout: dict[str, Any]
    clock: str = ""
    scaled: str = "ranks"
    scale: float | None = None
    base_scale: float | None = None
    nodes: int | None = None
    state: str = DONE
    reason: str = ""
    attempt: int = 0
    repeat: int = 0
    executor: str = ""
    job_id: str = ""
    submitted_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    counts_per_rank: tuple[RankCounts, ...] = ()
    warm_up_step_s: tuple[float, ...] = ()
    step_s: tuple[float, ...] = ()
    phase_s: dict[str, tuple[float, ...]] = field(default_factory=dict)
    phase_cause_s: dict[str, dict[str, float]] = field(default_factory=dict)
    rank_times: RankTimes | None = None
    start_up_s: float | None = None
    loop_s: float | None = None
    wall_s: float | None = None
    model_flops: float | None = None
    executed_flops: float | None = None
    peak: Peak | None = None
    ceilings: tuple[Ceiling, ...] = ()
    workload: dict[str, PhaseWorkload] = field(default_factory=dict)
    memory_bytes: int | None = None
    memory_parts: dict[str, float] = field(default_factory=dict)
    expert_rows_per_rank: tuple[float, ...] = ()
    oversubscribed: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        for name, allowed in (
            ("source", SOURCES), ("mode", MODES), ("state", STATES), ("scaled", SCALED), ("schema", (SCHEMA,)),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"record field {name} is {value!r}: it must be one of {', '.join(allowed)}")
        if self.ranks < 1 or self.base_ranks < 1:
            raise UserError(f"record has ranks {self.ranks} and base_ranks {self.base_ranks}: both must be 1 or more")
        if self.state == DONE and not self.step_s:
            raise UserError(f"record of cell {self.cell_id} is DONE without a step time: mark it FAILED with a reason")
        if self.state in FINAL_STATES and self.state != DONE and not self.reason:
            raise UserError(f"record of cell {self.cell_id} is {self.state} without a reason: give one")
        if any(not step_s > 0 for step_s in self.step_s):
            raise UserError(f"record of cell {self.cell_id} has a step time that is not above 0 s: refuse the attempt")
        for phase, values in self.phase_s.items():
            if len(values) != len(self.step_s):
                raise UserError(
                    f"record of cell {self.cell_id} has {len(values)} times of phase {phase} for {len(self.step_s)} "
                    "steps: the two must be equal"
                )

    @property
    def x(self) -> float:
        """Value of what the study scales: ranks, or structures per rank of a throughput study."""
        return self.ranks if self.scale is None else self.scale

    @property
    def base_x(self) -> float:
        """The same at the base point."""
        return self.base_ranks if self.base_scale is None else self.base_scale

    @property
    def place(self) -> str:
        """Study and point in words."""
        return f"study {self.study} at {self.scaled} = {self.x:,g}"

    @property
    def structures(self) -> int:
        """Structures of one step over all ranks, 0 where the counts are not known."""
        return sum(counts.structures for counts in self.counts_per_rank)

    @property
    def tag(self) -> str:
        """Name of the attempt: of its folder, of its file and of its job; unique per cell and attempt."""
        tail = f"attempt{self.attempt:02d}" if self.source == MEASURED else "predicted"
        return f"{self.study}-ranks{self.ranks:05d}-{self.cell_id}-{tail}"

    @property
    def file_name(self) -> str:
        return f"{self.tag}.json"


@dataclass(frozen=True, kw_only=True)
class RecordFolder:
    """What a folder held: records in a stable order, and the files that were refused with the reason of each.

    undeclared: records at points that the study's declaration has dropped since (``study.study_records``).
    """

    records: tuple[Record, ...]
    refused: tuple[tuple[str, str], ...]
    undeclared: tuple[Record, ...] = ()

    @property
    def undeclared_lines(self) -> list[str]:
        """What was measured at points that are no longer declared, in words: one line per point."""
        points: dict[str, list[str]] = {}
        for record in measured(self.undeclared):
            points.setdefault(record.place, []).append(record.state)
        return [
            f"{place} is no longer declared and left out: "
            + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
            for place, states in points.items()
        ]

    @property
    def refused_lines(self) -> list[str]:
        """What was refused, in words: one line per reason, the first file of it named."""
        names: dict[str, list[str]] = {}
        for name, reason in self.refused:
            names.setdefault(reason, []).append(name)
        return [
            f"refused {first}{f' and {len(others)} more' if others else ''}: {reason}"
            for reason, (first, *others) in names.items()
        ]


def cell_hash(resolved: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the canonical JSON of a resolved cell."""
    text = json.dumps(resolved, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_json(record: Record) -> str:
    """The record as JSON text; NaN and infinity are refused because JSON has none."""
    return json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Record:
    """The record written by ``to_json``. Raises UserError when truncated, of a foreign schema or with wrong fields."""
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise UserError(f"not a complete JSON document ({error})") from None
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else type(values).__name__
        raise UserError(
            f"schema is {found!r}, this program reads {SCHEMA!r}: move it elsewhere, or use the version that wrote it"
        )
    known = {entry.name for entry in dataclasses.fields(Record)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"unknown fields {', '.join(unknown)}")
    try:
        return Record(**_typed(values))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"a field is missing or of the wrong type ({error})") from None


def _refuse_constant(word: str) -> None:
    """NaN and infinity, which this program never writes."""
    raise ValueError(f"{word} is no number of JSON")


@functools.cache
def _kinds(section: Any) -> dict[str, tuple[str, tuple[type, ...]]]:
    """Field of a dataclass -> its annotation, and the kinds in which JSON may hold it."""
    found = {}
    for entry in dataclasses.fields(section):
        annotation = str(entry.type)
        kinds = JSON_KINDS.get(re.split(r"\W", annotation)[0], (dict,))  # another dataclass is an object
        found[entry.name] = annotation, (*kinds, type(None)) if annotation.endswith("| None") else kinds
    return found


def _checked(section: Hashable, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values. Raises UserError for the first that JSON holds in another kind than its annotation says."""
    known = _kinds(section)
    for name, value in values.items():
        annotation, kinds = known[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"field {name} is {str(value)[:40]!r}: it must be of type {annotation}")
    return values


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that JSON does not keep as they are, made again."""
    _checked(Record, values)
    counts = (_checked(RankCounts, entry) for entry in values.get("counts_per_rank", ()))
    ceilings = (_checked(Ceiling, entry) for entry in values.get("ceilings", ()))
    workload = {phase: _checked(PhaseWorkload, entry) for phase, entry in values.get("workload", {}).items()}
    made: dict[str, Any] = {
        "counts_per_rank": tuple(RankCounts(**entry) for entry in counts),
        "ceilings": tuple(Ceiling(**entry) for entry in ceilings),
        "workload": {phase: PhaseWorkload(**entry) for phase, entry in workload.items()},
        "phase_s": {phase: _floats(times) for phase, times in values.get("phase_s", {}).items()},
        "peak": Peak(**_checked(Peak, values["peak"])) if values.get("peak") else None,
        "rank_times": None,
    }
    if values.get("rank_times"):
        made["rank_times"] = RankTimes(**{name: _floats(times) for name, times in values["rank_times"].items()})
    for name in ("step_s", "warm_up_step_s", "expert_rows_per_rank"):
        made[name] = _floats(values.get(name, ()))
    return {**values, **made}


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def write_record(folder: Path, record: Record) -> Path:
    """Write one record into ``folder``. A measured attempt is never overwritten (UserError); a prediction may be."""
    path = folder / record.file_name
    if record.source == MEASURED and path.exists():
        raise UserError(f"{path} exists: attempts are never overwritten, use the next attempt number")
    write_atomically(path, to_json(record))
    return path


def read_record(path: Path) -> Record:
    """The record of one file. Raises UserError for one that cannot be read, or that holds the record of another file:
    a copy would count twice.
    """
    try:
        record = from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})") from None
    if record.file_name != path.name:
        raise UserError(f"it holds what belongs into {record.file_name}, and a copy would count twice: move it away")
    return record


def read_folder(folder: Path) -> RecordFolder:
    """All records of a folder, sorted by name; unreadable files are listed, not dropped. A missing folder is empty."""
    records: list[Record] = []
    refused: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read_record(path))
        except UserError as error:
            refused.append((path.name, str(error)))
    return RecordFolder(records=tuple(records), refused=tuple(refused))


def measured(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.source == MEASURED]


def predicted(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.source == PREDICTED]
