"""Parts of a step (``step_parts.StepParts``) of many candidates at once: each distinct part is priced once.

It owns which columns of a candidate each part depends on. Seconds of computing come from ``compute_time``, of
collectives from ``prices``, sums of gradients from ``step_parts``, rows from ``search_rows``; nothing here knows what
overlaps (``step_time.combine``). tests/perfmodel/test_search.py holds the result to ``step_time.predict``.

Of every collective the part that does not depend on its size is kept beside the whole, so that what a slower link or a
longer latency would change can be worked out without pricing again (``sensitivity``).

Legend: C candidates, K distinct combinations of the columns that a part depends on, 4 phases, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from janus.layout import AxisName
from janus.placement import STRATEGIES
from perfmodel.candidates import Candidates
from perfmodel.compute_time import COMPUTE_CAUSES, ROWS, loader_seconds, optimizer_seconds, second_coefficients
from perfmodel.machine import Rates
from perfmodel.network.noise import Noise
from perfmodel.prices import group_size
from perfmodel.search_packing import ExchangeFeatures
from perfmodel.search_rows import Routing, halo_traffic
from perfmodel.search_tables import Tables
from perfmodel.slowest import expected_slowest
from perfmodel.step_parts import (
    CONTROL_BYTES,
    CONTROL_SUMS,
    NORM_BYTES,
    PACK_CALLS,
    PACK_PASSES,
    PLAN_S,
    SUM_AXES,
    StepParts,
    cover_of_sums,
)
from perfmodel.step_time import ASSUMED_DEVIATION
from perfmodel.traffic import COUNT_BYTES, GROUP_SUM_BYTES
from perfmodel.traffic_parameters import LAYERS, ROOT
from perfmodel.workload import ITEM_BYTES, PHASES, Counts, parameter_tensors
from perfmodel.workload_moe import experts_of

Floats = NDArray[np.float64]

FE, FF, BF, BE = range(len(PHASES))
RANK_ROWS = ("mean", "coupled", "slowest")  # of GroupRows, in this order
SHAPE = ("world_size", "unit", "placement", "transport")  # with the degree of an axis: what its groups depend on
NOTHING_BYTES = 1.0  # a message of no size to speak of: what remains is latency


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchParts:
    """parts: of C candidates; latency_s: of every communication part, what its size does not change, [C] or [C,4] or
    [C,3] as the part; micro_batches [C]: of the slowest group; overlap [C]; notes: what was assumed.
    """

    parts: StepParts
    latency_s: Mapping[str, Floats]
    micro_batches: Floats
    overlap: Floats
    notes: tuple[str, ...]


class Pricing:
    """Parts of candidates, from tables that are kept between calls."""

    def __init__(self, tables: Tables, candidates: Candidates) -> None:
        self.tables, self.job, self.model = tables, tables.job, tables.job.model
        coupled = np.lcm(np.lcm(candidates["shard_degree"], candidates["graph_degree"]), candidates["expert_degree"])
        columns = {**candidates.columns, "coupled": coupled}
        columns["spread"] = (candidates["expert_degree"] > 1).astype(np.int64)
        columns["number"] = np.arange(len(candidates))
        self.candidates = replace(candidates, columns=columns, known_places={})
        self.item_bytes = ITEM_BYTES[self.job.dtype]
        self.values: dict[str, Floats] = {}
        self.latency: dict[str, Floats] = {}
        self.packing = np.zeros((len(candidates), len(PHASES)))

    def build(self) -> SearchParts:
        """Every part in turn."""
        self.fillings()
        self.rows()
        self.routes()
        self.compute()
        self.shard()
        self.graph()
        self.expert()
        self.sums()
        self.own_work()
        self.values["packing_s"] = self.packing
        self.tables.note(self.tables.priced_notes())
        return SearchParts(
            parts=StepParts(**self.values), latency_s=self.latency, micro_batches=self.micro_batches,
            overlap=self.overlap, notes=tuple(self.tables.notes),
        )  # fmt: skip

    def once(self, names: Sequence[str], work_out: Callable[[Candidates], Sequence[Floats]]) -> list[Floats]:
        """What depends on these columns only: worked out for one candidate of each kind, then for all [C, ...]."""
        first, which = self.candidates.keys(names)
        return [np.asarray(array)[which] for array in work_out(self.candidates.take(first))]

    # what a number of ranks means

    def fillings(self) -> None:
        """Rates by the number of ranks, and what follows from them alone."""
        tensors = parameter_tensors(self.model)

        def work_out(some: Candidates) -> list[Floats]:
            found = [self.tables.filling(int(world)) for world in some["world_size"]]
            rates = [one.rates for one in found]
            return [
                np.array([one.turns for one in found]), np.array([one.hidden for one in found]),
                np.array([one.overlap for one in found]),
                np.array([(rate.step_s or 0.0) + tensors * (rate.step_tensor_s or 0.0) for rate in rates]),
                np.array([rate.plain_bytes_per_s for rate in rates]), np.array([rate.op_s for rate in rates]),
            ]  # fmt: skip

        turns, hidden, self.overlap, outside, self.plain_bytes_per_s, self.op_s = self.once(["world_size"], work_out)
        self.values |= {"turns": turns, "loader_hidden": hidden, "outside_s": outside}

    # rows

    def rows(self) -> None:
        """Rows of mean, coupled and slowest ranks [C,3,6] before division, halo ratios [C,2,4], noise factors."""
        most = int(self.candidates["graph_degree"].max())

        def groups(some: Candidates) -> list[Floats]:
            found = [
                self.tables.rows(
                    int(some["world_size"][k]), int(some.data_degree[k]),
                    int(some["coupled"][k] // some["graph_degree"][k]), some.cap(k),
                )
                for k in range(len(some))
            ]  # fmt: skip
            return [np.stack([[getattr(one, name) for name in RANK_ROWS] for one in found])]

        (self.group_rows,) = self.once(["world_size", "graph_degree", "coupled", "cap"], groups)
        self.micro_batches = np.maximum(self.group_rows[:, 2, 0], 1.0)
        self.visits = self.micro_batches * self.model.num_blocks

        def halos(some: Candidates) -> list[Floats]:
            ratios = np.zeros((len(some), 2, 4))
            divided = some["graph_degree"] > 1
            if divided.any():
                found = [
                    self.tables.rows(int(some["world_size"][k]), int(some.data_degree[k]), 1, some.cap(k)).mean
                    for k in np.flatnonzero(divided).tolist()
                ]
                structures = np.array([max(row[1] / max(row[0], 1e-9), 1.0) for row in found])
                mean, fullest = self.tables.halos(most).at(some["graph_degree"][divided] / structures)
                ratios[divided, 0], ratios[divided, 1] = mean, fullest
            return [ratios]

        (self.halo_ratios,) = self.once(["world_size", "graph_degree", "cap"], halos)
        unit, slowest = self.once(["world_size", "graph_degree", "coupled"], self._noise_factors)
        self.values |= {"unit_factor": unit, "slowest_factor": slowest}

    def _noise_factors(self, some: Candidates) -> list[Floats]:
        factors = np.ones((2, len(some)))
        noise = self.job.noise
        if noise is None:
            if self.job.machine.is_calibrated_host:
                return list(factors)
            noise = Noise(compute_deviation=ASSUMED_DEVIATION)
            self.tables.note([f"assumed: a rank's compute deviates by {100 * ASSUMED_DEVIATION:g} % from step to step"])
        for k in range(len(some)):
            world, coupled, graph = (int(some[name][k]) for name in ("world_size", "coupled", "graph_degree"))
            if world == 1:
                continue
            factors[0, k] = expected_slowest(np.ones(1), coupled, noise) if coupled > 1 else 1.0
            works = self.tables.shared(world).coupled_work(world // graph, coupled // graph)
            factors[1, k] = expected_slowest(works / works.max(), coupled, noise)
        return list(factors)

    # compute

    def compute(self) -> None:
        names = ["world_size", "graph_degree", "coupled", "cap", "recompute", "expert_degree", "expert_strategy"]
        mean, unit, slowest, self.three_body, self.shared, rows, moved = self.once(names, self._compute)
        self.values |= {"compute_s": mean, "unit_s": unit, "slowest_s": slowest}
        self.exchange_work(rows, moved)

    def _compute(self, some: Candidates) -> list[Floats]:
        """compute_s [K,4,causes], unit_s, slowest_s [K,4], what runs beside halos and exchanges [K,4], rows of the mean
        rank [K,R], its rows and weights that move in all [K,2].
        """
        rows = self._rank_rows(some)
        seconds = np.zeros((len(some), len(RANK_ROWS), len(PHASES), len(COMPUTE_CAUSES)))
        three_body, shared = np.zeros((2, len(some), len(PHASES)))
        first, which = some.keys(["world_size", "recompute"])
        for kind, k in enumerate(first.tolist()):
            mine = which == kind
            rates, recompute = self.tables.filling(int(some["world_size"][k])).rates, bool(some["recompute"][k])
            coefficients = second_coefficients(self.model, rates, dtype=self.job.dtype, recompute=recompute)
            seconds[mine] = np.tensordot(rows[mine], coefficients, axes=1)
            if self.model.experts is not None:
                by_row = coefficients.sum(axis=2)
                three_body[mine], shared[mine] = self._beside(rows[mine, 0], by_row, rates, recompute)
        mean, unit, slowest = seconds[:, 0], seconds[:, 1].sum(axis=-1), seconds[:, 2].sum(axis=-1)
        return [mean, np.maximum(unit, mean.sum(axis=-1)), slowest, three_body, shared, rows[:, 0], self._moved(some)]

    def _moved(self, some: Candidates) -> Floats:
        """Token rows and numbers of weights that move, of the mean rank's step [K,2]."""
        moved = np.zeros((len(some), 2))
        if self.model.experts is None:
            return moved
        route, row = self.route[some["number"]], self.group_rows[some["number"], 0]
        tokens = row[:, [3, 2]] / some["graph_degree"][:, None]
        ratio = tokens / np.maximum(self._of_routes("tokens")[route], 1e-9)
        moved[:, 0] = (self._of_routes("moved_rows")[route] * ratio).sum(axis=1)
        moved[:, 1] = self._of_routes("moved_weights")[route] * self.model.num_blocks * row[:, 0]
        return moved * (some["expert_degree"] > 1)[:, None]

    def exchange_work(self, rows: Floats, moved: Floats) -> None:
        """What exchanges add to the mean rank's own work (``exchange_arithmetic``) [C,4], as packing."""
        added = ExchangeFeatures(self.model, self.job.dtype)
        m, number = self.group_rows[:, 0, 0], self.candidates
        result = np.zeros_like(self.packing)
        columns = ["world_size", "recompute", "expert_degree", "expert_compression"]
        first, which = number.keys(columns)
        for kind, k in enumerate(first.tolist()):
            mine = np.flatnonzero(which == kind)
            world, recompute, expert, compressed = (int(number[name][k]) for name in columns)
            costs = added.costs(self.tables.filling(world).rates)
            divided, sharded = number["graph_degree"][mine] > 1, number["shard_degree"][mine] > 1
            if divided.any():
                fixed, per_row = (features @ costs for features in added.divided(bool(recompute)))
                result[mine] += divided[:, None] * (m[mine, None] * fixed + rows[mine] @ per_row)
            if expert > 1:
                fixed, row, weight = (
                    features @ costs for features in added.spread(expert, bool(recompute), bool(compressed))
                )
                result[mine] += m[mine, None] * fixed + moved[mine, :1] * row + moved[mine, 1:] * weight
            if sharded.any():
                fixed = added.sharded(expert > 1, bool(recompute)) @ costs
                result[mine] += (sharded * m[mine])[:, None] * fixed
        self.packing += np.maximum(result, 0.0)

    def _rank_rows(self, some: Candidates) -> Floats:
        """Rows of every kind (``ROWS``) of mean, coupled and slowest ranks, summed over micro-batches [K,3,R]."""
        places = some["number"]
        groups, halos = self.group_rows[places], self.halo_ratios[places][:, [0, 1, 1]]
        graph = some["graph_degree"][:, None]
        columns = dict(zip(("once", "structures", "atoms", "edges", "bonds", "angles"), np.moveaxis(groups, 2, 0),
                           strict=True))  # fmt: skip
        for name in ("atoms", "edges", "bonds", "angles"):
            columns[name] = columns[name] / graph
        for kind, (name, per) in enumerate((("boundary", "atoms"), ("ghosts", "atoms"), ("shared_pairs", "edges"),
                                            ("shared_bonded_pairs", "bonds"))):  # fmt: skip
            columns[name] = columns[per] * halos[:, :, kind]
        if self.model.experts is not None:
            top_k = experts_of(self.model).top_k
            load, called = self._routed(some)
            for layer, (name, tokens) in enumerate((("message", "edges"), ("feature", "atoms"))):
                columns[f"{name}_copies"] = columns[tokens] * top_k * load[:, :, layer]
                columns[f"{name}_experts"] = columns["once"] * called[:, None, layer]
        return np.stack([columns.get(name, np.zeros(groups.shape[:2])) for name in ROWS], axis=2)

    def _routed(self, some: Candidates) -> tuple[Floats, Floats]:
        """Loads of mean, coupled and slowest ranks over the mean [K,3,2], and called experts [K,2]."""
        load = np.ones((len(some), len(RANK_ROWS), len(LAYERS)))
        tokens = (some["expert_strategy"] == STRATEGIES.index("tokens")) & (some["expert_degree"] > 1)
        load[:, 1:] = np.where(tokens[:, None, None], self._of_routes("load")[self.route[some["number"]]][:, None], 1.0)
        return load, self._of_routes("called")[self.route[some["number"]]]

    def _of_routes(self, name: str) -> Floats:
        """A number or a pair of every typical routing."""
        return np.array([getattr(one, name) for one in self.known_routes], dtype=np.float64)

    def routes(self) -> None:
        """The typical routing of every candidate, as a place among those known [C]."""
        self.known_routes: list[Routing] = []
        self.route = np.zeros(len(self.candidates), dtype=np.int64)
        if self.model.experts is None:
            return
        places: dict[int, int] = {}

        def work_out(some: Candidates) -> list[Floats]:
            found = np.zeros(len(some))
            for k in range(len(some)):
                routing = self._routing(some, k)
                if id(routing) not in places:
                    places[id(routing)] = len(self.known_routes)
                    self.known_routes.append(routing)
                found[k] = places[id(routing)]
            return [found]

        names = ["world_size", "graph_degree", "expert_degree", "expert_strategy", "cap"]
        self.route = self.once(names, work_out)[0].astype(np.int64)

    def _routing(self, some: Candidates, k: int) -> Routing:
        world, graph = int(some["world_size"][k]), int(some["graph_degree"][k])
        row = self.group_rows[int(some["number"][k]), 0]
        return self.tables.routings.of(
            self.tables.shared(world), world // graph, graph, int(some["expert_degree"][k]),
            int(some["expert_strategy"][k]), some.cap(k), float(row[3] / max(row[0], 1e-9) / graph),
        )  # fmt: skip

    def _beside(self, rows: Floats, by_row: Floats, rates: Rates, recompute: bool) -> tuple[Floats, Floats]:
        """Parts [K,4] of a rank's compute that run beside halos and beside exchanges (``step_parts``)."""
        whole = np.maximum(rows @ by_row, 1e-30)
        angular = [ROWS.index(name) for name in ("angles", "bonds", "shared_bonded_pairs")]
        experts = experts_of(self.model)
        hidden = rows[:, ROWS.index("edges")] * experts.message_hidden
        hidden = hidden + rows[:, ROWS.index("atoms")] * experts.feature_hidden
        flops = 6.0 * hidden * self.model.width * experts.num_shared_experts * self.model.num_blocks
        multiples = np.array([1, 2, 6, 3] if recompute else [1, 1, 2, 2])
        shared = rates.step_stretch * flops[:, None] * multiples / rates.matmul_flops_per_s
        return rows[:, angular] @ by_row[angular] / whole, np.minimum(shared / whole, 1.0)

    # collectives

    def price(self, some: Candidates, axis: AxisName, collective: str, sizes: Floats) -> tuple[Floats, Floats]:
        """Seconds of one collective of each size [K, ...] in every group of the axis, and of one of no size."""
        degree = {"shard": "shard_degree", "shard_copies": "shard_degree", "graph": "graph_degree",
                  "expert": "expert_degree", "expert_copies": "expert_degree", "world": "world_size"}[axis]  # fmt: skip
        seconds, latency = np.zeros(sizes.shape), np.zeros(sizes.shape)
        first, which = some.keys([*SHAPE, degree])
        for kind, k in enumerate(first.tolist()):
            mine, layout = which == kind, some.layout(k)
            if group_size(layout, axis) > 1:
                asked = np.concatenate([[NOTHING_BYTES], sizes[mine].ravel()])
                found = self.tables.seconds(some.transport(k), layout, axis, collective, asked)
                seconds[mine] = found[1:].reshape(sizes[mine].shape)
                latency[mine] = np.minimum(found[0], seconds[mine])
        return seconds, latency

    def pack(self, collective: str, calls: Floats, size: Floats) -> None:
        """Memory traffic and operator calls that go with collectives, [C,4] each."""
        each_s = PACK_PASSES[collective] * size / self.plain_bytes_per_s[:, None]
        self.packing += calls * (each_s + PACK_CALLS[collective] * self.op_s[:, None])

    def shard(self) -> None:
        """Gathers and reduce-scatters: calls as ``traffic_gathers`` states them, blocks all of the mean size."""
        num_blocks = self.model.num_blocks

        def work_out(some: Candidates) -> list[Floats]:
            sizes = np.zeros((len(some), 4))  # root, first block, mean block, mean of blocks and root
            for k in range(len(some)):
                units = self.tables.units(int(some["shard_degree"][k]), int(some["expert_degree"][k]))
                if units:
                    blocks = [units[block] for block in range(num_blocks)]
                    sizes[k] = units[ROOT], blocks[0], np.mean(blocks), np.mean([*blocks, units[ROOT]])
            sizes *= (some["shard_degree"] * self.item_bytes)[:, None]
            return [sizes, *self.price(some, "shard", "all_gather", sizes),
                    *self.price(some, "shard", "reduce_scatter", sizes)]  # fmt: skip

        sizes, gather, gather_0, scatter, scatter_0 = self.once([*SHAPE, "shard_degree", "spread"], work_out)
        sharded = (self.candidates["shard_degree"] > 1).astype(float)
        keep = np.where(self.candidates["gathered_blocks"] == 0, num_blocks, self.candidates["gathered_blocks"])
        again = np.maximum(num_blocks - keep, 0)
        m, calls = self.micro_batches, np.zeros((len(self.candidates), 4))
        calls[:, FE] = num_blocks - 1 + (m - 1) * again  # the first block and the root apart
        calls[:, FF:] = (m * again)[:, None]
        calls *= sharded[:, None]
        self.values |= {
            "root_gather_s": gather[:, 0], "first_gather_s": gather[:, 1], "gathers_s": calls * gather[:, 2:3],
            "gathers_cover": np.minimum(1.0, calls / self.visits[:, None]),
        }  # fmt: skip
        self.latency |= {
            "root_gather_s": gather_0[:, 0], "first_gather_s": gather_0[:, 1], "gathers_s": calls * gather_0[:, 2:3],
        }  # fmt: skip
        with_root = calls.copy()
        with_root[:, FE] += 2 * sharded
        self.pack("all_gather", with_root, sizes[:, 2:3])
        scatters, scatters_0, number = np.zeros((3, len(m), 4))
        number[:, BE] = sharded * m * (num_blocks + 1)
        number[:, BF] = sharded * m * num_blocks * self.candidates["recompute"]
        scatters[:, BE], scatters_0[:, BE] = number[:, BE] * scatter[:, 3], number[:, BE] * scatter_0[:, 3]
        scatters[:, BF], scatters_0[:, BF] = number[:, BF] * scatter[:, 2], number[:, BF] * scatter_0[:, 2]
        last = np.minimum(m * scatter[:, 0], scatters[:, BE])
        self.values |= {
            "scatters_s": scatters, "last_scatter_s": last,
            "scatters_cover": (number > 0) * ((self.visits - m) / self.visits)[:, None],
        }  # fmt: skip
        self.latency |= {"scatters_s": scatters_0, "last_scatter_s": np.minimum(m * scatter_0[:, 0], last)}

    def graph(self) -> None:
        """Halos and the sums over the graph group."""
        if not (self.candidates["graph_degree"] > 1).any():
            return
        traffic = [halo_traffic(self.model, recompute=recompute, dtype=self.job.dtype) for recompute in (False, True)]

        def work_out(some: Candidates) -> list[Floats]:
            """Of one micro-batch: calls, seconds, latencies, and of the sums [K,4] each."""
            places = some["number"]
            group, ratio = self.group_rows[places, 1], self.halo_ratios[places, 1]
            each = group[:, 1:] / np.maximum(group[:, :1], 1e-9)  # structures, atoms, edges, bonds, angles
            rows = each[:, [1, 1, 2, 3]] / some["graph_degree"][:, None] * ratio
            calls = np.stack([one.calls for one in traffic])[some["recompute"]]
            sent = np.einsum("kpr,kr->kp", np.stack([one.bytes_per_row for one in traffic])[some["recompute"]], rows)
            divided = some["graph_degree"] > 1
            factor = some["graph_degree"] / np.maximum(some["graph_degree"] - 1, 1)
            sizes = np.where(divided[:, None], sent / np.maximum(calls, 1) * factor[:, None], 0.0)
            halo, halo_0 = self.price(some, "graph", "all_to_all", sizes)
            sums, sums_0 = self.price(some, "graph", "all_reduce", GROUP_SUM_BYTES * each[:, :1])
            return [calls * divided[:, None], halo, halo_0, sums, sums_0]

        names = [*SHAPE, "graph_degree", "coupled", "cap", "recompute"]
        calls, halo, halo_0, sums, sums_0 = self.once(names, work_out)
        number = calls * self.micro_batches[:, None]
        times = np.zeros(4)
        times[[FF, BF]] = 1.0
        self.values |= {
            "halos_s": number * halo, "halos_cover": self.three_body * (number > 0),
            "group_sums_s": self.micro_batches[:, None] * sums * times,
        }  # fmt: skip
        self.latency |= {
            "halos_s": number * halo_0, "group_sums_s": self.micro_batches[:, None] * sums_0 * times,
        }  # fmt: skip

    def expert(self) -> None:
        """Exchanges of token rows and of weights."""
        if not (self.candidates["expert_degree"] > 1).any():
            return
        names = [*SHAPE, "graph_degree", "expert_degree", "expert_strategy", "expert_compression", "gathered_blocks",
                 "recompute", "cap"]  # fmt: skip
        number, seconds, latency, gathered, gathered_0 = self.once(names, self._exchanges)
        m = self.micro_batches[:, None]
        weights = self.candidates["expert_strategy"] == STRATEGIES.index("weights")
        self.values |= {
            "exchanges_s": m * number * seconds,
            "exchanges_cover": np.where(weights[:, None], 1.0, self.shared) * (number > 0),
            "composition_s": self.micro_batches * gathered,
            "plan_s": self.micro_batches * len(LAYERS) * self.model.num_blocks * PLAN_S
            * self.candidates["expert_degree"] / 8 * self.candidates["spread"],
        }  # fmt: skip
        self.latency |= {"exchanges_s": m * number * latency, "composition_s": self.micro_batches * gathered_0}

    def _exchanges(self, some: Candidates) -> list[Floats]:
        """Of one micro-batch: calls, seconds and latency of one [K,4], the composition's gather and its latency [K]."""
        num_blocks, route = self.model.num_blocks, self.route[some["number"]]
        spread = (some["expert_degree"] > 1)[:, None]
        each = np.zeros((len(self.known_routes), 2, 2, len(PHASES), 3))
        for place, one in enumerate(self.known_routes):
            for recompute in range(2):
                for compressed in range(2):
                    each[place, recompute, compressed] = one.exchange(
                        self.model, self.item_bytes, recompute=bool(recompute), compressed=bool(compressed)
                    )
        restored = np.array([one.restored_bytes(self.model, self.item_bytes) for one in self.known_routes])[route]
        chosen = each[route, some["recompute"], some["expert_compression"]]
        row = self.group_rows[some["number"], 0]
        tokens = row[:, 3] / np.maximum(row[:, 0], 1e-9) / some["graph_degree"]
        scale = tokens / np.maximum(self._of_routes("tokens")[route, 0], 1e-9)
        keep = np.where(some["gathered_blocks"] == 0, num_blocks, some["gathered_blocks"])
        blocks = np.stack([np.full(len(some), num_blocks), *[np.maximum(num_blocks - keep, 0)] * 3], axis=1)
        calls = spread * (num_blocks * chosen[:, :, 0] + blocks * restored[:, :1])
        sent = num_blocks * (chosen[:, :, 1] * scale[:, None] + chosen[:, :, 2]) + blocks * restored[:, 1:]
        sent = spread * sent
        degree = some["expert_degree"]
        factor = degree / np.maximum(degree - 1, 1)
        sizes = sent / np.maximum(calls, 1e-9) * factor[:, None]
        seconds, latency = self.price(some, "expert", "all_to_all", sizes)
        composition = (degree * 2 * self.model.num_elements * COUNT_BYTES).astype(float)
        return [calls, seconds, latency, *self.price(some, "expert", "all_gather", composition)]

    def sums(self) -> None:
        """Sums of gradients over the copies, of the norm, and the small ones."""

        def work_out(some: Candidates) -> list[Floats]:
            rows = [self._sums_of(some, k) for k in range(len(some))]
            return [np.array(column) for column in zip(*rows, strict=True)]

        names = [*SHAPE, "shard_degree", "expert_degree", "expert_strategy"]
        sums, sums_0, last, last_0, number, cover, norm, control, packed = self.once(names, work_out)
        self.packing[:, BE] += packed[:, 0] / self.plain_bytes_per_s + packed[:, 1] * self.op_s
        share = np.maximum(number - 1, 0) / np.maximum(number, 1)
        self.values |= {
            "sums_s": sums, "last_sum_s": last, "sums_cover": cover / np.maximum(self.micro_batches, 1),
            "pipelined": np.zeros(len(share)) if self.job.clips else share, "norm_s": norm, "control_s": control,
        }  # fmt: skip
        self.latency |= {"sums_s": sums_0, "last_sum_s": last_0, "norm_s": norm, "control_s": control}

    def _sums_of(self, some: Candidates, k: int) -> tuple[object, ...]:
        """sums_s and latency [3], last sums and latency, stages, cover, norm, control, bytes and calls of packing."""
        layout = some.layout(k)
        sums, sums_0, packed = np.zeros(len(SUM_AXES)), np.zeros(len(SUM_AXES)), np.zeros(2)
        if layout.world_size == 1:
            return sums, sums_0, 0.0, 0.0, 1, 0.0, 0.0, 0.0, packed
        stages = self.tables.stages(layout.shard_degree, layout.expert_degree, int(some["expert_strategy"][k]))
        transport = some.transport(k)
        last = last_0 = 0.0
        for place, axis in enumerate(SUM_AXES):
            sizes = np.array([size for name, size, _ in stages if name == axis])
            late = np.array([block <= 0 for name, _, block in stages if name == axis])
            if len(sizes) and group_size(layout, axis) > 1:
                asked = np.concatenate([[NOTHING_BYTES], sizes])
                found = self.tables.seconds(transport, layout, axis, "all_reduce", asked)
                least = np.minimum(found[0], found[1:])
                sums[place], sums_0[place] = found[1:].sum(), least.sum()
                last, last_0 = last + float(found[1:][late].sum()), last_0 + float(least[late].sum())
                if axis != "shard_copies":
                    packed += PACK_PASSES["all_reduce"] * sizes.sum(), PACK_CALLS["all_reduce"] * len(sizes)
        number = max((sum(name == axis for name, _, _ in stages) for axis in SUM_AXES), default=1)
        norm = float(self.tables.seconds(transport, layout, "world", "all_reduce", np.array([NORM_BYTES]))[0])
        small = self.tables.seconds("gloo", layout, "world", "all_reduce", np.array([CONTROL_BYTES]))[0]
        cover = cover_of_sums(stages, self.model.num_blocks)
        return sums, sums_0, last, last_0, number, cover, norm, CONTROL_SUMS * float(small), packed

    # what a rank does beside the phases

    def own_work(self) -> None:
        """Optimizer and loader."""

        def optimizer(some: Candidates) -> list[Floats]:
            seconds = np.zeros(len(some))
            for k in range(len(some)):
                degrees = (int(some[name][k]) for name in ("shard_degree", "expert_degree", "expert_strategy"))
                seconds[k] = optimizer_seconds(
                    *self.tables.kept(*degrees), self.tables.filling(int(some["world_size"][k])).rates,
                    dtype=self.job.dtype, clips=self.job.clips, averages=self.job.averages,
                )  # fmt: skip
            return [seconds]

        names = ["world_size", "shard_degree", "expert_degree", "expert_strategy"]
        (self.values["optimizer_s"],) = self.once(names, optimizer)

        def loader(some: Candidates) -> list[Floats]:
            seconds = []
            for k in range(len(some)):
                world, graph = int(some["world_size"][k]), int(some["graph_degree"][k])
                rates, mean = self.tables.filling(world).rates, self.tables.rows(world, world // graph, 1, None).mean
                seconds.append(loader_seconds([Counts(*mean[1:].tolist())], rates, divided=graph > 1))
            return [np.array(seconds)]

        (self.values["loader_s"],) = self.once(["world_size", "graph_degree"], loader)
