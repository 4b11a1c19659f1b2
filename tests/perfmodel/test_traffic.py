"""Formulas of the traffic against the ledgers of real training steps: every row, every rank, exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from janus.config import ExpertConfig, ModelConfig
from janus.data.structure import Structure
from janus.layout import Layout
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.experts import MixtureOfExperts
from janus.parallel.fs3d import Axes, distribute
from janus.placement import restoring_phases
from janus.presets import PRESETS, preset
from janus.train.config import BatchConfig, LossConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainConfig
from janus.train.loader import BatchLoader
from janus.train.loss import denominators_of_labels
from janus.train.optimizer import build_optimizer
from janus.train.sampler import share_in_lockstep
from janus.train.step import accumulate_gradients, update
from janus.train.timing import PhaseTimer
from janus.train.verify import work_of
from perfmodel.traffic import HaloCounts, MicroBatchSizes, TrafficSettings, expert_plans, step_traffic
from perfmodel.traffic_gathers import restorations
from perfmodel.traffic_parameters import sharded_units, trained_parameters
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads
from tests.train_runs import labelled, make_structures

CUTOFFS = {"cutoff_angstrom": 4.0, "line_cutoff_angstrom": 3.0}
MATRIS = ModelConfig(num_blocks=4, width=8, **CUTOFFS)
MOE = ModelConfig(
    family="matris-moe", num_blocks=4, width=16, num_heads=2, angle_width=8, **CUTOFFS,
    experts=ExpertConfig(num_experts=9, top_k=2, message_hidden=4, feature_hidden=6),
)  # fmt: skip
COMPAT = replace(MATRIS, compat=True)
FEW = replace(MOE, experts=replace(MOE.experts, num_experts=6))
SEED, CPU = 3, torch.device("cpu")
_building = threading.Lock()  # initial weights are drawn from the process's generator


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layout and settings. structures: see ``structures_of``; max_work: of a micro-batch."""

    model: ModelConfig
    layout: Layout
    structures: str = "mixed"
    max_work: int = 1000
    parallel: dict[str, Any] = field(default_factory=dict)
    recompute: bool = False
    clip_norm: float | None = None
    dtype: str = "float64"

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            model=self.model,
            batch=BatchConfig(max_work=self.max_work),
            loss=LossConfig(kind="huber", energy=1.0, forces=2.0, stress=30.0),
            optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=self.clip_norm),
            run=RunConfig(dtype=self.dtype, seed=SEED, recompute=self.recompute),
            parallel=ParallelConfig(**self.layout.to_mapping(), **({"bucket_bytes": 20_000} | self.parallel)),
        )

    @property
    def settings(self) -> TrafficSettings:
        parallel = self.config.parallel
        return TrafficSettings(
            item_bytes=8 if self.dtype == "float64" else 4,
            recompute=self.recompute,
            gathered_blocks=parallel.gathered_blocks,
            expert_strategy=parallel.expert_strategy,
            expert_replication=parallel.expert_replication,
            expert_compression=parallel.expert_compression == "float16",
            bucket_bytes=parallel.bucket_bytes,
        )


@dataclass(frozen=True)
class ThreadPlace:
    """What ``distribute`` asks of a communicator where the axes are there already."""

    rank: int
    device: torch.device


@lru_cache
def structures_of(kind: str) -> tuple[Structure, ...]:
    """mixed: uneven, with a one-atom cell, a lone atom and a cluster; single: one cell, all but one graph group are
    empty; metals: cells of one element each, so that some experts have all the tokens of a rank.
    """
    if kind == "single":
        return (labelled(_rattled(bulk("Cu", cubic=True).repeat((2, 1, 1))), "single"),)
    if kind == "metals":
        cells = (("Cu", 3), ("Ni", 3), ("Al", 1), ("Au", 1))
        return tuple(labelled(_rattled(bulk(metal, cubic=True).repeat((n, 2, 1))), metal) for metal, n in cells)
    made = make_structures()
    far = molecule("CH4")
    far.translate([30.0, 0.0, 0.0])
    return (made[0], made[1], labelled(bulk("Ni"), "one-atom cell"),
            labelled(molecule("CH4") + far, "clusters"), made[8], made[9])  # fmt: skip


def _rattled(atoms: Atoms) -> Atoms:
    atoms.positions += 0.1 * np.random.default_rng(1).standard_normal(atoms.positions.shape)
    return atoms


@dataclass
class Ran:
    """One rank after one training step."""

    rows: list[dict[str, str | int]]
    batches: list[GraphBatch]


def ran_steps(case: Case) -> list[Ran]:
    """One step of the trainer on every rank: gradients, their sums, the update."""
    config, layout, structures = case.config, case.layout, structures_of(case.structures)
    work = work_of(structures, config)
    denominators = denominators_of_labels(_loader(case, structures, None).load_micro_batch(range(len(work))).labels)

    def run(world: ThreadWorld) -> Ran:
        torch.set_num_threads(1)
        axes = Axes(**{name: world.axis(name, layout.groups(name)) for name in Axes.__dataclass_fields__})
        with _building:
            distributed = distribute(config, layout, ThreadPlace(world.rank, CPU), axes=axes)
        optimizer = build_optimizer(distributed.pieces, config.optimizer, distributed.sums.stages)
        loader = _loader(case, structures, axes.graph)
        shares = share_in_lockstep(work, range(len(work)), layout, world.rank, config.batch.max_work)
        micro_batches, timer = loader.load(shares), PhaseTimer(CPU)
        accumulate_gradients(distributed, micro_batches, denominators, config.loss, timer)
        update(distributed, optimizer, config.optimizer.clip_norm, timer)
        return Ran(world.ledger.rows(), [micro_batch.batch for micro_batch in micro_batches])

    return run_on_threads(layout.world_size, run)


def _loader(case: Case, structures: Sequence[Structure], graph: Any) -> BatchLoader:
    return BatchLoader(structures, **CUTOFFS, dtype=getattr(torch, case.dtype), device=CPU, graph=graph)


def halo_of(batch: GraphBatch) -> HaloCounts:
    halo = batch.halo
    if halo is None:
        return HaloCounts()
    return HaloCounts(
        boundary=len(halo.boundary), ghosts=halo.num_ghosts, shared_pairs=len(halo.shared_pairs),
        shared_bonded_pairs=len(halo.shared_bonded_pairs),
    )  # fmt: skip


def tokens_of(batches: Sequence[GraphBatch], tokens: Callable[[GraphBatch], torch.Tensor]) -> np.ndarray:
    """Tokens of each rank and element [n,Z]."""
    return np.stack([torch.bincount(tokens(batch), minlength=MOE.num_elements).numpy() for batch in batches])


def sizes_of(case: Case, ran: list[Ran], rank: int) -> list[MicroBatchSizes]:
    """What the formulas need to know, read off the batches and the initial gates alone."""
    layout, chosen = case.layout, chosen_experts(case)
    group = next(group for group in layout.groups("expert") if rank in group)
    sizes = []
    for number, batch in enumerate(ran[rank].batches):
        plans = ()
        if len(group) > 1:
            there = [ran[member].batches[number] for member in group]
            edges = tokens_of(there, lambda b: (b.numbers - 1)[b.centre])
            plans = expert_plans(case.model, chosen, edges, tokens_of(there, lambda b: b.numbers - 1), case.settings)
        sizes.append(MicroBatchSizes(structures=batch.num_structures, halo=halo_of(batch), plans=plans))
    return sizes


def chosen_experts(case: Case) -> list[np.ndarray]:
    """Experts of each element [Z,k], layer by layer."""
    model = build_model(case.model, seed=SEED, dtype=getattr(torch, case.dtype))
    return [module.gate()[0].numpy() for module in model.modules() if isinstance(module, MixtureOfExperts)]


def differences(case: Case) -> dict[str, Any]:
    """Rows that only the ledger or only the formula has, by rank."""
    ran = ran_steps(case)
    wrong = {}
    for rank, one in enumerate(ran):
        rows = step_traffic(case.model, case.layout, rank, sizes_of(case, ran, rank), case.settings)
        if rows != one.rows:
            wrong[f"rank {rank}"] = {
                "ledger": [row for row in one.rows if row not in rows],
                "formula": [row for row in rows if row not in one.rows],
            }
    return wrong


def layout(unit: int, replicas: int = 1, shard: int = 1, graph: int = 1, expert: int = 1, **options: Any) -> Layout:
    return Layout(unit=unit, replicas=replicas, shard_degree=shard, graph_degree=graph, expert_degree=expert, **options)


KEPT, WEIGHTS = {"gathered_blocks": 0}, {"expert_strategy": "weights"}
HALVED = {"expert_compression": "float16"}
CASES = {
    "one rank": Case(model=MOE, layout=layout(1)),
    "data": Case(model=MATRIS, layout=layout(1, 2)),
    "data, a replica without work": Case(model=MATRIS, layout=layout(1, 2), structures="single", clip_norm=0.5),
    "shard": Case(model=MATRIS, layout=layout(2, shard=2)),
    "shard, three held": Case(model=MATRIS, layout=layout(2, shard=2), parallel={"gathered_blocks": 3}),
    "shard, kept": Case(model=MOE, layout=layout(2, shard=2), parallel=KEPT, recompute=True),
    "shard, replicas without work": Case(model=MATRIS, layout=layout(2, 2, shard=2), structures="single"),
    "shard of a compat model": Case(model=COMPAT, layout=layout(2, shard=2), recompute=True),
    "graph": Case(model=MATRIS, layout=layout(2, graph=2)),
    "graph of experts, recomputed": Case(model=MOE, layout=layout(4, graph=4), recompute=True),
    "graph in half the unit": Case(model=MATRIS, layout=layout(4, graph=2), recompute=True, structures="single"),
    "expert": Case(model=MOE, layout=layout(2, expert=2)),
    "expert, weights": Case(model=MOE, layout=layout(4, expert=4), parallel=WEIGHTS),
    "shard and graph": Case(model=MATRIS, layout=layout(4, shard=4, graph=2), recompute=True, clip_norm=0.5),
    "graph over the unit, shards in half": Case(
        model=MATRIS, layout=layout(4, 2, shard=2, graph=4, placement="replica_first"), parallel={"gathered_blocks": 3},
    ),
    "shard and expert": Case(model=MOE, layout=layout(2, shard=2, expert=2)),
    "shard and expert, recomputed": Case(model=MOE, layout=layout(2, 2, shard=2, expert=2), recompute=True),
    "shard and expert, weights kept": Case(
        model=MOE, layout=layout(4, shard=4, expert=2), parallel=WEIGHTS | KEPT, recompute=True
    ),
    "shard and expert, weights freed": Case(
        model=MOE, layout=layout(4, shard=2, expert=4), parallel=WEIGHTS, clip_norm=0.5
    ),
    "graph and expert": Case(model=MOE, layout=layout(4, graph=4, expert=2), parallel=HALVED),
    "graph and expert, recomputed": Case(
        model=MOE, layout=layout(4, 2, graph=2, expert=4), parallel=HALVED, recompute=True, clip_norm=0.5
    ),
    "all three": Case(model=MOE, layout=layout(4, shard=4, graph=2, expert=4)),
    "all three, recomputed": Case(model=MOE, layout=layout(4, shard=4, graph=4, expert=4), recompute=True),
    "all three, weights, replicas": Case(
        model=MOE, layout=layout(4, 2, shard=4, graph=2, expert=2), parallel=WEIGHTS, recompute=True, clip_norm=0.5
    ),
    "all three over eight": Case(
        model=MOE, layout=layout(8, shard=4, graph=2, expert=8), parallel=HALVED, dtype="float32"
    ),
    "all three over eight, one structure": Case(
        model=MOE, layout=layout(8, shard=8, graph=4, expert=2), structures="single", recompute=True
    ),
    "all three, in part": Case(
        model=MOE, layout=layout(8, shard=2, graph=8, expert=4, placement="replica_first"), parallel=KEPT | HALVED,
        recompute=True, dtype="float32",
    ),
    "lent experts kept": Case(
        model=MOE, layout=layout(2, expert=2), structures="metals", max_work=4000, parallel=KEPT, dtype="float32"
    ),
    "lent experts freed": Case(
        model=MOE, layout=layout(2, expert=2), structures="metals", max_work=4000, dtype="float32", recompute=True
    ),
    "few lent experts freed": Case(
        model=FEW, layout=layout(2, expert=2), structures="metals", max_work=4000, dtype="float32"
    ),
    "lent experts beside shards": Case(
        model=MOE, layout=layout(2, shard=2, expert=2), structures="metals", max_work=4000, dtype="float32"
    ),
    "nothing lent": Case(
        model=MOE, layout=layout(2, expert=2), structures="metals", max_work=4000, dtype="float32",
        parallel={"expert_replication": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_rows_equal_the_ledger(name: str) -> None:
    assert differences(CASES[name]) == {}


def test_the_cases_reach_what_they_are_for() -> None:
    """Two micro-batches with different plans, weights lent in some blocks only, empty ranks and micro-batches."""

    def sizes(name: str) -> list[list[MicroBatchSizes]]:
        ran = ran_steps(CASES[name])
        return [sizes_of(CASES[name], ran, rank) for rank in range(len(ran))]

    assert [size.lends() for size in sizes("few lent experts freed")[0]] == [{0, 2}, set()]
    assert [len(one) for one in sizes("shard, replicas without work")] == [1, 1, 0, 0]
    assert [[size.structures for size in one] for one in sizes("graph in half the unit")] == [[1], [1], [0], [0]]
    assert {len(one) for one in sizes("all three")} == {2}


def test_one_rank_sends_nothing() -> None:
    assert step_traffic(MOE, layout(1), 0, [MicroBatchSizes(structures=3)], TrafficSettings()) == []


UNSHARED = replace(MOE, experts=replace(MOE.experts, num_shared_experts=0))


@pytest.mark.parametrize(
    "model", [*(preset(name) for name in PRESETS), MATRIS, MOE, COMPAT, UNSHARED, replace(MATRIS, num_blocks=1)]
)
def test_parameters_are_those_of_the_model(model: ModelConfig) -> None:
    """Names and their order too: buckets are made in it."""
    real = build_model(model, device="meta").named_parameters()
    assert list(trained_parameters(model).items()) == [(name, p.numel()) for name, p in real if p.requires_grad]


@pytest.mark.parametrize("model", [MATRIS, MOE])
def test_units_hold_every_parameter_once(model: ModelConfig) -> None:
    units = sharded_units(model, layout(8, shard=8))
    assert len(units) == model.num_blocks + 1
    total = sum(trained_parameters(model).values())
    assert 0 <= 8 * sum(units.values()) - total < 8 * len(units)


@pytest.mark.parametrize("keep", [2, 3, 5, None])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_restorations_have_the_documented_closed_form(keep: int | None, micro_batches: int) -> None:
    """Where every block is used: keep + 4 m (L - keep) gathers of blocks, and ``placement.restoring_phases``."""
    num_blocks, held = 5, keep or 5
    every = [set(range(num_blocks))] * micro_batches
    found = restorations(num_blocks, keep, every, sharded=True, spread=True)
    assert len(found.blocks) == held + 4 * micro_batches * (num_blocks - held)
    left, ahead = list(range(num_blocks - held)), list(range(held, num_blocks))
    for phase, blocks, first in (("FE", ahead, range(num_blocks)), ("FF", left, left), ("BF", ahead, ahead),
                                 ("BE", left, left)):  # fmt: skip
        wanted = sorted([*first, *(blocks * (micro_batches - 1))])
        assert sorted(block for there, block in found.blocks if there == phase) == wanted
    for (_, block), phases in found.experts.items():
        assert tuple(phases) == restoring_phases(block, num_blocks, keep)
    assert len(found.experts) == num_blocks * micro_batches
    alone = restorations(num_blocks, keep, every, sharded=False, spread=True)
    assert alone.experts == found.experts
    assert alone.blocks == []


def test_blocks_that_are_not_met_leave_room() -> None:
    """Only block 2 of 4 lends, nothing is sharded: no other block drives its weights out."""
    assert restoring_phases(2, 4, 2) == ("FE", "BF")
    assert restorations(4, 2, [{2}], sharded=False, spread=True).experts[0, 2] == ["FE"]


def test_shards_are_gathered_for_nothing_without_micro_batches() -> None:
    assert restorations(4, 2, [], sharded=True, spread=True).blocks == [("FE", 0)]
