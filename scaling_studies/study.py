"""What a campaign is: studies (the question, what is constant, what is scaled) and where its jobs run.

It owns the declaration, its checks and its files; it does not own how cells are made of it (``cells``) nor run.

A campaign file is TOML with one ``[[study]]`` table per study and an ``[executor]`` table, or a Python file that
defines ``declaration`` (a Declaration) or ``studies`` (a list). The resolved declaration is kept beside the results.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import os
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from janus.config import ModelConfig, from_mapping, read_toml, require_positive, to_mapping, to_toml
from janus.errors import UserError
from janus.layout import Layout
from janus.presets import preset
from janus.train.config import ParallelConfig, TrainConfig
from scaling_studies.atomic import write_atomically
from scaling_studies.records import RECORD_FOLDER, Record, RecordFolder, read_folder
from scaling_studies.statistics import MIN_SAMPLES_FOR_INTERVAL

CAMPAIGN_FILE = "campaign.toml"
STEP_CLOCK = (
    "A step is timed on every rank with its monotonic clock, from the request for the batch to the end of the "
    "update, the device idle at both ends; there is no barrier before it beyond the step's own collectives. "
)
CLOCKS = {
    "slowest_rank": STEP_CLOCK + "The time of a step is that of the rank that took longest.",
    "mean_rank": STEP_CLOCK + "The time of a step is the mean over the ranks.",
}
CAMPAIGN_TABLES = ("study", "executor")
CAMPAIGN_FORM = "a campaign holds [[study]] tables and at most an [executor] table"
FREE_SETTINGS = frozenset({  # may change from one call of run to the next: no result depends on them
    "question", "repeats", "stop_ci_percent", "max_repeats", "max_failures", "max_machine_faults", "node_hours", "seed",
    "time_out_s", "work_tolerance", "base_ranks", "base_structures_per_rank", "queue", "account", "max_in_flight",
    "arrays", "poll_s", "setup", "directives",
})  # fmt: skip
LOCAL_POLL_S, SCHEDULER_POLL_S = 0.5, 30.0  # assumed: schedulers of shared machines ask for no more than that
LONGEST_NAME = 100  # of a study: names of files and jobs are made of it
SCHEDULER_IN_FLIGHT = 8  # assumed: what a queue takes from one user without complaint


@dataclass(frozen=True, kw_only=True)
class Study:
    """One scaling study.

    name: letters, digits, "-" and "_"; question: one sentence that the study answers.
    mode weak: ``structures_per_rank`` is constant and ``ranks`` are scaled; strong: ``structures_total`` is constant;
    throughput: ``ranks`` is one number and ``structures_per_rank`` is the list that is scaled.
    base_ranks, base_structures_per_rank: the point that efficiencies refer to (default: the smallest).
    repeats: good attempts wanted per point, each a job of its own; seed: of their random order.
    stop_ci_percent: go on beyond ``repeats``, up to ``max_repeats``, until the 95 % interval of the point's median lies
    within this many percent of it. max_failures: of one point in a row and in one call of ``run``, then it is left
    alone; max_machine_faults: the same of failures that the machine caused (``wanted.MACHINE_FAULTS``).
    node_hours: budget of the whole study, failed attempts included; None: no budget.
    clock: what the time of a step is, see ``CLOCKS``. warm_up_steps: recorded but not used; steps: those after them.
    unit, shard_degree, graph_degree, expert_degree: as in ``janus.layout``, the same at every point; replicas fill the
    ranks. layout "planned": the planner picks the fastest layout of every point instead. transport: as the trainer's.
    max_work: cap on edges + angles of one micro-batch, 0 for no cap; recompute: second-order checkpointing.
    time_out_s: time limit of one job. work_tolerance: largest relative difference of a rank's work between declaration
    and record.
    """

    name: str
    question: str
    mode: Literal["weak", "strong", "throughput"]
    ranks: tuple[int, ...]
    base_ranks: int | None = None
    structures_per_rank: int | tuple[int, ...] | None = None
    base_structures_per_rank: int | None = None
    structures_total: int | None = None
    repeats: int = 6
    stop_ci_percent: float | None = None
    max_repeats: int = 30
    max_failures: int = 3
    max_machine_faults: int = 20
    node_hours: float | None = None
    clock: Literal["slowest_rank", "mean_rank"] = "slowest_rank"
    warm_up_steps: int = 2
    steps: int = 8
    model: str = "matris-tiny"
    dtype: Literal["float32", "float64"] = "float32"
    recompute: bool = False
    layout: Literal["declared", "planned"] = "declared"
    unit: int = 1
    shard_degree: int = 1
    graph_degree: int = 1
    expert_degree: int = 1
    transport: Literal["auto", "gloo", "nccl", "mpi"] = "auto"
    max_work: int = 100_000
    seed: int = 0
    time_out_s: float = 600.0
    work_tolerance: float = 0.01

    def __post_init__(self) -> None:
        for name in ("ranks", "structures_per_rank"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):  # lists, ranges, arrays, as a Python file gives them
                object.__setattr__(self, name, tuple(operator.index(point) for point in value))
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", self.name) or len(self.name) > LONGEST_NAME:
            raise UserError(
                f"study name {self.name!r} is not made of letters, digits, '-' and '_' alone, '-' not first, "
                f"{LONGEST_NAME} at most: rename it"
            )
        if not self.question.strip():
            raise UserError(f"study {self.name} has no question: say in one sentence what it shall answer")
        for name, allowed in (("mode", ("weak", "strong", "throughput")), ("clock", tuple(CLOCKS)),
                              ("layout", ("declared", "planned"))):  # fmt: skip
            if getattr(self, name) not in allowed:
                choices = ", ".join(repr(word) for word in allowed)
                raise UserError(f"study {self.name} has {name} {getattr(self, name)!r}: use one of {choices}")
        require_positive(self, "repeats", "steps", "time_out_s", "max_failures", "max_machine_faults")
        if min(self.warm_up_steps, self.max_work) < 0 or not 0 <= self.work_tolerance < 1:
            raise UserError(
                f"study {self.name} has warm_up_steps {self.warm_up_steps}, max_work {self.max_work}, work_tolerance "
                f"{self.work_tolerance}: use 0 or more for the first two and a fraction in [0, 1) for the third"
            )
        self._check_limits()
        self._check_points()
        self._check_constant()
        self._check_layout()

    def _check_limits(self) -> None:
        for name in ("node_hours", "time_out_s", "stop_ci_percent"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"study {self.name} has {name} {value}: give a number, or leave it out")
        if self.node_hours is not None and not self.node_hours > 0:
            raise UserError(f"study {self.name} has node_hours {self.node_hours}: give a budget above 0, or none")
        if self.stop_ci_percent is None:
            return
        if not self.stop_ci_percent > 0:
            raise UserError(f"study {self.name} has stop_ci_percent {self.stop_ci_percent}: it must be above 0")
        if self.repeats < MIN_SAMPLES_FOR_INTERVAL or self.max_repeats < self.repeats:
            raise UserError(
                f"study {self.name} stops by an interval but has repeats {self.repeats} and max_repeats "
                f"{self.max_repeats}: an interval needs {MIN_SAMPLES_FOR_INTERVAL} repeats, and max_repeats as many"
            )

    def _check_points(self) -> None:
        if isinstance(self.ranks, int):
            raise UserError(f"study {self.name} has ranks {self.ranks}: give a list, [{self.ranks}]")
        if not self.ranks or any(ranks < 1 for ranks in self.ranks) or len(set(self.ranks)) != len(self.ranks):
            raise UserError(f"study {self.name} has ranks {list(self.ranks)}: list each point once, 1 or more")
        if self.mode == "throughput" and len(self.ranks) != 1:
            raise UserError(
                f"study {self.name} is throughput but has ranks {list(self.ranks)}: give one number of ranks, "
                "structures_per_rank is what it scales"
            )
        for name, scaled in (("base_ranks", "ranks"), ("base_structures_per_rank", "structures_per_rank")):
            value = getattr(self, name)
            if value is None:
                continue
            if scaled != self.scaled:
                raise UserError(f"study {self.name} is {self.mode} but sets {name}: it scales {self.scaled}, remove it")
            if value not in self.points:
                raise UserError(f"study {self.name} has {name} {value}: choose one of {list(self.points)}")

    def _check_constant(self) -> None:
        wanted, foreign = ("structures_total", "structures_per_rank")[:: 1 if self.mode == "strong" else -1]
        if getattr(self, foreign) is not None:
            raise UserError(
                f"study {self.name} is {self.mode} but sets {foreign}: a {self.mode} study needs {wanted} alone, "
                "so remove it"
            )
        if getattr(self, wanted) is None:
            what = "scales" if self.mode == "throughput" else "holds constant"
            raise UserError(f"study {self.name} is {self.mode} and does not set {wanted}: it is what the study {what}")
        if self.mode == "strong":
            return require_positive(self, wanted)
        per_rank, is_list = self.structures_per_rank, isinstance(self.structures_per_rank, tuple)
        if is_list != (self.mode == "throughput"):
            form = "a list, the points" if self.mode == "throughput" else "one number"
            raise UserError(f"study {self.name} is {self.mode} but structures_per_rank is {per_rank}: give {form}")
        values = self._per_rank
        if not values or min(values) < 1 or len(set(values)) != len(values):
            raise UserError(
                f"study {self.name}: structures_per_rank is {per_rank}: it must be above 0, each point listed once"
            )

    def _check_layout(self) -> None:
        degrees = self.unit, self.shard_degree, self.graph_degree, self.expert_degree
        if self.layout == "planned" and max(degrees) > 1:
            raise UserError(f"study {self.name} has layout 'planned' and degrees of its own: remove one of them")
        for ranks in self.ranks:
            if ranks % self.unit:
                raise UserError(
                    f"study {self.name} has a point of {ranks} in units of {self.unit} ranks: every point must be a "
                    "multiple of the unit, so change the point or the unit"
                )
            groups = self.layout_at(ranks).data_degree if self.layout == "declared" else 1  # else the planner checks
            if self.structures_total is not None and self.structures_total < groups:
                raise UserError(
                    f"study {self.name} has {self.structures_total} structures in total for {groups} groups of ranks: "
                    "a rank would idle, so raise structures_total or leave the point out"
                )
        try:
            TrainConfig(model=self.model_config, parallel=ParallelConfig(
                unit=self.unit, shard_degree=self.shard_degree, graph_degree=self.graph_degree,
                expert_degree=self.expert_degree, transport=self.transport,
            ))  # fmt: skip
        except UserError as error:
            raise UserError(f"study {self.name}: {error}") from None

    @property
    def scaled(self) -> str:
        """Name of what the study scales."""
        return "structures_per_rank" if self.mode == "throughput" else "ranks"

    @property
    def points(self) -> tuple[int, ...]:
        """Values of what the study scales, as declared."""
        return self._per_rank if self.mode == "throughput" else self.ranks

    @property
    def base(self) -> int:
        """Value of what the study scales at the base point."""
        declared = self.base_structures_per_rank if self.mode == "throughput" else self.base_ranks
        return declared if declared is not None else min(self.points)

    @property
    def model_config(self) -> ModelConfig:
        return preset(self.model)

    def ranks_at(self, point: int) -> int:
        """Ranks of a point."""
        return self.ranks[0] if self.mode == "throughput" else point

    @property
    def distinct_structures(self) -> int:
        """Different structures of a global batch: one rank's share, the whole batch (strong), or as many as divide
        every point (throughput), so that copies keep the mix of structures constant.
        """
        return self.structures_total or math.gcd(*self._per_rank)

    def copies(self, point: int) -> int:
        """How many times the distinct structures enter the global batch of a point."""
        if self.mode == "strong":
            return 1
        per_rank = point // self.distinct_structures if self.mode == "throughput" else 1
        return self.ranks_at(point) * per_rank

    @property
    def _per_rank(self) -> tuple[int, ...]:
        """``structures_per_rank`` of every point; none of a strong study."""
        values = self.structures_per_rank
        return values if isinstance(values, tuple) else () if values is None else (values,)

    def layout_at(self, ranks: int) -> Layout:
        """The declared layout on so many ranks; of a planned study data parallel, which the planner replaces."""
        return Layout(
            unit=self.unit, replicas=ranks // self.unit, shard_degree=self.shard_degree,
            graph_degree=self.graph_degree, expert_degree=self.expert_degree,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """Where and how jobs are started.

    kind: this host, or the scheduler; launcher: what starts the ranks of a local job. queue, account: as the site names
    them. ranks_per_node: 0 on this host: all ranks of a job on it. threads: per rank. gpus_per_node: 0 on CPUs.
    transport: of the studies that leave theirs "auto". max_in_flight: most attempts queued or running at a time,
    poll_s: between two looks at them; 0: 1 and 0.5 s on this host, 8 and 30 s with a scheduler.
    arrays: attempts of equal shape as one job array (slurm). setup: shell lines before the start, like "module load x".
    directives: what a site wants of the scheduler beyond this, without prefix, like "--constraint=gpu".
    """

    kind: Literal["local", "slurm", "pbs", "flux", "lsf"] = "local"
    launcher: Literal["mpiexec", "torchrun"] = "mpiexec"
    queue: str | None = None
    account: str | None = None
    ranks_per_node: int = 0
    threads: int = 1
    gpus_per_node: int = 0
    transport: Literal["auto", "gloo", "nccl", "mpi"] = "auto"
    max_in_flight: int = 0
    arrays: bool = False
    poll_s: float = 0.0
    setup: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "threads")
        for name in ("ranks_per_node", "gpus_per_node", "max_in_flight", "poll_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"executor.{name} is {getattr(self, name)}: it must be a number, 0 or more")
        is_local = self.kind == "local"
        if not is_local and not self.ranks_per_node:
            raise UserError(f"executor.kind is {self.kind!r} without ranks_per_node: say how many ranks a node takes")
        if is_local and self.max_in_flight > 1:
            raise UserError(
                f"executor.max_in_flight is {self.max_in_flight} on this host: jobs side by side would disturb each "
                "other's times, use 1"
            )
        ignored = [name for name in ("queue", "account", "directives") if getattr(self, name)] if is_local else []
        if ignored:
            raise UserError(
                f"executor.{ignored[0]} is for a scheduler and executor.kind is 'local': set kind to one, or remove it"
            )
        if self.arrays and self.kind != "slurm":
            raise UserError(f"executor.arrays is true for {self.kind}: job arrays are made for slurm alone")
        object.__setattr__(self, "max_in_flight", self.max_in_flight or (1 if is_local else SCHEDULER_IN_FLIGHT))
        object.__setattr__(self, "poll_s", self.poll_s or (LOCAL_POLL_S if is_local else SCHEDULER_POLL_S))

    def nodes(self, ranks: int) -> int:
        """Nodes that so many ranks fill."""
        return -(-ranks // self.ranks_per_node) if self.ranks_per_node else 1


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A campaign: studies with names of their own, their transport resolved, and the executor of all their jobs."""

    studies: tuple[Study, ...]
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)

    def __post_init__(self) -> None:
        if not self.studies:
            raise UserError("the campaign declares no study: give at least one [[study]] table")
        names = [study.name for study in self.studies]
        if len(set(names)) != len(names):
            raise UserError(f"study names are {', '.join(names)}: each must be used once")
        if self.executor.transport != "auto":
            resolved = tuple(
                dataclasses.replace(study, transport=self.executor.transport) if study.transport == "auto" else study
                for study in self.studies
            )
            object.__setattr__(self, "studies", resolved)


def read_declaration(path: Path) -> Declaration:
    """The campaign of a TOML or Python file. Raises UserError naming the file, the study and the rule."""
    try:
        return _of_recipe(_run_recipe(path)) if path.suffix == ".py" else _of_tables(read_toml(path))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _of_tables(values: Mapping[str, Any]) -> Declaration:
    for name in values:
        if name not in CAMPAIGN_TABLES:
            near = difflib.get_close_matches(name, CAMPAIGN_TABLES, n=1)
            repair = f"did you mean {near[0]!r}?" if near else CAMPAIGN_FORM
            raise UserError(f"unknown table or setting {name!r}: {repair}")
    tables: Any = values.get("study")
    settings = values.get("executor", {})
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in (*tables, settings)):
        raise UserError(f"{CAMPAIGN_FORM}: see docs/studies.md")
    executor = from_mapping(ExecutorSettings, settings, "executor")
    return Declaration(studies=tuple(_study(table) for table in tables), executor=executor)


def _study(table: Mapping[str, Any]) -> Study:
    name = table.get("name", "(no name)")
    try:
        return from_mapping(Study, table)
    except UserError as error:
        raise UserError(str(error) if f"study {name}" in str(error) else f"study {name}: {error}") from None
    except TypeError:
        required = [entry.name for entry in dataclasses.fields(Study) if entry.default is dataclasses.MISSING]
        missing = [name for name in required if name not in table]
        raise UserError(f"study {name!r} does not set {' and '.join(missing)}: add it to its [[study]] table") from None


def _run_recipe(path: Path) -> dict[str, Any]:
    """The names that a Python file defines; what it raises becomes one sentence with its line."""
    names: dict[str, Any] = {"__name__": "campaign", "__file__": str(path)}
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), names)  # a recipe is a program of the user's own
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except SyntaxError as error:
        raise UserError(f"{path} line {error.lineno}: {error.msg}: correct that line") from None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{path} line {lines[-1] if lines else '?'}: {kind}{error}") from None
    return names


def _of_recipe(names: Mapping[str, Any]) -> Declaration:
    declaration, studies = names.get("declaration"), names.get("studies")
    if isinstance(declaration, Declaration):
        return _of_right_types(declaration)
    if isinstance(studies, list | tuple) and all(isinstance(study, Study) for study in studies):
        return _of_right_types(Declaration(studies=tuple(studies)))
    raise UserError(
        "the file defines no campaign: set 'declaration' to a Declaration, or 'studies' to a list of Study "
        "(from scaling_studies.study)"
    )


def _of_right_types(declaration: Declaration) -> Declaration:
    """The same declaration, its values checked as those of a TOML file are: Python itself checks none."""
    studies = tuple(_study(to_mapping(study)) for study in declaration.studies)
    executor = from_mapping(ExecutorSettings, to_mapping(declaration.executor), "executor")
    return Declaration(studies=studies, executor=executor)


def write_declaration(folder: Path, declaration: Declaration) -> Path:
    """Keep the resolved declaration beside the results; it reads back equal."""
    tables = ["[[study]]\n" + to_toml(to_mapping(study)) for study in declaration.studies]
    tables.append(to_toml(to_mapping(declaration.executor), "executor"))
    path = folder / CAMPAIGN_FILE
    write_atomically(path, "\n".join(tables))
    return path


def study_records(folder: Path) -> RecordFolder:
    """The records of a study folder as its declaration is now: with the repeats that it declares, and those at points
    that it has dropped set apart. Without a declaration (a campaign that is predicted only) as they were written.
    """
    found, path = read_folder(folder / RECORD_FOLDER), folder / CAMPAIGN_FILE
    if not path.exists():
        return found
    # the tables as they are: a report needs no setting that another version may have named otherwise
    tables = {table.get("name"): table for table in read_toml(path).get("study", [])}
    kept: list[Record] = []
    undeclared: list[Record] = []
    for record in found.records:
        table = tables.get(record.study, {})
        if record.x not in table.get(record.scaled, ()):
            undeclared.append(record)
        else:
            repeats = table.get("repeats", record.repeats_planned)
            same = repeats == record.repeats_planned
            kept.append(record if same else dataclasses.replace(record, repeats_planned=repeats))
    return dataclasses.replace(found, records=tuple(kept), undeclared=tuple(undeclared))


def changed_settings(before: Declaration, now: Declaration) -> list[str]:
    """In words, the settings that results depend on and two declarations do not have alike. Points may come and go."""
    of_study = {study.name: to_mapping(study) for study in before.studies}
    pairs = [
        (f"{study.name}.", of_study[study.name], to_mapping(study)) for study in now.studies if study.name in of_study
    ]
    pairs.append(("executor.", to_mapping(before.executor), to_mapping(now.executor)))
    return [
        f"{prefix}{name} was {old.get(name, 'not set')} and is {new.get(name, 'not set')}"
        for prefix, old, new in pairs
        for name in dict.fromkeys((*old, *new))
        if name not in FREE_SETTINGS and old.get(name) != new.get(name) and not _is_list_of_points(name, new)
    ]


def _is_list_of_points(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting only says at which points a study measures. Copies of structures follow from a throughput
    study's points, so that those are more than that."""
    return name == "ranks" and settings.get("mode") in ("weak", "strong")


def quick_declaration(num_cores: int | None = None, *, model: str = "matris-tiny", repeats: int = 2) -> Declaration:
    """A weak and a strong study over 1, 2 and 4 ranks of this host, as many as twice the cores allow."""
    cores = num_cores if num_cores is not None else len(os.sched_getaffinity(0))
    ranks = tuple(count for count in (1, 2, 4) if count <= 2 * cores)
    shared: dict[str, Any] = {"ranks": ranks, "repeats": repeats, "warm_up_steps": 2, "steps": 5, "model": model}
    weak = Study(
        name="weak", mode="weak", structures_per_rank=2,
        question="How much longer does a step take when ranks are added and each keeps the same work?", **shared,
    )  # fmt: skip
    strong = Study(
        name="strong", mode="strong", structures_total=4,
        question="How much shorter does a step get when more ranks share the same work?", **shared,
    )  # fmt: skip
    return Declaration(studies=(weak, strong))
