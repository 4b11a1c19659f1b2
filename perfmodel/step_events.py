"""One step of one layout by discrete events: every rank's program of operations, played with noise and uneven work.

It owns the program: which operations a step has, on which stream, and what waits for what, as the trainer does it. It
does not own their seconds (the parts that ``step_time`` combines by formula), nor the players (``play_streams``).

A rank walks the blocks in FE, FF, BF, BE of every micro-batch. On arrival at a block the gathers that this visit
starts begin (one block ahead, as ``traffic_gathers`` follows them); the block's compute is cut by its halos and
exchanges, which are waited for, some after compute that runs beside them; in BE (and BF where recomputed) the gradients
are reduce-scattered, each awaited when the next begins; in the last micro-batch sums over copies start as stages are
complete. Then the small sums, where ranks wait for slower ones, what is left of the sums, the norm, the optimizer.

Where the formulas hide a part e of the shorter of a collective and the compute beside it, the program has the other
part, (1 - e), as an operation "overlap lost". Where nothing overlaps and all is even, events and formulas agree to
round-off (a test).

Of many units some are played: those that are slowest with the noise drawn, the others as they come. Each takes the work
of the represented unit that is nearest in work, scaled to its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from janus.layout import AxisName, Layout
from perfmodel.machine import Machine
from perfmodel.network.noise import Noise
from perfmodel.network.streams import COMPUTE, Operation, Span
from perfmodel.play_streams import Played, play, play_shared
from perfmodel.prices import Prices
from perfmodel.products import PHASES
from perfmodel.step_parts import SUM_AXES, StepParts, compute_by_batch, gradient_stages
from perfmodel.step_time import beside_sums, bookkeeping, filling, predicted_parts
from perfmodel.step_work import StepWork
from perfmodel.traffic_gathers import Restorations, restorations
from perfmodel.traffic_parameters import ROOT

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNITS_PLAYED = 64
INSIDE: tuple[AxisName, ...] = ("shard", "graph", "expert")


@dataclass(frozen=True, kw_only=True)
class StepEvents:
    """One step as played. analytic_s: the same step by ``step_time``'s formulas, without their noise.

    finish_s, compute_s [R]: of the ranks played, whose numbers are ranks; the job has of_ranks of them.
    transfer_s: seconds of a rank's collectives by axis, hidden or not; spans: for ``network.trace.stream_trace``.
    """

    step_s: float
    analytic_s: float
    finish_s: Floats
    compute_s: Floats
    transfer_s: dict[str, float]
    ranks: tuple[int, ...]
    of_ranks: int
    num_operations: int
    spans: tuple[Span, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @property
    def exposed_s(self) -> Floats:
        """Seconds of the step in which a rank played does not compute [R]."""
        return np.asarray(self.step_s - self.compute_s)


def play_step(
    work: StepWork,
    machine: Machine,
    *,
    prices: Prices | None = None,
    noise: Noise | None = None,
    threads: int = 1,
    one_stream: bool = False,
    units: int = UNITS_PLAYED,
    record: bool = False,
) -> StepEvents:
    """Play one step of a layout.

    noise: drawn for every rank of the job (default none); one_stream: all collectives in one stream, not one per axis
    (sums over copies share one anyway: they share the links). units: played at most; record: keep every span.
    Raises UserError for what the machine file does not cover.
    """
    quiet = Noise()
    parts, seconds, details = predicted_parts(work, machine, prices=prices, noise=quiet, threads=threads)
    rates, turns, hidden, _ = filling(machine, work.layout.world_size, threads)
    by_batch = [one.sum(axis=2) for one in compute_by_batch(work, rates)]
    cast = _Cast.of(work, by_batch, noise or quiet, units)
    parts = replace(parts, packing_s=parts.packing_s + bookkeeping(parts))
    program = _Program(work, parts, cast, details.overlap, one_stream)
    program.build()
    groups = _groups(work.layout, len(cast.units))
    if machine.is_calibrated_host and hidden < 1:
        scaled = [one * turns if operation.axis is None else one
                  for operation, one in zip(program.operations, program.seconds, strict=True)]  # fmt: skip
        cores = machine.devices_per_node / threads
        played: Played = play_shared(program.operations, scaled, groups, cores, record=record)
    else:
        played = play(program.operations, program.seconds, groups, record=record)
    return StepEvents(
        step_s=played.step_s, analytic_s=float(seconds.step_s[0]), finish_s=played.finish_s,
        compute_s=np.sum(cast.batch_s, axis=(1, 2)), transfer_s=program.transfer_s(), ranks=cast.ranks,
        of_ranks=work.layout.world_size, num_operations=len(program.operations), spans=played.spans,
        notes=details.notes,
    )  # fmt: skip


def _groups(layout: Layout, num_units: int) -> dict[str, Ints]:
    """Numbers of the groups of every axis that the ranks of some units are in, unit by unit [R]."""
    unit, place = np.divmod(np.arange(num_units * layout.unit, dtype=np.int64), layout.unit)
    inside = {"shard": layout.shard_degree, "graph": layout.graph_degree, "expert": layout.expert_degree}
    groups = {axis: unit * (layout.unit // degree) + place // degree for axis, degree in inside.items()}
    copies = {"shard_copies": place % layout.shard_degree, "expert_copies": place % layout.expert_degree}
    return {**groups, **copies, "world": np.zeros(len(unit), np.int64)}


@dataclass(frozen=True, kw_only=True)
class _Cast:
    """Who is played. units: their numbers; ranks [R] of the job, unit by unit; batch_s [R,M,4]: compute, noise in it.

    micro_batches [R]: how many each has.
    """

    units: tuple[int, ...]
    ranks: tuple[int, ...]
    batch_s: Floats
    micro_batches: Ints

    @property
    def num_ranks(self) -> int:
        return len(self.ranks)

    @classmethod
    def of(cls, work: StepWork, by_batch: Sequence[Floats], noise: Noise, at_most: int) -> _Cast:
        layout = work.layout
        known = _ranks_of_units(work)
        unit_work = np.asarray(work.group_work, np.float64).reshape(layout.replicas, -1).sum(axis=1)
        factor = noise.compute_factor(layout.world_size)
        numbers = np.arange(layout.world_size)
        unit_first = layout.placement == "unit_first"
        grid = numbers.reshape(layout.replicas, -1) if unit_first else numbers.reshape(-1, layout.replicas).T
        units = _chosen_units(unit_work * factor[grid].max(axis=1), at_most, factor, known)
        stand_in = _nearest(unit_work, np.array(sorted(known)))
        longest = max((len(one) for one in by_batch), default=0)
        batch_s = np.zeros((len(units) * layout.unit, longest, len(PHASES)))
        number = np.zeros(len(batch_s), np.int64)
        for place, unit in enumerate(units):
            like = int(stand_in[unit])
            scale = unit_work[unit] / unit_work[like] if unit_work[like] > 0 else 1.0
            for position, source in enumerate(known[like]):
                row = place * layout.unit + position
                mine = by_batch[source]
                batch_s[row, : len(mine)] = mine * scale * factor[grid[unit, position]]
                number[row] = len(mine)
        ranks = tuple(int(rank) for unit in units for rank in grid[unit])
        return cls(units=tuple(units), ranks=ranks, batch_s=batch_s, micro_batches=number)


def _ranks_of_units(work: StepWork) -> dict[int, list[int]]:
    """Places in ``work.ranks`` of every unit worked out, by position in it."""
    found: dict[int, list[tuple[int, int]]] = {}
    for place, rank in enumerate(work.ranks):
        where = work.layout.coordinates(rank.rank)
        found.setdefault(where.replica, []).append((where.position, place))
    return {unit: [place for _, place in sorted(members)] for unit, members in found.items()}


def _chosen_units(weight: Floats, at_most: int, factor: Floats, known: Mapping[int, object]) -> list[int]:
    """Units to play: all where they are few; else half of them the slowest, the others spread over the rest."""
    if len(weight) <= at_most:
        return list(range(len(weight)))
    if np.all(factor == factor[0]) and len(known) <= at_most:
        return sorted(known)
    order = np.argsort(-weight, kind="stable")
    slowest = order[: (at_most + 1) // 2]
    others = order[np.linspace(len(slowest), len(order) - 1, at_most - len(slowest)).astype(np.int64)]
    return sorted({*slowest.tolist(), *others.tolist()})


def _nearest(unit_work: Floats, known: Ints) -> Ints:
    """For every unit the one worked out that is nearest in work [units]."""
    order = known[np.argsort(unit_work[known], kind="stable")]
    right = np.searchsorted(unit_work[order], unit_work).clip(max=len(order) - 1)
    left = np.maximum(right - 1, 0)
    nearer_left = np.abs(unit_work[order[left]] - unit_work) <= np.abs(unit_work[order[right]] - unit_work)
    nearest = np.where(nearer_left, order[left], order[right])
    nearest[known] = known  # however many are alike
    return np.asarray(nearest)


class _Program:
    """Collects the operations of a step and their seconds on every rank played."""

    def __init__(
        self, work: StepWork, parts: StepParts, cast: _Cast, overlap: float, one_stream: bool
    ) -> None:  # fmt: skip
        self.work, self.parts, self.cast, self.overlap, self.one_stream = work, parts, cast, overlap, one_stream
        self.operations: list[Operation] = []
        self.seconds: list[Floats] = []
        self.num_blocks = work.model.num_blocks
        self.micro_batches = cast.batch_s.shape[1]
        self.visits = max(1, self.micro_batches * self.num_blocks)
        self.last: list[int] = []  # the operation before on the compute stream
        self.pending: dict[int, int] = {}  # block: its gather, not yet waited for
        self.scatter: tuple[int, int] | None = None  # the reduce-scatter under way, and its block
        self.sums: list[int] = []
        self.started: set[int] = set()  # stages whose sum has begun
        self.found = self._restorations()
        self.stages = self._stages()

    def transfer_s(self) -> dict[str, float]:
        """Seconds of the mean rank's collectives by axis."""
        found: dict[str, float] = {}
        for operation, seconds in zip(self.operations, self.seconds, strict=True):
            if operation.axis is not None:
                found[operation.axis] = found.get(operation.axis, 0.0) + float(np.mean(seconds))
        return found

    def build(self) -> None:
        parts = self.parts
        stolen_s = float(parts.loader_s[0] * (1 - parts.loader_hidden[0]))  # of the step by the loader's thread
        self._extra("loader", stolen_s or float(parts.loader_s[0]), "loader")
        self._extra("second memory", parts.transfers_s[0], "memory")
        self._compute("outside", parts.outside_s[0])
        gathers = self._gathers_of_step()
        for batch in range(self.micro_batches):
            self._begin_micro_batch(batch)
            for phase in PHASES:
                self._phase(batch, phase, gathers)
            self._finish_scatters(batch)
        self._update()

    # what a rank does

    def _begin_micro_batch(self, batch: int) -> None:
        parts, there = self.parts, self._there(batch)
        if batch == 0 and self.work.layout.shard_degree > 1:
            root = self._collective("shard", "gather root", parts.root_gather_s[0], there, self.last)
            self.pending[0] = self._collective("shard", "gather 0", parts.first_gather_s[0], there, self.last)
            self.last = [*self.last, root]
        if self.work.layout.expert_degree > 1:
            share = 1 / max(self.micro_batches, 1)
            done = self._collective("expert", "composition", parts.composition_s[0] * share, there, self.last)
            self.last = [done]
            self._compute("placing experts", parts.plan_s[0] * share * there)

    def _phase(self, batch: int, phase: str, gathers: Mapping[tuple[int, str, int], list[int]]) -> None:
        blocks = range(self.num_blocks)
        place = PHASES.index(phase)
        group_sum_s = float(self.parts.group_sums_s[0, place]) / max(self.micro_batches, 1)
        if phase == "BF":
            self._awaited("graph", f"{phase} sum over the group", group_sum_s, batch)
        for block in blocks if phase in ("FE", "BF") else reversed(blocks):
            self._visit(batch, phase, block, gathers.get((batch, phase, block), []))
        if phase == "FF":
            self._awaited("graph", f"{phase} sum over the group", group_sum_s, batch)

    def _visit(self, batch: int, phase: str, block: int, starts: Sequence[int]) -> None:
        """One block in one phase: gathers begin, compute between exchanges, reduce-scatter of its gradients."""
        place, name = PHASES.index(phase), f"{phase} {block}"
        there = self._there(batch)
        compute_s = self.cast.batch_s[:, batch, place] / self.num_blocks
        waits = [self.pending.pop(block)] if block in self.pending else []
        self.last = [*self.last, *waits]
        lost_s = self._start_gathers(batch, phase, starts, compute_s)
        parts = self.parts
        beside_halo = float(parts.halos_cover[0, place])
        pieces = [
            *self._pieces("graph", parts.halos_s, parts.halos_cover, place, compute_s),
            *self._pieces("expert", parts.exchanges_s, parts.exchanges_cover, place, compute_s * (1 - beside_halo)),
        ]
        rest_s = compute_s + there * float(parts.packing_s[0, place]) / self.visits
        rest_s = rest_s - sum((beside_s for _, _, beside_s in pieces), np.zeros_like(compute_s))
        for axis, seconds, beside_s in pieces:
            self._compute(name, rest_s / (len(pieces) + 1))
            sent = self._collective(axis, f"{name} {axis}", seconds, there, self.last)
            self._compute(f"{name} beside", beside_s)
            self.last = [*self.last, sent]
            self._compute("overlap lost", (1 - self.overlap) * np.minimum(beside_s, seconds))
        self._compute(name, rest_s / (len(pieces) + 1))
        self._compute("overlap lost", lost_s)
        self._scatter(batch, phase, block, compute_s)

    def _pieces(
        self, axis: AxisName, seconds: Floats, cover: Floats, place: int, compute_s: Floats
    ) -> list[tuple[AxisName, float, Floats]]:  # fmt: skip
        """(axis, seconds, compute beside it) of the all-to-alls of one visit."""
        whole_s = float(seconds[0, place]) / self.visits
        if whole_s == 0:
            return []
        number = 4 if axis == "expert" or self.work.model.family == "matris" else 1
        beside_s = compute_s * float(cover[0, place]) / number
        return [(axis, whole_s / number, beside_s)] * number

    def _start_gathers(self, batch: int, phase: str, starts: Sequence[int], compute_s: Floats) -> Floats:
        """Begin gathers; returns what their overlap with this visit's compute loses."""
        place = PHASES.index(phase)
        number = sum(1 for entry in self.found.blocks if entry[0] == phase) - (phase == "FE")
        lost_s = np.zeros_like(compute_s)
        for block in starts:
            each_s = float(self.parts.gathers_s[0, place]) / max(number, 1)
            self.pending[block] = self._collective(
                "shard", f"{phase} gather {block}", each_s, self._there(batch), self.last
            )
            lost_s = lost_s + (1 - self.overlap) * np.minimum(each_s, compute_s)
        return lost_s

    def _scatter(self, batch: int, phase: str, block: int, compute_s: Floats) -> None:
        """Reduce-scatter a block's gradients; the one before is complete by then, and its unit's sum starts."""
        place = PHASES.index(phase)
        whole_s = float(self.parts.scatters_s[0, place])
        if self.work.layout.shard_degree > 1 and whole_s > 0:
            last_s = float(self.parts.last_scatter_s[0]) if phase == "BE" else 0.0
            each_s = (whole_s - last_s) / self.visits
            self._settle(batch, phase)
            name = f"{phase} reduce gradients {block}"
            self.scatter = self._collective("shard", name, each_s, self._there(batch), self.last), block
            self._compute("overlap lost", (1 - self.overlap) * np.minimum(each_s, compute_s) * self._there(batch))
        if phase == "BE":
            self._start_sums(batch, block, sharded=False)

    def _settle(self, batch: int, phase: str) -> None:
        """Wait for the reduce-scatter under way."""
        if self.scatter is not None:
            done, block = self.scatter
            self.last, self.scatter = [*self.last, done], None
            if phase == "BE":
                self._start_sums(batch, block, sharded=True)

    def _finish_scatters(self, batch: int) -> None:
        """The root's gradients, waited for at the end of the micro-batch."""
        if self.work.layout.shard_degree > 1:
            self._settle(batch, "BE")
            each_s = float(self.parts.last_scatter_s[0]) / max(self.micro_batches, 1)
            name = "BE reduce gradients of the root"
            self.scatter = self._collective("shard", name, each_s, self._there(batch), self.last), ROOT
            self._settle(batch, "BE")
        self._start_sums(batch, ROOT, sharded=False)

    def _start_sums(self, batch: int, block: int, *, sharded: bool) -> None:
        """Sums over copies that are complete once the backward has left this block."""
        if batch + 1 < self.micro_batches:
            return
        for number, (axis, lowest, seconds) in enumerate(self.stages):
            is_complete = (axis == "shard_copies") == sharded and lowest == block
            if number not in self.started and is_complete:
                self.started.add(number)
                self.sums.append(self._collective(axis, f"sum gradients {lowest}", seconds, 1.0, self.last))

    def _update(self) -> None:
        """Small sums, the rest of the sums, norm and optimizer."""
        parts = self.parts
        self._awaited("world", "losses", float(parts.control_s[0]), None)
        number = max(len(self.stages), 1)
        if float(parts.pipelined[0]) > 0:
            for done in self.sums:
                self.last = [*self.last, done]
                self._compute("optimizer", float(parts.optimizer_s[0]) / number)
        self.last = [*self.last, *self.sums]
        backward_s = np.array([float(self.cast.batch_s[:, :, -1].sum(axis=1).max(initial=0.0))])
        self._compute("overlap lost", (1 - self.overlap) * beside_sums(parts, backward_s, backward_s))
        self._awaited("world", "gradient norm", float(parts.norm_s[0]), None)
        if not (float(parts.pipelined[0]) > 0 and self.sums):
            self._compute("optimizer", float(parts.optimizer_s[0]))

    # bookkeeping

    def _restorations(self) -> Restorations:
        """Gathers of the step, in order."""
        settings, layout = self.work.settings, self.work.layout
        weights = settings.expert_strategy == "weights" and layout.expert_degree > 1
        lending = [set(range(self.num_blocks)) if weights else set() for _ in range(self.micro_batches)]
        return restorations(
            self.num_blocks, settings.gathered_blocks or None, lending, sharded=layout.shard_degree > 1, spread=weights
        )

    def _gathers_of_step(self) -> dict[tuple[int, str, int], list[int]]:
        """Blocks whose gather each visit (micro-batch, phase, block) starts; block 0's first is started before."""
        queue = self.found.blocks[1:]
        result: dict[tuple[int, str, int], list[int]] = {}
        for batch in range(self.micro_batches):
            for phase in PHASES:
                climbs = phase in ("FE", "BF")
                for block in range(self.num_blocks) if climbs else reversed(range(self.num_blocks)):
                    near = (block, block + (1 if climbs else -1))
                    while queue and queue[0][0] == phase and queue[0][1] in near:
                        result.setdefault((batch, phase, block), []).append(queue.pop(0)[1])
        assert not queue, f"gathers that no visit starts: {queue}"
        return result

    def _stages(self) -> list[tuple[AxisName, int, float]]:
        """Every sum of gradients: axis, lowest block, and of the axis's seconds the part that its bytes are."""
        stages = gradient_stages(self.work.model, self.work.layout, self.work.settings)
        result = []
        for axis, size, lowest in stages:
            whole = sum(other for name, other, _ in stages if name == axis)
            axis_s = float(self.parts.sums_s[0, SUM_AXES.index(axis)])
            if axis_s > 0:
                result.append((axis, lowest, axis_s * size / max(whole, 1)))
        return result

    def _there(self, batch: int) -> Floats:
        """1 for the ranks that have this micro-batch, else 0."""
        return (self.cast.micro_batches > batch).astype(np.float64)

    def _awaited(self, axis: AxisName, name: str, seconds: float, batch: int | None) -> None:
        """A collective that is waited for at once."""
        if seconds > 0:
            there = 1.0 if batch is None else self._there(batch)
            self.last = [self._collective(axis, name, seconds, there, self.last)]

    def _compute(self, name: str, seconds: float | Floats) -> None:
        values = np.broadcast_to(np.asarray(seconds, dtype=np.float64), (self.cast.num_ranks,))
        if np.any(values > 0) or len(self.last) > 1:
            self._add(
                Operation(name=name, stream=COMPUTE, seconds=float(values.mean()), after=tuple(self.last)), values
            )
            self.last = [len(self.operations) - 1]

    def _extra(self, name: str, seconds: float, stream: str) -> None:
        """Work beside the step on a stream of its own: the loader on its cores, transfers between memories."""
        if seconds > 0:
            self._add(Operation(name=name, stream=stream, seconds=seconds), np.full(self.cast.num_ranks, seconds))

    def _collective(
        self, axis: AxisName, name: str, seconds: float, there: float | Floats, after: Sequence[int]
    ) -> int:  # fmt: skip
        stream: str = axis if axis in INSIDE else "sums" if name.startswith("sum") else "control"
        stream = "communication" if self.one_stream else stream
        values = np.broadcast_to(np.asarray(seconds * there, dtype=np.float64), (self.cast.num_ranks,))
        self._add(Operation(name=name, stream=stream, seconds=seconds, axis=axis, after=tuple(after)), values)
        return len(self.operations) - 1

    def _add(self, operation: Operation, seconds: Floats) -> None:
        self.operations.append(operation)
        self.seconds.append(seconds)
