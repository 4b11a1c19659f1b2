"""Sharing out, divisions and the work of whole jobs: equal to the trainer, to real partitions, and to themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch.utils.flop_counter import FlopCounterMode

from janus.config import ModelConfig
from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.errors import UserError
from janus.layout import Layout
from janus.model.batch import GraphBatch
from janus.packing import pack_longest_first
from janus.parallel.local_graph import part_of_atoms
from janus.presets import preset
from janus.train.sampler import Sampler, share_in_lockstep
from perfmodel.dataset import DataCounts, ElementCounts, group_of_items, lockstep, sample_batches, share_batch
from perfmodel.division import divide, shares_of_parts
from perfmodel.products import PHASES, Counts, Product, phase_flops
from perfmodel.step_work import RunSettings, StepWork, drawn_experts, settings_traffic, step_work
from perfmodel.workload import phase_work, step_flops

MODEL = ModelConfig(cutoff_angstrom=6.0, line_cutoff_angstrom=4.5)
MOE = preset("matris-moe-tiny")


def made_up(num_structures: int = 400, seed: int = 0) -> DataCounts:
    """Structures of 1 to 200 atoms, of three elements each."""
    generator = np.random.default_rng(seed)
    atoms = generator.integers(1, 200, num_structures)
    by_element = np.zeros((num_structures, 95), dtype=np.int64)
    for structure, count in enumerate(atoms):
        elements = generator.choice(np.arange(1, 90), 3, replace=False)
        by_element[structure, elements] = generator.multinomial(count, [0.5, 0.3, 0.2])
    bonds = 20 * atoms
    return DataCounts(
        path="made.store", fingerprint="", atoms=atoms, edges=70 * atoms, bonds=bonds, angles=19 * bonds,
        elements=ElementCounts.from_dense(by_element, 70 * by_element),
    )  # fmt: skip


@pytest.mark.parametrize("num_groups", [1, 7, 64, 900])
def test_groups_are_those_of_longest_first_packing(num_groups: int) -> None:
    work = np.random.default_rng(1).integers(1, 50, 300)  # many ties
    group = group_of_items(work, num_groups)
    assert [np.flatnonzero(group == number).tolist() for number in range(num_groups)] == pack_longest_first(
        work, num_groups
    )


def test_batches_are_the_trainers() -> None:
    data, indices = made_up(), np.arange(0, 400, 3)
    sampler = Sampler(data.work, indices, 20, seed=5)
    assert sample_batches(data.work, 20, 4, 5, indices) == [sampler.batch(step) for step in range(4)]


@pytest.mark.parametrize("max_work", [None, 60_000])
@pytest.mark.parametrize("where", [Layout(replicas=3), Layout(unit=4, replicas=2, graph_degree=2, shard_degree=4)])
def test_micro_batches_are_the_trainers(where: Layout, max_work: int | None) -> None:
    data, batch = made_up(), list(range(100, 160))
    shared = share_batch(data.work, batch, where.data_degree)
    groups = [shared.micro_batches(group, max_work) for group in range(where.data_degree)]
    for rank in range(where.world_size):
        place = where.coordinates(rank)
        first = place.replica * where.data_degree_in_unit
        unit = groups[first : first + where.data_degree_in_unit]
        mine = (unit if where.is_pure_data_parallel else lockstep(unit))[place.data - first]
        assert mine == share_in_lockstep(data.work, batch, where, rank, max_work)


def test_element_counts_give_back_what_was_put_in() -> None:
    data = made_up(20)
    atoms, edges = data.elements_of([3, 0, 19])
    assert atoms.sum(axis=1).tolist() == np.asarray(data.atoms)[[3, 0, 19]].tolist()
    assert edges.sum(axis=1).tolist() == np.asarray(data.edges)[[3, 0, 19]].tolist()
    with pytest.raises(UserError, match="no counts per element"):
        replace(data, elements=None).elements_of([0])


def structure(atoms: Atoms, seed: int = 0) -> Structure:
    positions = atoms.positions + 0.05 * np.random.default_rng(seed).standard_normal(atoms.positions.shape)
    numbers = atoms.numbers.astype(np.int32)
    return Structure(numbers=numbers, positions=positions, cell=atoms.cell.array, pbc=atoms.pbc)


MICRO_BATCHES = {
    "silicon": [bulk("Si", cubic=True).repeat(4)],
    "small copper": [bulk("Cu", cubic=True).repeat(3)],
    "long salt": [bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((1, 2, 6))],
    "several": [bulk(name, cubic=True).repeat(n) for name, n in
                (("Cu", (2, 2, 2)), ("Al", (3, 2, 1)), ("Si", (2, 1, 1)), ("Fe", (3, 3, 2)), ("Ge", (1, 1, 1)))],
}  # fmt: skip


def real_parts(structures: list[Structure], num_parts: int) -> tuple[np.ndarray, DataCounts]:
    """Rows of the real parts [parts, 8] (atoms, edges, bonds, angles, S, H, V, Q), and the counts of the whole."""
    graphs = [build_graph(s, MODEL.cutoff_angstrom, MODEL.line_cutoff_angstrom) for s in structures]
    batch = GraphBatch.collate(structures, graphs)
    part = part_of_atoms(batch, num_parts)
    centre, neighbour, bond_edge = batch.centre.numpy(), batch.neighbour.numpy(), batch.bond_edge.numpy()
    rows = np.zeros((num_parts, 8))
    for number in range(num_parts):
        mine = part[centre] == number
        abroad = mine & (part[neighbour] != number)
        bonds = bond_edge[mine[bond_edge]]
        rows[number] = [
            (part == number).sum(), mine.sum(), len(bonds), mine[bond_edge[batch.angle_first.numpy()]].sum(),
            len(np.unique(centre[abroad] * num_parts + part[neighbour[abroad]])), len(np.unique(neighbour[abroad])),
            abroad.sum(), abroad[bonds].sum(),
        ]  # fmt: skip
    data = DataCounts(
        path="", fingerprint="", atoms=np.array([g.num_atoms for g in graphs]),
        edges=np.array([len(g.centre) for g in graphs]), bonds=np.array([len(g.bond_edge) for g in graphs]),
        angles=np.array([len(g.angle_first) for g in graphs]),
        cell=np.array([s.cell for s in structures]), periodic=np.array([s.pbc for s in structures]),
    )  # fmt: skip
    return rows, data


@pytest.mark.parametrize("num_parts", [2, 4, 8])
@pytest.mark.parametrize("name", MICRO_BATCHES)
def test_estimated_parts_against_real_partitions(name: str, num_parts: int) -> None:
    """Rows of a part within 8 % of their mean; of all parts S, H and V within 25 %, Q within 30 %."""
    real, data = real_parts([structure(atoms, seed) for seed, atoms in enumerate(MICRO_BATCHES[name])], num_parts)
    parts = divide(data, range(len(data.atoms)), num_parts, MODEL)
    estimated = np.array([
        [p.counts.atoms, p.counts.edges, p.counts.bonds, p.counts.angles, p.boundary, p.counts.ghosts,
         p.counts.shared_pairs, p.counts.shared_bonded_pairs] for p in parts
    ])  # fmt: skip
    assert (np.abs(estimated - real) <= 0.08 * real.mean(axis=0))[:, :4].all()
    assert estimated[:, :4].sum(axis=0) == pytest.approx(real[:, :4].sum(axis=0))
    error = estimated[:, 4:].sum(axis=0) / real[:, 4:].sum(axis=0) - 1
    assert np.abs(error[:3]).max() < 0.25, error
    assert abs(error[3]) < 0.3, error


def test_structures_are_cut_only_where_a_cut_passes() -> None:
    shares = shares_of_parts(np.array([3.0, 5.0, 4.0]), 2)  # half of 12 lies in the second
    assert shares == pytest.approx(np.array([[1, 0], [0.6, 0.4], [0, 1]]))
    parts = divide(replace(made_up(3), atoms=np.ones(3), edges=np.full(3, 12), angles=np.zeros(3)), range(3), 3, MODEL)
    assert [part.counts.ghosts for part in parts] == [0, 0, 0]


WHERE = Layout(unit=4, replicas=2, shard_degree=4, graph_degree=2, expert_degree=4)


def of_job(data: DataCounts, where: Layout = WHERE, represented: int | None = None, **settings: object) -> StepWork:
    return step_work(MOE, data, range(60), where, RunSettings(**settings), represented=represented)  # type: ignore[arg-type]


def test_a_job_does_all_the_work_once() -> None:
    """Over the ranks of a job: every atom, edge, angle and copy of a token once; FLOPs as without any layout."""
    data = made_up()
    whole, work = data.of(range(60)), of_job(data, max_work=100_000)
    counts = [micro_batch.counts for rank in work.ranks for micro_batch in rank.micro_batches]
    for name in ("atoms", "edges", "bonds", "angles"):
        assert sum(getattr(one, name) for one in counts) == pytest.approx(getattr(whole, name))
    assert MOE.experts is not None
    assert sum(one.message_copies or 0 for one in counts) == pytest.approx(whole.edges * MOE.experts.top_k, rel=1e-3)
    assert work.group_work.sum() == whole.work
    assert work.flops_model == step_flops(MOE, whole, recompute=False).model_total
    assert work.flops_executed == pytest.approx(step_flops(MOE, whole, recompute=False).executed_total, rel=0.02)


def test_represented_units_stand_for_the_job() -> None:
    data = made_up()
    every, some = of_job(data, Layout(replicas=12)), of_job(data, Layout(replicas=12), represented=3)
    assert len(some.ranks) == 3
    load = {rank.rank: rank.micro_batches[0].counts.work for rank in every.ranks}
    shown = {rank.rank for rank in some.ranks}
    assert max(load, key=load.__getitem__) in shown
    assert min(load.values()) in {load[rank] for rank in shown}
    for rank in some.ranks:
        assert rank == every.ranks[rank.rank]
    assert some.flops_executed == pytest.approx(every.flops_executed, rel=0.02)
    assert (some.group_work == every.group_work).all()


def test_units_of_any_placement_do_the_same() -> None:
    data, other = made_up(), replace(WHERE, placement="replica_first")
    first, second = of_job(data), of_job(data, other)
    for rank in first.ranks:
        place = WHERE.coordinates(rank.rank)
        assert second.ranks[other.rank_at(place.replica, place.position)].phases == rank.phases


def test_work_of_micro_batches_adds_up() -> None:
    """What is worked out at once for all micro-batches of a rank is the sum of what each costs."""
    work = step_work(MOE, made_up(), range(60), Layout(replicas=2), RunSettings(max_work=50_000, recompute=True))
    rank = work.ranks[0]
    assert len(rank.micro_batches) > 3
    each = [phase_work(MOE, one.counts, recompute=True, item_bytes=4) for one in rank.micro_batches]
    for phase in PHASES:
        for name in ("flops", "product_bytes", "plain_bytes", "launches", "grouped_flops", "grouped_calls"):
            total = sum(getattr(one[phase], name) for one in each)
            assert getattr(rank.phases[phase], name) == pytest.approx(total), (phase, name)


def test_spread_experts_need_counts_per_element() -> None:
    with pytest.raises(UserError, match="no counts per element"):
        of_job(replace(made_up(), elements=None))
    alone = of_job(replace(made_up(), elements=None), Layout(replicas=2))
    assert alone.ranks[0].micro_batches[0].experts_called == (8, 8)


def test_gates_are_drawn_as_at_initialisation() -> None:
    """k different experts per element, each equally often, the same in every process."""
    drawn = drawn_experts(MOE)
    assert MOE.experts is not None
    assert len(drawn) == 2 * MOE.num_blocks
    assert all((np.sort(chosen, axis=1)[:, 1:] != np.sort(chosen, axis=1)[:, :-1]).all() for chosen in drawn)
    assert all((one == two).all() for one, two in zip(drawn, drawn_experts(MOE), strict=True))
    share = np.bincount(np.concatenate(drawn).ravel()) / np.concatenate(drawn).size
    assert share == pytest.approx(np.full(MOE.experts.num_experts, 1 / MOE.experts.num_experts), abs=0.04)


def test_traffic_settings_follow() -> None:
    settings = RunSettings(dtype="float64", recompute=True, gathered_blocks=0, expert_flops_per_byte=50.0)
    traffic = settings_traffic(settings)
    assert (traffic.item_bytes, traffic.recompute, traffic.keep, traffic.expert_flops_per_byte) == (8, True, None, 50)


def test_products_of_two_activations_cost_nine_forwards() -> None:
    """A block with real attention, softmax(q k^T) v: products of weights cost 6 forwards, of activations 8 to 9."""
    rows, width = 24, 16
    positions = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    before, wq, wk, wv, wo, after = (
        torch.randn(width, width, dtype=torch.float64).div(4).requires_grad_() for _ in range(6)
    )

    def forward() -> torch.Tensor:
        x = torch.tanh(positions @ before)
        attention = torch.softmax((x @ wq) @ (x @ wk).T, dim=1)
        return (torch.tanh(attention @ (x @ wv) @ wo) @ after).square().sum()

    part = "attention"
    weights = [Product(part=part, rows="atoms", inputs=width, outputs=width, copies=6)]
    scores = [
        Product(part=part, rows="atoms", inputs=width, outputs=rows, activations=True),
        Product(part=part, rows="atoms", inputs=rows, outputs=width, activations=True),
    ]
    predicted = phase_flops(weights + scores, Counts(1, rows, 0, 0, 0))
    with FlopCounterMode(display=False) as forward_counter:
        energy = forward()
    with FlopCounterMode(display=False) as force_counter:
        (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
    with FlopCounterMode(display=False) as backward_counter:
        forces.square().sum().backward()
    assert forward_counter.get_total_flops() == predicted["FE"]
    assert force_counter.get_total_flops() == predicted["FF"]
    # the first product reads the positions, whose gradient the loss does not ask for; the tool computes it all the same
    assert backward_counter.get_total_flops() == predicted["BF"] + predicted["BE"]
    each = [sum(product.multiples().values()) for product in (*weights, *scores)]
    assert each == [6, 9, 9]
