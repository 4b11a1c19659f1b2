"""Rows of micro-batches for many candidates at once: what ``step_work`` works out for one, estimated from few numbers.

It owns the estimates that make a search fast: a batch is packed once per number of data groups, a cap splits each group
once, halos and exchanges come from a handful of typical micro-batches. It does not own the packing (``dataset``), the
division (``division``), the placement of experts (``janus.placement``) nor any seconds (``search_parts``).

Where it differs from ``step_work``: the slowest of ranks that wait for each other is the one with most edges + angles;
halos are read off a table by parts per structure, experts' loads off one typical micro-batch, for all micro-batches.

Legend: D data groups, c of which are coupled (their ranks wait for each other), M micro-batches of a group;
the columns [6] of rows: micro-batches, structures, atoms, edges, bonds, angles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.layout import Layout
from janus.packing import split_by_cap
from janus.placement import STRATEGIES, ExpertPlan, exchange_traffic, weights_sent
from perfmodel.dataset import DataCounts, SharedBatch, share_batch
from perfmodel.division import divide, whole_part
from perfmodel.step_parts import mean_over_job
from perfmodel.step_work import RunSettings, drawn_experts, settings_traffic
from perfmodel.traffic import HaloCounts, MicroBatchSizes, expert_plans, step_traffic
from perfmodel.traffic_parameters import LAYERS, expert_shape
from perfmodel.workload import PHASES

Floats = NDArray[np.float64]

REPRESENTED = 3  # coupled groups of a batch that are split where there are several micro-batches
MOST_ITEMS = 400  # structures of a group that are split one by one
MOST_SPLIT = 8  # of the groups that wait for each other
MOST_GROUPS = 2048  # of larger jobs a share of the batch is packed on so many groups
HALO_PARTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # parts per structure in the table of halos
HALO_KINDS = ("boundary", "ghosts", "shared_pairs", "shared_bonded_pairs")
SIZE_CLASS = 64.0  # routings of micro-batches within this factor stand for each other


@dataclass(frozen=True, eq=False)
class GroupRows:
    """Rows of a step: of the mean data group, of the slowest of coupled groups (mean over the job), of the slowest of
    all [6] each, and of the largest micro-batch anywhere [6].
    """

    mean: Floats
    coupled: Floats
    slowest: Floats
    largest: Floats


class SharedData:
    """Sampled global batches of one size, shared out over data groups and split by caps, each once."""

    def __init__(self, data: DataCounts, batches: Sequence[Sequence[int]]) -> None:
        assert batches, "a search needs a batch"
        self._data = data
        self._batches = [np.asarray(batch, dtype=np.int64) for batch in batches]
        self._shared: dict[int, list[_Shared]] = {}

    def heaviest(self, data_degree: int) -> float:
        """Work of the heaviest data group of any sampled batch."""
        return max(float(shared.work.max()) for shared in self._of(data_degree))

    def rows(self, data_degree: int, coupled: int, cap: int | None) -> GroupRows:
        """Mean over the sampled batches; the largest micro-batch of all of them."""
        found = [shared.rows(coupled, cap) for shared in self._of(data_degree)]
        largest = max(found, key=lambda rows: float(rows.largest[[3, 5]].sum())).largest
        mean, together, slowest = (
            np.mean([getattr(rows, name) for rows in found], axis=0) for name in ("mean", "coupled", "slowest")
        )
        return GroupRows(mean, together, slowest, largest)

    def coupled_work(self, data_degree: int, coupled: int) -> Floats:
        """Work of the heaviest of every c groups that wait for each other, in the first batch."""
        return np.asarray(self._of(data_degree)[0].together(coupled).max(axis=1))

    def typical(self, data_degree: int, cap: int | None, count: int) -> list[list[int]]:
        """Structures of the first micro-batches of ``count`` groups around the middle by work."""
        return self._of(data_degree)[0].typical(cap, count)

    def _of(self, data_degree: int) -> list[_Shared]:
        if data_degree not in self._shared:
            groups = min(data_degree, MOST_GROUPS)
            self._shared[data_degree] = [
                _Shared(self._data, batch[: max(groups, len(batch) * groups // data_degree)], batch, groups)
                for batch in self._batches
            ]
        return self._shared[data_degree]


class _Shared:
    """One batch over some data groups. sample: the structures packed, a part of the whole batch for very many groups:
    the heaviest structure of the whole batch then stands in for the heaviest of the sample.
    """

    def __init__(self, data: DataCounts, sample: NDArray[np.int64], whole: NDArray[np.int64], groups: int) -> None:
        work = np.asarray(data.work)
        if len(sample) < len(whole):
            sample = sample.copy()
            sample[np.argmax(work[sample])] = whole[np.argmax(work[whole])]
        self.shared: SharedBatch = share_batch(work, sample.tolist(), groups)
        self._columns = np.stack(
            [np.ones(len(sample)), *(np.asarray(column, dtype=np.float64)[sample]
                                     for column in (data.atoms, data.edges, data.bonds, data.angles))], axis=1
        )  # fmt: skip
        self._order = np.argsort(self.shared.group, kind="stable")
        self._ends = np.searchsorted(self.shared.group[self._order], np.arange(groups + 1))
        totals = [np.bincount(self.shared.group, weights=column, minlength=groups) for column in self._columns.T]
        self.totals = np.stack([(totals[0] > 0).astype(float), *totals], axis=1)  # [D,6], one micro-batch each
        self.work = self.shared.group_work
        self._split: dict[tuple[int, int], Floats] = {}

    def micro_batches(self, group: int, cap: int | None) -> Floats:
        """Rows of each micro-batch of a group [M,6]."""
        if cap is None or self.work[group] <= cap:
            return self.totals[group][None]
        key = (group, cap)
        if key not in self._split:
            self._split[key] = self._split_group(group, cap)
        return self._split[key]

    def _split_group(self, group: int, cap: int) -> Floats:
        """Rows of the micro-batches of a group; of very many structures every n-th is split and stands for n."""
        items = self._order[self._ends[group] : self._ends[group + 1]]
        times = max(1, len(items) // MOST_ITEMS)
        items = items[::times]
        pieces = split_by_cap(self.shared.weight[items], cap)
        rows = np.stack([self._columns[items[piece]].sum(axis=0) for piece in pieces])
        whole = np.tile(rows, (times, 1))
        whole *= self.totals[group, 1:] / np.maximum(
            whole.sum(axis=0), 1e-30
        )  # the group's rows, whatever was left out
        return np.hstack([np.ones((len(whole), 1)), whole])

    def rows(self, coupled: int, cap: int | None) -> GroupRows:
        """coupled: data groups that wait for each other, consecutive ones."""
        together = self.together(coupled)
        if cap is None or self.work.max() <= cap:
            return self._one_micro_batch(together)
        order = np.argsort(-together.max(axis=1), kind="stable")
        places = np.unique(np.linspace(0, len(order) - 1, min(REPRESENTED, len(order))).round().astype(int))
        chosen = order[places]
        slowest_rows, mean_rows, largest = [], [], self._largest(cap)
        for number in chosen.tolist():
            members = number * together.shape[1] + _spread(together[number])
            split = [self.micro_batches(int(group), cap) for group in members]
            slowest_rows.append(_slowest_in_lockstep(split))
            mean_rows.append(np.mean([rows.sum(axis=0) for rows in split], axis=0))
        work, everywhere = together[chosen].sum(axis=1), together.sum(axis=1)
        mean = self.totals.mean(axis=0)
        mean[0] = mean_over_job(np.array(mean_rows)[:, :1], work, everywhere)[0]
        slowest = max(slowest_rows, key=lambda rows: float(rows[[3, 5]].sum()))
        return GroupRows(mean, mean_over_job(np.array(slowest_rows), work, everywhere), slowest, largest)

    def together(self, coupled: int) -> Floats:
        """Work of the groups that wait for each other [D/c, c]; of very many groups a rest is left out."""
        each = min(coupled, len(self.work))
        return np.asarray(self.work[: len(self.work) // each * each].reshape(-1, each), dtype=np.float64)

    def _one_micro_batch(self, together: Floats) -> GroupRows:
        """Where nothing is split, all groups count and none has to stand for others."""
        first = np.arange(len(together)) * together.shape[1]
        slowest = self.totals[first + together.argmax(axis=1)]
        largest = self.totals[int(self.work.argmax())]
        return GroupRows(self.totals.mean(axis=0), slowest.mean(axis=0), largest, largest)

    def _largest(self, cap: int) -> Floats:
        """The largest micro-batch: of the heaviest group, or that with the heaviest structure."""
        heavy = int(np.argmax(self._columns[:, [2, 4]].sum(axis=1)))
        groups = {int(self.work.argmax()), int(self.shared.group[heavy])}
        split = np.concatenate([self.micro_batches(group, cap) for group in sorted(groups)])
        return np.asarray(split[int(np.argmax(split[:, [3, 5]].sum(axis=1)))])

    def typical(self, cap: int | None, count: int) -> list[list[int]]:
        """Structures of a middle micro-batch of each of ``count`` groups around the middle by work."""
        order = np.argsort(self.work, kind="stable")
        start = max(0, (len(order) - count) // 2)
        chosen = [int(group) for group in order[start : start + count]]
        found = []
        for group in chosen:
            items = self._order[self._ends[group] : self._ends[group + 1]]
            items = items[:: max(1, len(items) // MOST_ITEMS)]
            whole = cap is None or self.work[group] <= cap or not len(items)
            pieces = [list(range(len(items)))] if whole else split_by_cap(self.shared.weight[items], cap or 1)
            found.append(self.shared.indices[items[pieces[len(pieces) // 2]]].tolist())
        return found


def _spread(work: Floats) -> NDArray[np.int64]:
    """Places of at most ``MOST_SPLIT`` of some groups: the heaviest, the lightest and those evenly between."""
    order = np.argsort(-work, kind="stable")
    return order[np.linspace(0, len(order) - 1, min(MOST_SPLIT, len(order))).round().astype(int)]


def _slowest_in_lockstep(split: Sequence[Floats]) -> Floats:
    """Rows summed over micro-batches, of the group with most work in each [6]; missing ones are empty."""
    longest = max(len(rows) for rows in split)
    padded = np.zeros((len(split), longest, 6))
    padded[:, :, 0] = 1.0
    for number, rows in enumerate(split):
        padded[number, : len(rows)] = rows
    slowest = padded[:, :, [3, 5]].sum(axis=2).argmax(axis=0)
    return np.asarray(padded[slowest, np.arange(longest)].sum(axis=0))


@dataclass(frozen=True, eq=False)
class HaloTable:
    """Halo rows per row of a part, by parts per structure: mean and fullest part [points,4] (``HALO_KINDS``).

    boundary and ghosts per atom, shared pairs per edge, shared bonded pairs per bond.
    """

    mean: Floats
    fullest: Floats

    def at(self, parts_per_structure: Floats) -> tuple[Floats, Floats]:
        """Mean and fullest at any number of parts per structure [K] -> two [K,4].

        Straight in the logarithm of the parts; below the table as the number of cuts, beyond it as its last power.
        """
        parts = np.asarray(parts_per_structure, dtype=np.float64)
        points = np.log2(HALO_PARTS)
        position = np.clip(np.log2(parts), points[0], points[-1])
        mean, fullest = (
            np.stack([np.interp(position, points, column) for column in table.T], axis=1)
            for table in (self.mean, self.fullest)
        )
        power = np.log2(np.maximum(self.mean[-1], 1e-30) / np.maximum(self.mean[-2], 1e-30)).clip(0.0, 1.0)
        beyond = np.maximum(parts / HALO_PARTS[-1], 1.0)[:, None] ** power
        fewer = np.minimum(parts / HALO_PARTS[0], 1.0)[:, None]
        return mean * fewer * beyond, fullest * beyond


def halo_table(data: DataCounts, model: ModelConfig, most_parts: float) -> HaloTable:
    """Halos of a typical structure (half of all work is in smaller ones), divided into more and more parts.

    most_parts: per structure; the table is level beyond.
    """
    work = np.asarray(data.work, dtype=np.float64)
    order = np.argsort(work, kind="stable")
    typical = int(order[np.searchsorted(np.cumsum(work[order]), work.sum() / 2).clip(max=len(order) - 1)])
    found: list[tuple[Floats, Floats]] = []
    for place, parts in enumerate(HALO_PARTS):
        needed = place == 0 or HALO_PARTS[place - 1] < most_parts
        found.append(_halo_of(data, model, typical, parts) if needed else found[-1])
    return HaloTable(np.stack([mean for mean, _ in found]), np.stack([most for _, most in found]))


def _halo_of(data: DataCounts, model: ModelConfig, structure: int, parts_per_structure: float) -> tuple[Floats, Floats]:
    """Mean and fullest ratios [4] of equal structures, so many parts to each; one cut at least."""
    copies = max(1, round(2 / parts_per_structure))
    copies += copies % 2 == 0  # an odd number, so that the cut goes through a structure
    parts = max(2, round(parts_per_structure * copies))
    found = divide(data, [structure] * copies, parts, model)
    rows = np.array([[p.counts.atoms, p.counts.atoms, p.counts.edges, p.counts.bonds] for p in found])
    halo = np.array([[p.boundary, p.counts.ghosts, p.counts.shared_pairs, p.counts.shared_bonded_pairs] for p in found])
    ratio = halo / np.maximum(rows, 1e-30)
    return np.asarray(halo.sum(axis=0) / np.maximum(rows.sum(axis=0), 1e-30)), np.asarray(ratio.max(axis=0))


@dataclass(frozen=True, eq=False)
class HaloTraffic:
    """All-to-alls of a micro-batch over the graph axis: calls [4], and bytes per halo row of each kind [4,4]."""

    calls: Floats
    bytes_per_row: Floats


def halo_traffic(model: ModelConfig, *, recompute: bool, dtype: str) -> HaloTraffic:
    """From ``traffic.step_traffic`` of halos of one row: bytes are linear in the rows."""
    settings = settings_traffic(RunSettings(recompute=recompute, dtype=dtype))
    layout = Layout(unit=2, graph_degree=2)
    calls, each = np.zeros(len(PHASES)), np.zeros((len(PHASES), len(HALO_KINDS)))
    for kind, name in enumerate(HALO_KINDS):
        sizes = MicroBatchSizes(structures=1, halo=HaloCounts(**{name: 1}))
        for row in step_traffic(model, layout, 0, [sizes], settings):
            if (row["axis"], row["collective"]) == ("graph", "all_to_all"):
                phase = PHASES.index(str(row["phase"]))
                calls[phase], each[phase, kind] = float(row["calls"]), float(row["sent_bytes"])
    return HaloTraffic(calls, each)


@dataclass(frozen=True, eq=False)
class Routing:
    """Where the tokens of one typical micro-batch are computed, over an expert group of e ranks.

    tokens [2]: edges, atoms of the mean rank; load [2]: of the fullest rank over the mean; called [2]: experts with
    rows, mean; plans: of the two layers of a block; fullest: the rank that sends most. moved_rows [2]: handed out by
    the mean rank, itself included; moved_weights: numbers that arrive on it, both layers of one block.
    """

    tokens: Floats
    load: Floats
    called: Floats
    plans: tuple[ExpertPlan, ...]
    fullest: int
    moved_rows: Floats
    moved_weights: float

    def exchange(self, model: ModelConfig, item_bytes: int, *, recompute: bool, compressed: bool) -> Floats:
        """All-to-alls of one block and micro-batch by phase [4,3]: calls, bytes of token rows, of weights' gradients.

        Of the rank that sends most; restorations apart (``restored_bytes``).
        """
        result = np.zeros((len(PHASES), 3))
        for layer, plan in zip(LAYERS, self.plans, strict=True):
            shape = expert_shape(model, layer, item_bytes)
            found = exchange_traffic(
                plan, shape, self.fullest, restored_in=(), compressed=compressed, recompute=recompute,
                leaves_block=layer == "feature_update",
            )  # fmt: skip
            home = self._sent(plan, layer, model, item_bytes, home=True)
            for phase, (calls, sent) in found.items():
                place = PHASES.index(phase)
                weights = home if plan.moves_weights and phase in (("BF", "BE") if recompute else ("BE",)) else 0.0
                result[place] += calls, sent - weights, weights
        return result

    def restored_bytes(self, model: ModelConfig, item_bytes: int) -> tuple[float, float]:
        """(all-to-alls, bytes) of restoring the weights of one block's experts once."""
        moving = [(plan, layer) for plan, layer in zip(self.plans, LAYERS, strict=True) if plan.moves_weights]
        return float(len(moving)), sum(self._sent(plan, layer, model, item_bytes) for plan, layer in moving)

    def _sent(self, plan: ExpertPlan, layer: str, model: ModelConfig, item_bytes: int, *, home: bool = False) -> float:
        if not plan.moves_weights:
            return 0.0
        numbers = weights_sent(plan, expert_shape(model, layer, item_bytes))
        numbers = numbers.T if home else numbers
        return float(item_bytes * (numbers[self.fullest].sum() - numbers[self.fullest, self.fullest]))


class Routings:
    """Typical routings by graph and expert degree, strategy and size of a micro-batch, each worked out once."""

    def __init__(self, model: ModelConfig, data: DataCounts) -> None:
        self._model, self._data = model, data
        self._known: dict[tuple[int, int, int, int], Routing] = {}

    @cached_property
    def _experts(self) -> Sequence[NDArray[np.int64]]:
        return drawn_experts(self._model)[: len(LAYERS)]

    def of(
        self, shared: SharedData, data_degree: int, graph: int, expert: int, strategy: int, cap: int | None, size: float
    ) -> Routing:
        """size: edges of a rank's micro-batch, which decides whether experts are worth copying ("tokens")."""
        size_class = round(math.log(max(size, 1.0), SIZE_CLASS)) if strategy == STRATEGIES.index("tokens") else 0
        sharing = round(math.log(min(graph, expert), 4.0))
        key = (sharing, expert, strategy, size_class)
        if key not in self._known:
            self._known[key] = self._work_out(shared, data_degree, graph, expert, strategy, cap)
        return self._known[key]

    def _work_out(
        self, shared: SharedData, data_degree: int, graph: int, expert: int, strategy: int, cap: int | None
    ) -> Routing:
        edges, atoms = self._tokens(shared.typical(data_degree, cap, max(1, expert // graph)), graph, expert)
        settings = settings_traffic(RunSettings(expert_strategy=STRATEGIES[strategy]))
        plans = expert_plans(self._model, self._experts, edges, atoms, settings)
        loads = np.array([plan.loads for plan in plans], dtype=np.float64)
        rows = np.array([plan.rows for plan in plans], dtype=np.float64).sum(axis=0)
        sent = rows.sum(axis=0) + rows.sum(axis=1) - 2 * np.diag(rows)
        return Routing(
            tokens=np.array([edges.sum(axis=1).mean(), atoms.sum(axis=1).mean()]),
            load=loads.max(axis=1) / np.maximum(loads.mean(axis=1), 1e-30),
            called=np.array([plan.computed.sum(axis=1).mean() for plan in plans]), plans=plans,
            fullest=int(sent.argmax()),
            moved_rows=np.array([plan.rows.sum(axis=1).mean() for plan in plans]) * (STRATEGIES[strategy] == "tokens"),
            moved_weights=sum(
                float(plan.restored.sum(axis=1).mean()) * expert_shape(self._model, layer, 1).num_weights
                for plan, layer in zip(plans, LAYERS, strict=True) if plan.moves_weights
            ),
        )  # fmt: skip

    def _tokens(self, groups: list[list[int]], graph: int, expert: int) -> tuple[NDArray, NDArray]:
        """Edges and atoms of each rank of the expert group by element [e,Z]: parts of a graph group are alike."""
        sharing = min(graph, expert)
        elements = slice(1, self._model.num_elements + 1)
        edges, atoms = [], []
        for indices in (groups * expert)[: max(1, expert // sharing)]:
            part = whole_part(self._data, indices)
            if part.edges_of is None or part.atoms_of is None:
                self._data.elements_of([])  # raises: they are not known
            assert part.edges_of is not None, "known"
            assert part.atoms_of is not None, "known"
            edges += [part.edges_of[elements] / graph] * sharing
            atoms += [part.atoms_of[elements] / graph] * sharing
        return np.rint(np.stack(edges)).astype(np.int64), np.rint(np.stack(atoms)).astype(np.int64)
