"""Cells: the points of a study with everything resolved that decides their result, and the work of each rank.

It owns which structures a cell uses and how they fall on ranks; it does not own running or predicting it.

Every cell trains on a small data set of its own that is exactly one global batch, so each step does the same known
work: a strong cell holds the study's structures once, a weak cell holds one copy per rank. The trainer's packing
(longest first) then gives every rank of a weak cell one copy of each structure: equal work, which the record proves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus import __version__
from janus.config import to_mapping
from janus.errors import UserError
from janus.packing import pack_longest_first, split_by_cap
from scaling_studies.records import RankCounts, cell_hash
from scaling_studies.study import Study

NO_CAP = 2**62  # larger than any batch: the trainer's own "no cap" cannot be written on a command line
COUNT_NAMES = ("atoms", "edges", "bonds", "angles")


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """Counts of each structure of the data a study draws from, at the model's cutoffs: arrays [S] of int64."""

    fingerprint: str
    atoms: np.ndarray
    edges: np.ndarray
    bonds: np.ndarray
    angles: np.ndarray

    @property
    def work(self) -> np.ndarray:
        """Edges plus angles [S], the measure of the trainer's packing."""
        return self.edges + self.angles


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a study. indices: structures of the global batch, in order, repeated where copied.

    micro_batches: per rank, the counts of each of its micro-batches of one step.
    """

    study: Study
    ranks: int
    data_fingerprint: str
    indices: tuple[int, ...]
    micro_batches: tuple[tuple[RankCounts, ...], ...]

    @property
    def counts_per_rank(self) -> tuple[RankCounts, ...]:
        """Per rank, what it processes in one step."""
        return tuple(add_counts(batches) for batches in self.micro_batches)

    @property
    def resolved(self) -> dict[str, Any]:
        """Everything that decides the result, as plain values. Repeats, seed and time-out do not."""
        study = self.study
        return {
            "version": __version__, "study": study.name, "mode": study.mode, "ranks": self.ranks,
            "model": to_mapping(study.model_config), "dtype": study.dtype, "recompute": study.recompute,
            "max_work": study.max_work, "warm_up_steps": study.warm_up_steps, "steps": study.steps,
            "data": self.data_fingerprint, "structures": list(self.indices),
        }  # fmt: skip

    @property
    def id(self) -> str:
        return cell_hash(self.resolved)

    @property
    def data_id(self) -> str:
        """Short hash of the data set that the cell trains on."""
        return cell_hash({"data": self.data_fingerprint, "structures": list(self.indices)})

    @property
    def train_settings(self) -> dict[str, Any]:
        """Settings of the trainer that make the run of this cell."""
        study = self.study
        return {
            "batch": {"structures": len(self.indices), "max_work": study.max_work or NO_CAP},
            "run": {"steps": study.warm_up_steps + study.steps, "dtype": study.dtype, "recompute": study.recompute,
                    "threads": 1, "checkpoint_every": 0, "validate_every": 0},
        }  # fmt: skip


def add_counts(parts: tuple[RankCounts, ...]) -> RankCounts:
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
            f"the study needs {number} different structures and its data holds {len(usable)} with neighbours: "
            "give more data or ask for fewer structures"
        )
    distance = np.abs(work[usable] - np.median(work[usable]))
    chosen = usable[np.argsort(distance, kind="stable")[:number]]
    return tuple(int(index) for index in np.sort(chosen))


def _micro_batches(counts: DataCounts, indices: tuple[int, ...], max_work: int) -> tuple[RankCounts, ...]:
    work = counts.work[list(indices)]
    groups = split_by_cap(work, max_work) if max_work else [list(range(len(indices)))]
    return tuple(
        RankCounts(
            structures=len(group),
            **{name: int(sum(getattr(counts, name)[indices[item]] for item in group)) for name in COUNT_NAMES},
        )
        for group in groups
    )


def resolve_cells(study: Study, counts: DataCounts) -> tuple[Cell, ...]:
    """The cells of a study on given data. Raises UserError when a weak study's work per rank is not constant."""
    distinct = middle_structures(counts.work, study.distinct_at(study.points[0]))
    cells = []
    for ranks in study.ranks:
        indices = distinct * study.copies(ranks)
        bins = pack_longest_first(counts.work[list(indices)], ranks)
        shares = [tuple(indices[position] for position in bin_) for bin_ in bins]
        cells.append(
            Cell(
                study=study, ranks=ranks, data_fingerprint=counts.fingerprint, indices=indices,
                micro_batches=tuple(_micro_batches(counts, share, study.max_work) for share in shares),
            )
        )  # fmt: skip
    check_constant_work(study, {cell.ranks: cell.counts_per_rank for cell in cells})
    return tuple(cells)


def check_constant_work(study: Study, counts: Mapping[int, tuple[RankCounts, ...]]) -> None:
    """Raise UserError unless what the study holds constant is constant over its points.

    counts: ranks -> counts of each rank. Weak: every rank's work equals that of the base point's within
    ``work_tolerance``. Strong: the total work is the same everywhere.
    """
    base = counts[study.base]
    base_work = sum(entry.work for entry in base) / len(base)
    for ranks, entries in counts.items():
        works = [entry.work for entry in entries] if study.mode == "weak" else [sum(entry.work for entry in entries)]
        wanted = base_work if study.mode == "weak" else base_work * len(base)
        for work in works:
            if abs(work - wanted) > study.work_tolerance * wanted:
                raise UserError(
                    f"study {study.name} is {study.mode} but a {'rank' if study.mode == 'weak' else 'step'} at {ranks} "
                    f"ranks has work {work} against {wanted:.0f} at the base point ({study.base} ranks): above the "
                    f"tolerance of {100 * study.work_tolerance:g} %, so choose other structures"
                )
