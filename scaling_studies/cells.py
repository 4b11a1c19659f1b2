"""Cells: the points of a study with everything resolved that decides their result, and the work of each rank.

It owns which structures a cell uses, how they fall on ranks, and what all records of a cell share; it does not own
running or predicting it.

Every cell trains on a small data set of its own that is exactly one global batch, so each step does the same known
work. Structures are whole copies of a few distinct ones:

    weak        the distinct structures once per rank: the trainer's packing (longest first) gives every group of ranks
                equal copies of each, so all ranks do equal work at every point
    strong      the distinct structures once, at every point
    throughput  as many copies per rank as the point says: the mix of structures is the same at every point
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from janus.config import to_mapping
from janus.errors import UserError
from janus.layout import Layout
from perfmodel.dataset import DataCounts, share_batch
from scaling_studies.records import RankCounts, cell_hash
from scaling_studies.study import CLOCKS, ExecutorSettings, Study

__all__ = [
    "Cell", "DataCounts", "add_counts", "constancy_problems", "identity", "middle_structures", "resolve_cells",
]  # fmt: skip

NO_CAP = 2**62  # larger than any batch: the trainer's own "no cap" cannot be written on a command line
COUNT_NAMES = ("atoms", "edges", "bonds", "angles")
LayoutChoice = Callable[[Study, int, DataCounts, Sequence[int]], Layout]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a study. scale: value of what the study scales; executor: how its jobs are started.

    data: counts of the structures that the study draws from; distinct: those it uses; copies: of all of them, so that
    they make the global batch. code_version: of the trainer whose result this is.
    """

    study: Study
    scale: int
    layout: Layout
    executor: ExecutorSettings
    data: DataCounts = field(repr=False, compare=False)
    distinct: tuple[int, ...]
    copies: int
    code_version: str = ""

    @property
    def ranks(self) -> int:
        return self.layout.world_size

    @property
    def nodes(self) -> int:
        return self.executor.nodes(self.ranks)

    @property
    def indices(self) -> tuple[int, ...]:
        """Structures of the global batch, in order, repeated where copied."""
        return self.distinct * self.copies

    @cached_property
    def counts_per_rank(self) -> tuple[RankCounts, ...]:
        """Per rank, what it processes in one step; the ranks of a graph group share its counts evenly."""
        degree, groups = self.layout.graph_degree, self.layout.data_degree
        shared = share_batch(self.data.work, self.indices, groups)
        columns = {"structures": np.ones(len(shared.indices)), **{
            name: np.asarray(getattr(self.data, name))[shared.indices] for name in COUNT_NAMES
        }}  # fmt: skip
        totals = {
            name: np.bincount(shared.group, weights=column, minlength=groups).astype(int).tolist()
            for name, column in columns.items()
        }
        places = (self.layout.coordinates(rank) for rank in range(self.ranks))
        return tuple(
            RankCounts(**{name: _part(total[place.data], degree, place.graph) for name, total in totals.items()})
            for place in places
        )

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Everything that decides the result, as plain values. Repeats, seed, budgets and time-out do not."""
        study, executor = self.study, self.executor
        return {
            "code": self.code_version, "study": study.name, "mode": study.mode, "scale": self.scale,
            "layout": self.layout.to_mapping(), "nodes": self.nodes, "executor": executor.kind,
            "launcher": executor.launcher, "threads": executor.threads, "gpus_per_node": executor.gpus_per_node,
            "model": to_mapping(study.model_config), "settings": self.train_settings, "clock": study.clock,
            "warm_up_steps": study.warm_up_steps, "data": self.data.fingerprint, "structures": list(self.distinct),
            "copies": self.copies,
        }  # fmt: skip

    @cached_property
    def id(self) -> str:
        return cell_hash(self.resolved)

    @property
    def data_id(self) -> str:
        """Short hash of the data set that the cell trains on."""
        return cell_hash({"data": self.data.fingerprint, "structures": list(self.distinct), "copies": self.copies})

    @property
    def train_settings(self) -> dict[str, dict[str, Any]]:
        """Settings of the trainer that make the run of this cell, section by section."""
        study = self.study
        layout = {name: value for name, value in self.layout.to_mapping().items() if name != "replicas"}
        return {
            "batch": {"structures": len(self.distinct) * self.copies, "max_work": study.max_work or NO_CAP},
            "run": {"steps": study.warm_up_steps + study.steps, "dtype": study.dtype, "recompute": study.recompute,
                    "threads": self.executor.threads, "checkpoint_every": 0, "validate_every": 0},
            "parallel": {**layout, "transport": study.transport},
        }  # fmt: skip


def _part(total: int, number: int, place: int) -> int:
    """One of ``number`` nearly equal parts that add up to the total."""
    return total // number + (place < total % number)


def identity(cell: Cell) -> dict[str, Any]:
    """The fields that every record of a cell shares, measured or predicted."""
    study = cell.study
    return {
        "study": study.name, "question": study.question, "mode": study.mode, "cell_id": cell.id,
        "repeats_planned": study.repeats, "ranks": cell.ranks, "nodes": cell.nodes, "model": study.model,
        "base_ranks": study.ranks_at(study.base), "dtype": study.dtype, "clock": CLOCKS[study.clock],
        "scaled": study.scaled, "scale": float(cell.scale), "base_scale": float(study.base),
    }  # fmt: skip


def add_counts(parts: Sequence[RankCounts]) -> RankCounts:
    """The sum of several counts."""
    totals = {name: sum(getattr(part, name) for part in parts) for name in ("structures", *COUNT_NAMES)}
    return RankCounts(**totals)


def middle_structures(work: np.ndarray, number: int) -> tuple[int, ...]:
    """Indices of the ``number`` structures whose work lies closest to the median, ties by index.

    Raises UserError when the data holds fewer structures with work above zero.
    """
    usable = np.flatnonzero(work > 0)
    if len(usable) < number:
        raise UserError(
            f"{number} different structures are needed and the data holds {len(usable)} with neighbours: "
            "give more data or ask for fewer structures"
        )
    distance = np.abs(work[usable] - np.median(work[usable]))
    chosen = usable[np.argsort(distance, kind="stable")[:number]]
    return tuple(int(index) for index in np.sort(chosen))


def resolve_cells(
    study: Study,
    data: DataCounts,
    *,
    executor: ExecutorSettings | None = None,
    code_version: str = "",
    choose_layout: LayoutChoice | None = None,
) -> tuple[Cell, ...]:
    """The cells of a study on given data, in the order of its points.

    choose_layout: for layout "planned": study, ranks, data, structures of the global batch -> layout.
    """
    try:
        distinct = middle_structures(data.work, study.distinct_structures)
    except UserError as error:
        raise UserError(f"study {study.name}: {error}") from None
    cells = []
    for point in study.points:
        ranks, copies = study.ranks_at(point), study.copies(point)
        layout = study.layout_at(ranks)
        if study.layout == "planned":
            if choose_layout is None:
                raise UserError(f"study {study.name} has layout 'planned': give a machine file to plan it for")
            layout = choose_layout(study, ranks, data, distinct * copies)
        cells.append(
            Cell(
                study=study, scale=point, layout=layout, executor=executor or ExecutorSettings(), data=data,
                distinct=distinct, copies=copies, code_version=code_version,
            )
        )  # fmt: skip
    return tuple(cells)


def constancy_problems(cells: Sequence[Cell]) -> list[str]:
    """One sentence for each point of one study at which what the study holds constant is not; empty where it is.

    Weak: every rank's work equals the base point's within ``work_tolerance``. Strong: so does the total work.
    Throughput: the work of a rank per structure.
    """
    study = cells[0].study
    base = next(cell for cell in cells if cell.scale == study.base)
    wanted = float(np.mean(_held_constant(base)))
    problems = []
    for cell in cells:
        works = _held_constant(cell)
        worst = max(works, key=lambda work: abs(work - wanted))
        if abs(worst - wanted) > study.work_tolerance * wanted:
            what = {"weak": "a rank has work", "strong": "the ranks have total work"}.get(
                study.mode, "a rank has work per structure"
            )
            problems.append(
                f"study {study.name} is {study.mode} but at {cell.scale:,} {study.scaled} {what} {worst:,.0f} against "
                f"{wanted:,.0f} at the base point ({study.base:,}), above the tolerance of "
                f"{100 * study.work_tolerance:g} %: choose other structures or points"
            )
    return problems


def _held_constant(cell: Cell) -> list[float]:
    """What the mode holds constant: of each rank, or one number for all."""
    works = [counts.work for counts in cell.counts_per_rank]
    if cell.study.mode == "strong":
        return [float(sum(works))]
    per_rank = cell.scale if cell.study.mode == "throughput" else 1
    return [work / per_rank for work in works]
