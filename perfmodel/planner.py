"""Picks how to run a job before it starts: search, finalists in full and by discrete events, the choice, its reasons.

It owns the order of these and the limits of memory. It does not own the search (``search``), what is asked
(``questions``), whether the choice is safe (``sensitivity``), words (``advice``) nor the plan file (``plan_file``).

The search prices every candidate from tables with estimated divisions of graphs; the best few, of different layouts,
are then worked out in full (``step_work``, ``step_time.predict``) and played by discrete events, which decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.errors import UserError
from janus.layout import Layout
from janus.placement import STRATEGIES
from perfmodel.candidates import Candidates, Space, caps_of, least_data_degree, pareto_front
from perfmodel.dataset import DataCounts, sample_batches, share_out
from perfmodel.host import require_calibrated_here
from perfmodel.machine import Machine
from perfmodel.memory import MemoryPrediction, fullest_memory
from perfmodel.memory_tiers import used_bytes
from perfmodel.network.noise import Noise
from perfmodel.questions import Goal, Runs, between, keeps_to, objective, ranked, runs_of
from perfmodel.search import Found, describe, search
from perfmodel.search_tables import Job, Tables
from perfmodel.sensitivity import Outcome, sensitivities
from perfmodel.start_up import start_up_seconds
from perfmodel.step_events import play_step
from perfmodel.step_time import ASSUMED_DEVIATION, StepPrediction, predict, ranks_per_node, what_helps
from perfmodel.step_work import RunSettings, StepWork, step_work
from perfmodel.verdicts import MISSED, compared, reason, slower

__all__ = ["DataCounts", "Finalist", "Plan", "Request", "make_plan", "memory_limit", "sample_batches", "share_out"]

Floats = NDArray[np.float64]

MEMORY_RESERVE = 0.1  # assumed: share of the memory left to the operating system and to prediction errors
STRUCTURES_PER_RANK = 8  # of the default global batch
SEARCH_BATCHES = 2  # global batches that the search packs; finalists get all that are asked for, on few ranks
FINALISTS = 8
PER_LAYOUT = 2  # finalists of one layout at most
REPRESENTED = 2  # units of a finalist that are worked out where there are many
MOST_RANKS_WHOLE = 16  # ranks of a job of which every unit is worked out
SENSITIVE = 2000  # best candidates among which a changed constant may find a better one
FRONT = 24  # points of the Pareto front that are kept
FINALISTS_S = 20.0  # after so long no further finalist is begun, but two there are
ROUNDS = 3  # of search where the finalists need more memory than searched
COARSE_SIZES = 2  # more numbers of ranks than this are first searched with few caps and units in a row
MOST_REPLICA_FIRST = 64  # nodes up to which equal positions of units in a row are tried unless asked for
OTHERS = 12  # further candidates listed with why they lost, one per layout


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to plan for.

    world_sizes: ranks to try, or world_size for one number. global_batch: structures of a step; None: 8 per rank, at
    most all there are. memory_bytes: per rank, None: what the machine has per rank less ``memory_reserve``. fixed:
    columns of ``candidates.COLUMNS`` with the values allowed. num_structures: of an epoch, None: those of the data.
    num_batches: global batches sampled for the finalists.
    """

    model: ModelConfig
    model_name: str | None
    world_size: int | None = None
    world_sizes: tuple[int, ...] = ()
    global_batch: int | None = None
    dtype: str = "float32"
    seed: int = 0
    num_batches: int = 8
    memory_bytes: float | None = None
    memory_reserve: float = MEMORY_RESERVE
    fixed: Mapping[str, tuple[int | str | bool | None, ...]] = field(default_factory=dict)
    epochs: float | None = None
    steps: int | None = None
    deadline_s: float | None = None
    node_s: float | None = None
    prefer: str | None = None
    num_structures: int | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of ranks to try, ascending."""
        return tuple(sorted(set(self.world_sizes or ((self.world_size,) if self.world_size is not None else ()))))

    def batch_of(self, world_size: int, num_structures: int) -> int:
        """Structures of a step."""
        if self.global_batch is not None:
            return self.global_batch
        return min(STRUCTURES_PER_RANK * world_size, num_structures)


@dataclass(kw_only=True)
class Finalist:
    """A candidate worked out in full. number: in the search; search_step_s: as searched; step_s: by events' ratio to
    the formulas, which decides; prediction: by formulas, mean over the sampled steps; memory: of the fullest rank, and
    memory_bytes what of it counts against the limit; run_s: with start-up.
    """

    number: int
    words: str
    layout: Layout
    settings: RunSettings
    structures: int
    nodes: int
    memory: MemoryPrediction
    memory_bytes: float
    search_step_s: float
    micro_batches: float
    prediction: StepPrediction
    events_step_s: float
    run_s: float = 0.0
    num_steps: float = 0.0
    verdict: str = ""

    @property
    def max_work(self) -> int | None:
        return self.settings.max_work

    @property
    def recompute(self) -> bool:
        return self.settings.recompute

    @property
    def step_s(self) -> float:
        """By formulas: the mean over the sampled steps."""
        return self.prediction.step_s

    @property
    def node_s(self) -> float:
        return self.run_s * self.nodes


@dataclass(frozen=True, kw_only=True)
class Other:
    """A candidate that was not worked out in full, and why it lost."""

    words: str
    layout: Layout
    settings: RunSettings
    micro_batches: float
    step_s: float
    memory_bytes: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """A candidate that nothing beats in run time, memory and node-hours, as searched. number: in ``found``."""

    found: Found
    number: int
    nodes: int
    run_s: float
    memory_bytes: float
    node_s: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The chosen finalist and everything it was weighed against.

    front: of all numbers of ranks that were searched; start_up_s: None where n/a; helps: what would shorten the chosen
    step most, and to what.
    """

    request: Request
    goal: Goal
    machine: Machine
    data: DataCounts
    chosen: Finalist
    finalists: tuple[Finalist, ...]
    others: tuple[Other, ...]
    found: Found
    runs: Runs
    front: tuple[FrontPoint, ...]
    sensitivity: tuple[Outcome, ...]
    helps: tuple[tuple[str, float], ...]
    start_up_s: float | None
    memory_limit_bytes: float
    notes: tuple[str, ...]


def memory_limit(request: Request, machine: Machine, world_size: int) -> float:
    """Bytes one rank may use."""
    if request.memory_bytes is not None:
        return request.memory_bytes
    node = machine.memory_bytes_per_node + machine.second_memory_bytes_per_node
    return (1 - request.memory_reserve) * node / ranks_per_node(machine, world_size)


def largest_world(machine: Machine) -> int:
    """Most ranks that can be planned for: 64 per core of a host, else one per device."""
    return 64 * machine.devices_per_node if machine.is_calibrated_host else machine.nodes * machine.devices_per_node


def _check(request: Request, machine: Machine, data: DataCounts) -> None:
    require_calibrated_here(machine)
    if len(data.atoms) == 0:
        raise UserError(f"{data.path} holds no structure: pack some with 'janus data pack'")
    if not request.sizes:
        raise UserError("no number of ranks is given: give --world-size, --nodes or a question")
    if not 0 <= request.memory_reserve < 1:
        raise UserError(f"--memory-reserve is {request.memory_reserve}: it must be in [0, 1), for instance 0.1")
    limit = largest_world(machine)
    for world_size in request.sizes:
        batch = request.batch_of(world_size, len(data.atoms))
        least = least_data_degree(request.model, request.fixed, world_size)
        if batch < least:
            raise UserError(
                f"the global batch of {batch} structures is below {least}, the fewest groups of ranks that share a "
                f"structure in layouts of {world_size} ranks: use at least {least} structures or fewer ranks"
            )
        if batch > len(data.atoms):
            raise UserError(
                f"the global batch of {batch} structures exceeds the {len(data.atoms)} of {data.path}: "
                f"use at most {len(data.atoms)}"
            )
        if world_size > limit:
            raise UserError(f"world size {world_size} exceeds what {machine.name} can hold: use at most {limit}")


def transports_of(machine: Machine) -> tuple[str, ...]:
    """What may carry the axes' data: the transports that a host was calibrated with, else whatever is there."""
    if not machine.is_calibrated_host:
        return ("auto",)
    return tuple(sorted({entry.transport for entry in machine.collectives})) or ("gloo",)


class _Planner:
    """One request on one machine; numbers of ranks may be tried in several rounds."""

    def __init__(
        self, request: Request, machine: Machine, data: DataCounts, on_stage: Callable[[str], None]
    ) -> None:  # fmt: skip
        self.request, self.machine, self.data, self.on_stage = request, machine, data, on_stage
        self.goal = Goal(
            num_structures=request.num_structures or len(data.atoms), epochs=request.epochs, steps=request.steps,
            deadline_s=request.deadline_s, node_s=request.node_s, prefer=request.prefer,  # type: ignore[arg-type]
        )  # fmt: skip
        rates = machine.require_rates()
        self.threads = 1 if machine.is_calibrated_host else rates[0].threads
        self.job = Job(
            model=request.model, machine=machine, data=data, dtype=request.dtype, seed=request.seed,
            threads=self.threads, num_batches=min(SEARCH_BATCHES, request.num_batches),
            batch_of=lambda world: request.batch_of(world, len(data.atoms)),
        )  # fmt: skip
        self.tables = Tables(self.job)
        self.on_node = 10**9 if machine.is_calibrated_host else machine.devices_per_node
        self.margin = 1.0  # memory of finalists over that searched, where none fits
        self.start_up_notes: list[str] = []

    def start_up(self, world_size: int) -> float | None:
        seconds, notes = start_up_seconds(self.machine, world_size)
        self.start_up_notes = notes
        return seconds

    def find(self, sizes: Sequence[int], *, coarse: bool = False) -> tuple[Found, Runs]:
        """Search these numbers of ranks; coarse: with few caps, and units in a row only."""
        request = self.request
        least = min(least_data_degree(request.model, request.fixed, size) for size in sizes)
        caps = caps_of(self.data.work, max(self.tables.shared(size).heaviest(least) for size in sizes))
        fixed = dict(request.fixed)
        if "placement" not in fixed and (coarse or max(sizes) > MOST_REPLICA_FIRST * self.machine.devices_per_node):
            fixed["placement"] = ("unit_first",)
        caps = caps[::-2][::-1] if coarse else caps
        wanted = fixed.get("cap", ())
        caps = tuple(sorted({*(cap for cap in caps if cap), *(int(cap) for cap in wanted if cap)}))
        space = Space(
            world_sizes=tuple(sizes), caps=(*caps, None), transports=transports_of(self.machine),
            ranks_per_node=self.on_node, fixed=fixed,
        )  # fmt: skip
        found = search(
            self.job, space, lambda world: memory_limit(request, self.machine, world) / self.margin,
            tables=self.tables, on_stage=self.on_stage,
        )  # fmt: skip
        candidates = found.candidates
        first, which = candidates.keys(["world_size"])
        start = np.array([self.start_up(int(candidates["world_size"][k])) or 0.0 for k in first.tolist()])[which]
        nodes = candidates.nodes.astype(float)
        return found, runs_of(self.goal, found.step_s, found.structures, nodes, start)

    def settings(self, candidates: Candidates, k: int) -> RunSettings:
        """How a candidate's step is run."""
        return RunSettings(
            dtype=self.request.dtype, max_work=candidates.cap(k), recompute=bool(candidates["recompute"][k]),
            gathered_blocks=int(candidates["gathered_blocks"][k]),
            expert_strategy=STRATEGIES[candidates["expert_strategy"][k]],
            expert_compression=bool(candidates["expert_compression"][k]), transport=candidates.transport(k),
        )  # fmt: skip

    def finalist(self, found: Found, k: int) -> tuple[Finalist, StepWork]:
        """One candidate worked out in full; its work of the first sampled batch."""
        candidates = found.candidates
        layout, settings, structures = candidates.layout(k), self.settings(candidates, k), int(found.structures[k])
        few = layout.world_size <= MOST_RANKS_WHOLE
        number = self.request.num_batches if few else 1
        batches = sample_batches(self.data.work, structures, number, self.request.seed)
        works = [
            step_work(self.request.model, self.data, batch, layout, settings, represented=None if few else REPRESENTED)
            for batch in batches
        ]
        prices = self.tables.prices(settings.transport, layout.world_size)
        predictions = [predict(work, self.machine, prices=prices, threads=self.threads) for work in works]
        noise = None if self.machine.is_calibrated_host else Noise(compute_deviation=ASSUMED_DEVIATION)
        played = play_step(works[0], self.machine, prices=prices, threads=self.threads, noise=noise)
        mean = mean_prediction(predictions)
        memory = max(
            (fullest_memory(work, self.machine) for work in works), key=lambda one: used_bytes(one, self.machine)
        )
        pieces = [max((len(rank.micro_batches) for rank in work.ranks), default=0) for work in works]
        return Finalist(
            number=k, words=describe(candidates, k), layout=layout, settings=settings, structures=structures,
            nodes=int(candidates.nodes[k]), memory=memory, memory_bytes=used_bytes(memory, self.machine),
            search_step_s=float(found.step_s[k]), micro_batches=float(np.mean(pieces)), prediction=mean,
            events_step_s=mean.step_s * played.step_s / predictions[0].step_s,
        ), works[0]  # fmt: skip

    def shortlist(self, found: Found, order: NDArray[np.int64]) -> list[int]:
        """The best candidates, few of one layout."""
        taken: dict[tuple[Layout, str], int] = {}
        chosen = []
        for k in order.tolist():
            key = (found.candidates.layout(k), found.candidates.transport(k))
            if taken.get(key, 0) < PER_LAYOUT:
                taken[key] = taken.get(key, 0) + 1
                chosen.append(k)
            if len(chosen) == FINALISTS:
                break
        return chosen


def make_plan(
    request: Request, machine: Machine, data: DataCounts, on_stage: Callable[[str], None] = lambda stage: None
) -> Plan:
    """Search, work out the best in full, choose.

    on_stage: told what is worked on. Raises UserError where nothing fits in memory or keeps to the goal.
    """
    _check(request, machine, data)
    planner = _Planner(request, machine, data, on_stage)
    wide, found, runs, order = _rounds(planner, request)
    finalists, works = _finalists(planner, found, order)
    for _ in range(ROUNDS):
        if _fits(planner, finalists).any():
            break
        planner.margin *= 1.02 * min(one.memory_bytes / found.memory_bytes[one.number] for one in finalists)
        found, runs = planner.find([one.layout.world_size for one in finalists][:1])
        order = ranked(planner.goal, runs)
        finalists, works = _finalists(planner, found, order)
    place = _decide(planner, finalists)
    chosen, work = finalists[place], works[place]
    on_stage("what the choice depends on")
    top = order[:SENSITIVE]
    here = int(np.flatnonzero(top == chosen.number)[0]) if chosen.number in top else 0
    outcomes = sensitivities(found.take(top).priced, here, machine, _value_of(planner, found, runs, top))
    prices = planner.tables.prices(chosen.settings.transport, chosen.layout.world_size)
    start_up_s = planner.start_up(chosen.layout.world_size)
    return Plan(
        request=request, goal=planner.goal, machine=machine, data=data, chosen=chosen,
        finalists=tuple(sorted(finalists, key=lambda one: (one is not chosen, _wanted(planner, one)))),
        others=tuple(_others(planner, found, runs, order, chosen, finalists)), found=found, runs=runs,
        front=tuple(_front([wide, (found, runs)] if wide is not None else [(found, runs)])),
        sensitivity=tuple(replace(one, best=int(top[one.best])) for one in outcomes),
        helps=tuple(what_helps(work, machine, prices=prices, threads=planner.threads)), start_up_s=start_up_s,
        memory_limit_bytes=memory_limit(request, machine, chosen.layout.world_size),
        notes=tuple(dict.fromkeys((*chosen.prediction.notes, *planner.start_up_notes))),
    )  # fmt: skip


def _finalists(
    planner: _Planner, found: Found, order: NDArray[np.int64]
) -> tuple[list[Finalist], list[StepWork]]:  # fmt: skip
    """The shortlist worked out in full, as far as time goes; and their work of the first sampled batch."""
    finalists, works, began = [], [], time.monotonic()
    shortlist = planner.shortlist(found, order)
    for number, k in enumerate(shortlist, start=1):
        if number > 2 and time.monotonic() - began > FINALISTS_S:
            break
        planner.on_stage(f"finalist {number} of {len(shortlist)}: {describe(found.candidates, k)}")
        finalist, work = planner.finalist(found, k)
        finalists.append(finalist)
        works.append(work)
    return finalists, works


Round = tuple[Found, Runs]


def _rounds(planner: _Planner, request: Request) -> tuple[Round | None, Found, Runs, NDArray[np.int64]]:
    """Search the numbers of ranks asked for: many of them coarsely, then where the best one lies, then that one."""
    if len(request.sizes) <= COARSE_SIZES:
        found, runs = planner.find(request.sizes)
        return None, found, runs, ranked(planner.goal, runs)
    wide = planner.find(request.sizes, coarse=True)
    tried = best = _best_size(planner, wide)
    wants_fewest = request.prefer == "nodes" or (request.prefer is None and request.deadline_s is not None)
    if wants_fewest and not planner.goal.open_ended and not planner.machine.is_calibrated_host:
        best = _fewest(planner, request, best)
    for size in dict.fromkeys((best, tried)):  # with its own caps a number between may miss the goal by a little
        found, runs = planner.find([size])
        if keeps_to(planner.goal, runs).any():
            break
    return wide, found, runs, ranked(planner.goal, runs)


def _best_size(planner: _Planner, found: Round) -> int:
    """Ranks of the best candidate."""
    return int(found[0].candidates["world_size"][ranked(planner.goal, found[1])[0]])


def _fewest(planner: _Planner, request: Request, best: int) -> int:
    """Fewest ranks that keep to the goal, between the best number tried and the next below it."""
    per_node = planner.machine.devices_per_node
    below = [size for size in request.sizes if size < best]
    further = between(below[-1] // per_node, best // per_node) if below else ()
    if not further:
        return best
    try:
        return _best_size(planner, planner.find([number * per_node for number in further], coarse=True))
    except UserError:  # none between keeps to it
        return best


def _run(planner: _Planner, finalist: Finalist) -> None:
    """Seconds of the run on a finalist, by events."""
    start = planner.start_up(finalist.layout.world_size) or 0.0
    runs = runs_of(
        planner.goal, np.array([finalist.events_step_s]), np.array([float(finalist.structures)]),
        np.array([float(finalist.nodes)]), np.array([start]),
    )  # fmt: skip
    finalist.num_steps, finalist.run_s = float(runs.num_steps[0]), float(runs.run_s[0])
    if planner.goal.open_ended:
        epochs = float(runs.epochs_allowed[0])
        finalist.num_steps = math.floor(epochs * max(1, planner.goal.num_structures // finalist.structures))
        finalist.run_s = start + finalist.num_steps * finalist.events_step_s


def _runs_of_finalists(planner: _Planner, finalists: Sequence[Finalist]) -> Runs:
    arrays = [
        np.array([float(value(one)) for one in finalists])
        for value in (
            lambda one: one.events_step_s, lambda one: one.structures, lambda one: one.nodes,
            lambda one: planner.start_up(one.layout.world_size) or 0.0,
        )
    ]  # fmt: skip
    return runs_of(planner.goal, *arrays)


def _wanted(planner: _Planner, finalist: Finalist) -> float:
    return float(objective(planner.goal, _runs_of_finalists(planner, [finalist]))[0])


def _fits(planner: _Planner, finalists: Sequence[Finalist]) -> NDArray[np.bool_]:
    """Which finalists fit in memory, worked out in full."""
    limits = [memory_limit(planner.request, planner.machine, one.layout.world_size) for one in finalists]
    return np.array([one.memory_bytes <= limit for one, limit in zip(finalists, limits, strict=True)])


def _decide(planner: _Planner, finalists: Sequence[Finalist]) -> int:
    """The place of the finalist that is best by events; fills in runs and verdicts."""
    for one in finalists:
        _run(planner, one)
    runs = _runs_of_finalists(planner, finalists)
    fits = _fits(planner, finalists)
    limits = [memory_limit(planner.request, planner.machine, one.layout.world_size) for one in finalists]
    if not fits.any():  # the search took some for leaner than they are
        leanest = min(one.memory_bytes for one in finalists)
        raise UserError(
            f"nothing fits: worked out in full, the leanest finalist needs {leanest / 1e9:.2f} GB per rank of "
            f"{max(limits) / 1e9:.2f} GB: use more nodes, or allow a higher --memory-gb"
        )
    kept = keeps_to(planner.goal, runs) & fits
    is_kept = bool(kept.any())
    if not is_kept:  # the search was a little too fast: the best of them, and its verdict says so
        kept = fits
    value = np.where(kept, objective(planner.goal, runs), np.inf)
    place = int(np.argmin(value))
    best = finalists[place]
    for number, one in enumerate(finalists):
        if number == place:
            one.verdict = "chosen: " + reason(planner.goal, kept=is_kept)
        elif not fits[number]:
            one.verdict = f"does not fit: {one.memory_bytes / 1e9:.2f} GB of {limits[number] / 1e9:.2f} GB per rank"
        elif not kept[number]:
            one.verdict = MISSED
        else:
            one.verdict = compared(one, best)
    return place


def _others(
    planner: _Planner, found: Found, runs: Runs, order: NDArray[np.int64], chosen: Finalist,
    finalists: Sequence[Finalist],
) -> list[Other]:  # fmt: skip
    """The best candidate of each layout that has no finalist, a few of them: why they were not worked out in full."""
    seen = {one.layout for one in finalists}
    best = chosen.search_step_s / chosen.structures
    others: list[Other] = []
    for k in order.tolist():
        layout = found.candidates.layout(k)
        if layout in seen:
            continue
        seen.add(layout)
        step_s = float(found.step_s[k])
        others.append(Other(
            words=describe(found.candidates, k), layout=layout, settings=planner.settings(found.candidates, k),
            micro_batches=float(found.priced.micro_batches[k]), step_s=step_s,
            memory_bytes=float(found.memory_bytes[k]),
            verdict=slower(step_s / found.structures[k], best) + " in the search",
        ))  # fmt: skip
        if len(others) == OTHERS:
            break
    return others


def _front(rounds: Sequence[Round]) -> list[FrontPoint]:
    """Candidates that nothing beats in run time, memory and node-hours, thinned evenly in time."""
    points = [
        FrontPoint(found=found, number=k, nodes=int(runs.nodes[k]), run_s=float(runs.run_s[k]),
                   memory_bytes=float(found.memory_bytes[k]), node_s=float(runs.node_s[k]))
        for found, runs in rounds
        for k in pareto_front(np.stack([runs.run_s, found.memory_bytes, runs.node_s], axis=1)).tolist()
    ]  # fmt: skip
    if not points:
        return []
    front = pareto_front(np.array([[one.run_s, one.memory_bytes, one.node_s] for one in points]))
    if len(front) > FRONT:
        front = front[np.linspace(0, len(front) - 1, FRONT).round().astype(int)]
    return [points[k] for k in front.tolist()]


def _value_of(planner: _Planner, found: Found, runs: Runs, top: NDArray[np.int64]) -> Callable[[Floats], Floats]:
    """The goal's objective of some candidates by their steps' seconds; infinite where the goal is missed."""
    start = (runs.run_s - runs.num_steps * found.step_s)[top]
    structures, nodes = found.structures[top], runs.nodes[top]

    def value(step_s: Floats) -> Floats:
        changed = runs_of(planner.goal, step_s, structures, nodes, start)
        return np.where(keeps_to(planner.goal, changed), objective(planner.goal, changed), np.inf)

    return value


def mean_prediction(predictions: Sequence[StepPrediction]) -> StepPrediction:
    """Mean of the sampled steps, phase by phase; the fullest memory; the first one's per-rank seconds."""
    first = predictions[0]

    def mean(values: Callable[[StepPrediction], float]) -> float:
        return float(np.mean([values(prediction) for prediction in predictions]))

    def means(name: str) -> dict[str, float]:
        return {key: mean(lambda p: float(getattr(p, name)[key])) for key in getattr(first, name)}  # noqa: B023

    return replace(
        first, step_s=mean(lambda p: p.step_s), phase_s=means("phase_s"), cause_s=means("cause_s"),
        communication_s=means("communication_s"), memory_bytes=max(p.memory_bytes for p in predictions),
        flops_model=mean(lambda p: p.flops_model), flops_executed=mean(lambda p: p.flops_executed),
    )  # fmt: skip
