"""What a rehearsed rank knows of the job it stands for: its axes, its place, its micro-batches and those of its unit.

The structures of a step and who works on which are the trainer's own (``sampler.py``), so messages have the sizes of
the real job. It does not own the steps (``rehearse.py``) nor what an axis gives (``parallel/rehearsed_axis.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from janus.data.structure import Structure
from janus.layout import AxisName, Layout
from janus.model.batch import GraphBatch
from janus.parallel.axis import Axis, LoneAxis
from janus.parallel.fs3d import Axes
from janus.parallel.ledger import Ledger
from janus.parallel.local_graph import labels_of_part, local_batch, part_of_atoms
from janus.parallel.rehearsed_axis import RehearsedAxis, Timeline
from janus.train.config import TrainConfig
from janus.train.loader import BatchLoader, MicroBatch
from janus.train.sampler import share_out


class RehearsedCommunicator:
    """What building a model asks of a communicator: rank, device, ledger. Whoever wants to agree, train or save with
    others fails: there are none.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self.transport, self.ledger = "none", Ledger()

    def together(self, action: Callable[[], Any]) -> Any:
        """The action's result."""
        return action()

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(
            f"{name} of a rehearsal was asked for: it is rank {self.rank} of {self.world_size} without the others, and "
            "neither trains nor saves"
        )


def rehearsed_axes(layout: Layout, communicator: RehearsedCommunicator, timeline: Timeline) -> Axes:
    """The rank's groups."""

    def axis(name: AxisName) -> Axis:
        ranks = group_of(layout, name, communicator.rank)
        if len(ranks) == 1:
            return LoneAxis(name, communicator.rank, communicator.ledger)
        return RehearsedAxis(name, ranks, ranks.index(communicator.rank), communicator.ledger, timeline)

    names: tuple[AxisName, ...] = ("shard", "shard_copies", "expert", "expert_copies", "graph", "world")
    return Axes(**{name: axis(name) for name in names})


def group_of(layout: Layout, axis: AxisName, rank: int) -> list[int]:
    """The one of ``layout.groups(axis)`` that holds a rank, without making the others."""
    if axis == "world":
        return list(range(layout.world_size))
    place = layout.coordinates(rank)
    if axis.endswith("_copies"):
        degree = layout.shard_degree if axis == "shard_copies" else layout.expert_degree
        positions = range(place.position % degree, layout.unit, degree)
        return sorted(layout.rank_at(replica, position) for replica in range(layout.replicas) for position in positions)
    degree = {"unit": layout.unit, "shard": layout.shard_degree, "graph": layout.graph_degree,
              "expert": layout.expert_degree}[axis]  # fmt: skip
    start = place.position - place.position % degree
    return [layout.rank_at(place.replica, position) for position in range(start, start + degree)]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Micro-batches of every data group of the job in one step. work: edges + angles of each group [data_degree]."""

    layout: Layout
    micro_batches: list[list[list[int]]]
    work: np.ndarray

    @classmethod
    def of(cls, work: np.ndarray, batch: Sequence[int], layout: Layout, max_work: int | None) -> Shares:
        """The trainer's packing of a global batch. work: of every structure of the store."""
        shares = share_out(work, batch, layout.data_degree, max_work)
        sums = np.array([float(work[[item for part in share for item in part]].sum()) for share in shares])
        return cls(layout=layout, micro_batches=shares, work=sums)

    def heaviest_group(self) -> int:
        """The heaviest data group of the unit that has most to do."""
        by_unit = self.work.reshape(self.layout.replicas, self.layout.data_degree_in_unit)
        replica = int(by_unit.sum(axis=1).argmax())
        return replica * self.layout.data_degree_in_unit + int(by_unit[replica].argmax())

    def rank_of(self, data: int, graph: int) -> int:
        """The rank with a place in a data group."""
        replica, group = divmod(data, self.layout.data_degree_in_unit)
        return self.layout.rank_at(replica, group * self.layout.graph_degree + graph)

    def of_group(self, data: int) -> list[list[int]]:
        """Of a data group, as the trainer gives them: groups of a unit have equally many, empty ones behind."""
        mine, inside = self.micro_batches[data], self.layout.data_degree_in_unit
        if self.layout.is_pure_data_parallel:
            return mine
        first = data - data % inside
        longest = max(len(share) for share in self.micro_batches[first : first + inside])
        return mine + [[] for _ in range(longest - len(mine))]


@dataclass(frozen=True, kw_only=True)
class RehearsedMicroBatch:
    """This rank's part of a micro-batch, and what others would tell it about theirs.

    ghosts [H,3]: positions of its ghosts, None where it has the whole; composition [n, 2 Z] int64: atoms and edges by
    element of every rank of the expert group, None where experts are not spread; whole: counts before the division.
    """

    part: MicroBatch
    ghosts: Tensor | None
    composition: Tensor | None
    whole: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class RehearsedUnit:
    """Everything that the rank works on in a step. loading_s: what its own micro-batches took to build."""

    micro_batches: list[RehearsedMicroBatch]
    loading_s: float


def heaviest_part(store: Sequence[Structure], shares: Shares, config: TrainConfig, data: int) -> int:
    """Which rank of a graph group has most edges and angles, over its micro-batches."""
    degree = shares.layout.graph_degree
    if degree == 1:
        return 0
    loader, work = _loader(store, config, torch.device("cpu")), np.zeros(degree)
    for indices in shares.of_group(data):
        batch = loader.load_micro_batch(indices).batch
        part_of_edge = part_of_atoms(batch, degree)[batch.centre.numpy()]
        edge_of_angle = batch.bond_edge.numpy()[batch.angle_first.numpy()]
        work += np.bincount(part_of_edge, minlength=degree)
        work += np.bincount(part_of_edge[edge_of_angle], minlength=degree)
    return int(work.argmax())


def _loader(store: Sequence[Structure], config: TrainConfig, device: torch.device) -> BatchLoader:
    return BatchLoader(
        store, cutoff_angstrom=config.model.cutoff_angstrom, line_cutoff_angstrom=config.model.line_cutoff_angstrom,
        dtype=getattr(torch, config.run.dtype), device=device,
    )  # fmt: skip


def load_unit(
    store: Sequence[Structure], shares: Shares, config: TrainConfig, rank: int, axes: Axes, device: torch.device
) -> RehearsedUnit:
    """Build the rank's micro-batches, and so much of those of its expert group that their composition is known."""
    layout = shares.layout
    loader = _loader(store, config, device)
    members = [layout.coordinates(member) for member in axes.expert.ranks]
    own = layout.coordinates(rank)
    groups = sorted({member.data for member in members} | {own.data})
    loaded, loading_s = [], 0.0
    for number in range(len(shares.of_group(own.data))):
        counts: dict[int, list[Tensor]] = {}
        mine: RehearsedMicroBatch | None = None
        for group in groups:
            begin = time.perf_counter()
            whole = loader.load_micro_batch(shares.of_group(group)[number])
            parts = part_of_atoms(whole.batch, layout.graph_degree)
            if group == own.data:
                mine = _part(whole, parts, axes.graph)
                loading_s += time.perf_counter() - begin
            counts[group] = composition_of(whole.batch, parts, layout.graph_degree, config.model.num_elements)
        assert mine is not None
        if len(members) > 1:
            told = torch.stack([counts[member.data][member.graph] for member in members])
            mine = replace(mine, composition=told.to(device))
        loaded.append(mine)
    return RehearsedUnit(micro_batches=loaded, loading_s=loading_s)


def _part(whole: MicroBatch, part_of_atom: np.ndarray, graph: Axis) -> RehearsedMicroBatch:
    batch = whole.batch if graph.size == 1 else local_batch(whole.batch, part_of_atom, graph)
    counts = {
        "structures": whole.batch.num_structures, "atoms": whole.batch.num_atoms, "edges": whole.batch.num_edges,
        "bonds": whole.batch.num_bonds, "angles": whole.batch.num_angles,
    }  # fmt: skip
    return RehearsedMicroBatch(
        part=replace(whole, batch=batch, labels=labels_of_part(whole.labels, batch)),
        ghosts=None if graph.size == 1 else ghost_positions(whole.batch, batch, part_of_atom == graph.index),
        composition=None,
        whole=counts,
    )


def ghost_positions(whole: GraphBatch, part: GraphBatch, is_owned: np.ndarray) -> Tensor:
    """Positions [H,3] of the neighbours that other ranks own, in the part's order. is_owned [N]: of the whole batch."""
    edges = np.flatnonzero(is_owned[whole.centre.numpy()])
    neighbour = whole.neighbour.numpy()[edges]
    here = part.neighbour.numpy()
    abroad = here >= part.num_atoms
    atoms = np.zeros(part.num_ghosts, dtype=np.int64)
    atoms[here[abroad] - part.num_atoms] = neighbour[abroad]
    return whole.positions[torch.from_numpy(atoms)]


def composition_of(batch: GraphBatch, part_of_atom: np.ndarray, num_parts: int, num_elements: int) -> list[Tensor]:
    """Of each part: atoms and edges (of their centre) by element, int64 [2 Z], as ``share_composition`` tells them."""
    element = batch.numbers.numpy() - 1
    centre = batch.centre.numpy()
    told = []
    for part in range(num_parts):
        atoms = np.bincount(element[part_of_atom == part], minlength=num_elements)
        edges = np.bincount(element[centre][part_of_atom[centre] == part], minlength=num_elements)
        told.append(torch.from_numpy(np.concatenate([atoms, edges]).astype(np.int64)))
    return told
