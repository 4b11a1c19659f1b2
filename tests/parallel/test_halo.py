"""Local batches against the whole one, and the four movements with their derivatives against one process."""

from __future__ import annotations

from collections.abc import Callable

import ase.build
import numpy as np
import pytest
import torch
from torch import Tensor

from janus.model.batch import GraphBatch
from janus.model.geometry import measure
from janus.parallel.ledger import BACKWARD, in_phase
from janus.parallel.local_graph import labels_of_part, local_batch, part_of_atoms, partition
from janus.train.loss import Labels
from tests.model.conftest import MATRIS, batch_of
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads


def whole_batch() -> GraphBatch:
    """A cell whose atoms neighbour their own images, a molecule, a larger cell and a lone atom."""
    cells = [ase.build.bulk("Mo", "bcc", a=2.9), ase.build.bulk("NaCl", "rocksalt", a=5.2, cubic=True)]
    for atoms in cells:
        atoms.rattle(0.1, seed=4)
    return batch_of(MATRIS, cells[0], ase.build.molecule("CH3CH2OH"), cells[1], ase.Atoms("He"))


def random_parts(batch: GraphBatch, num_parts: int) -> np.ndarray:
    return np.random.default_rng(num_parts).integers(0, num_parts, batch.num_atoms)


Division = Callable[[GraphBatch, int], np.ndarray]


@pytest.fixture(params=[part_of_atoms, random_parts], ids=["divided", "random"])
def division(request: pytest.FixtureRequest) -> Division:
    return request.param


def on_ranks(num_ranks: int, division: Division, function: Callable[[GraphBatch, GraphBatch], object]) -> list:
    """function(whole, part) on every rank."""
    batch = whole_batch()
    part_of_atom = division(batch, num_ranks)

    def work(world: ThreadWorld) -> object:
        return function(batch, local_batch(batch, part_of_atom, world.axis("graph")))

    return run_on_threads(num_ranks, work)


def global_atoms(whole: GraphBatch, part: GraphBatch) -> Tensor:
    """Place in the whole batch of each owned atom and ghost, learnt from the owners."""
    places = part.halo.owned.double()[:, None]
    return part.with_ghosts(places)[:, 0].long()


def edge_names(batch: GraphBatch, atoms: Tensor) -> list[tuple[int, ...]]:
    """(centre, neighbour, image) of each edge in the numbering of the whole batch."""
    columns = [atoms[batch.centre][:, None], atoms[batch.neighbour][:, None], batch.image.long()]
    return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]


def pair_names(batch: GraphBatch, atoms: Tensor) -> list[tuple[int, ...]]:
    """Name of each pair."""
    edges = edge_names(batch, atoms)
    return [pair_name(edges[edge]) for edge in batch.edge_of_pair.tolist()]


def pair_name(edge: tuple[int, ...]) -> tuple[int, ...]:
    """The smaller of the names of a pair's two directed edges."""
    centre, neighbour, *image = edge
    return min(edge, (neighbour, centre, *(-x for x in image)))


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_parts_make_up_the_whole(num_ranks: int, division: Division) -> None:
    def names(whole: GraphBatch, part: GraphBatch) -> tuple[list, ...]:
        atoms = global_atoms(whole, part)
        edges, pairs = edge_names(part, atoms), pair_names(part, atoms)
        bonds = [edges[edge] for edge in part.bond_edge.tolist()]
        bonded = [pairs[pair] for pair in part.bonded_pair.tolist()]
        angles = list(zip(part.angle_first.tolist(), part.angle_second.tolist(), strict=True))
        assert all(n < part.num_atoms + part.num_ghosts for n in part.neighbour.tolist())
        assert torch.equal(part.structure_of_atom, whole.structure_of_atom[part.halo.owned])
        assert torch.equal(part.numbers, whole.numbers[part.halo.owned])
        assert torch.equal(part.positions, whole.positions[part.halo.owned])
        # the index lists say the same of a pair, a bond and an angle in every way that leads there
        assert [pairs[p] for p in part.pair_of_edge.tolist()] == [pair_name(name) for name in edges]
        assert [bonded[p] for p in part.pair_of_bond.tolist()] == [pair_name(name) for name in bonds]
        assert torch.equal(part.first_pair, part.pair_of_bond[part.angle_first])
        assert torch.equal(part.second_pair, part.pair_of_bond[part.angle_second])
        assert part.num_structures == whole.num_structures
        return (
            part.halo.owned.tolist(), edges, bonds, [(bonds[a], bonds[b]) for a, b in angles], pairs, bonded,
            sum(part.halo.pair_counts), sum(part.halo.bonded_pair_counts),
        )  # fmt: skip

    parts = on_ranks(num_ranks, division, names)
    whole = whole_batch()
    everyone = torch.arange(whole.num_atoms)
    edges = edge_names(whole, everyone)
    bonds = [edges[edge] for edge in whole.bond_edge.tolist()]
    angles = zip(whole.angle_first.tolist(), whole.angle_second.tolist(), strict=True)
    expected = [everyone.tolist(), edges, bonds, [(bonds[a], bonds[b]) for a, b in angles]]
    for kind, wanted in enumerate(expected):
        assert sorted(item for part in parts for item in part[kind]) == sorted(wanted)
    pairs = pair_names(whole, everyone)
    for kind, wanted in ((4, pairs), (5, [pairs[p] for p in whole.bonded_pair.tolist()])):
        found = [name for part in parts for name in part[kind]]
        assert set(found) == set(wanted)
        assert len(found) == len(wanted) + sum(part[kind + 2] for part in parts) / 2  # two sharers at most


def test_geometry_of_parts(division: Division) -> None:
    def lengths(whole: GraphBatch, part: GraphBatch) -> tuple[dict, list[float]]:
        geometry = measure(part, part.positions, part.cell)
        names = pair_names(part, global_atoms(whole, part))
        return dict(zip(names, geometry.distance.tolist(), strict=True)), geometry.cosine.tolist()

    whole = whole_batch()
    reference = measure(whole, whole.positions, whole.cell)
    wanted = dict(zip(pair_names(whole, torch.arange(whole.num_atoms)), reference.distance.tolist(), strict=True))
    parts = on_ranks(4, division, lengths)
    for distances, _ in parts:
        assert distances == pytest.approx({name: wanted[name] for name in distances}, rel=1e-14)
    cosines = sorted(cosine for _, part in parts for cosine in part)
    assert cosines == pytest.approx(sorted(reference.cosine.tolist()), abs=1e-13)


def test_one_rank_gets_the_batch_itself() -> None:
    batch = whole_batch()
    (part,) = run_on_threads(1, lambda world: partition(batch, world.axis("graph")))
    assert part is batch
    rows = torch.ones(3, 2)
    assert part.with_ghosts(rows) is rows
    assert part.sum_over_group(rows) is rows


def tables(part: GraphBatch, seed: int) -> dict[str, Tensor]:
    """Random rows for each movement, equal for the same atom or pair wherever that is not to be summed."""
    generator = torch.Generator().manual_seed(seed)
    rows = {
        "ghosts": (part.num_atoms, 3), "owners": (part.num_atoms + part.num_ghosts, 2),
        "pairs": (part.num_pairs, 4), "bonded_pairs": (part.num_bonded_pairs, 1),
    }  # fmt: skip
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in rows.items()}


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_movements(num_ranks: int, division: Division) -> None:
    """Owners' values reach ghosts, ghosts' rows their owners, and pairs are summed over their two sharers."""

    def moved(whole: GraphBatch, part: GraphBatch) -> tuple:
        atoms, own = global_atoms(whole, part), tables(part, int(part.halo.axis.index))
        names = pair_names(part, atoms)
        bonded = [names[pair] for pair in part.bonded_pair.tolist()]
        return atoms, names, bonded, own, dict(zip(own, part.exchange(*own.items()), strict=True)), part.num_atoms

    parts = on_ranks(num_ranks, division, moved)
    whole = whole_batch()
    table = torch.zeros(whole.num_atoms, 3, dtype=torch.float64)
    total = torch.zeros(whole.num_atoms, 2, dtype=torch.float64)
    sums: dict[str, dict[tuple[int, ...], Tensor]] = {"pairs": {}, "bonded_pairs": {}}
    for atoms, names, bonded, own, _, num_owned in parts:
        table[atoms[:num_owned]] = own["ghosts"]
        total.index_add_(0, atoms, own["owners"])
        for kind, keys in (("pairs", names), ("bonded_pairs", bonded)):
            for key, row in zip(keys, own[kind], strict=True):
                sums[kind][key] = sums[kind].get(key, 0) + row
    for atoms, names, bonded, _, found, num_owned in parts:
        assert torch.equal(found["ghosts"], table[atoms])
        torch.testing.assert_close(found["owners"], total[atoms[:num_owned]], rtol=1e-14, atol=1e-14)
        for kind, keys in (("pairs", names), ("bonded_pairs", bonded)):
            for key, row in zip(keys, found[kind], strict=True):
                assert torch.equal(row, sums[kind][key])


def test_fused_exchange_equals_single_ones(division: Division) -> None:
    def work(whole: GraphBatch, part: GraphBatch) -> None:
        own = tables(part, 1)
        together = part.exchange(*own.items())
        apart = [part.exchange((name, rows))[0] for name, rows in own.items()]
        assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))

    on_ranks(4, division, work)


def dot_products(part: GraphBatch, seeds: dict[str, Tensor], own: dict[str, Tensor]) -> Tensor:
    moved = part.exchange(*own.items())
    return sum((row * seed).sum() for row, seed in zip(moved, seeds.values(), strict=True))


@pytest.mark.parametrize("num_ranks", [2, 8])
def test_each_backward_is_the_adjoint_and_is_so_again(num_ranks: int, division: Division) -> None:
    """sum <y, M x> = sum <M' y, x> over ranks, for the movements M, for their backward M' and for M' differentiated."""

    def work(whole: GraphBatch, part: GraphBatch) -> Tensor:
        own = {name: rows.requires_grad_() for name, rows in tables(part, 1 + part.halo.axis.index).items()}
        with torch.no_grad():
            moved = part.exchange(*own.items())
        generator = torch.Generator().manual_seed(50 + part.halo.axis.index)
        seeds = [torch.randn(r.shape, generator=generator, dtype=torch.float64).requires_grad_() for r in moved]
        with in_phase("FE"):
            outputs = part.exchange(*own.items())
        forward = sum((o * s).sum() for o, s in zip(outputs, seeds, strict=True))
        with in_phase("FF"):
            back = torch.autograd.grad(forward, list(own.values()), create_graph=True)
        backward = sum((b * x.detach()).sum() for b, x in zip(back, own.values(), strict=True))
        with in_phase(BACKWARD):
            again = torch.autograd.grad(backward, seeds)
        twice = sum((a * s).sum() for a, s in zip(again, seeds, strict=True))
        return torch.stack([forward, backward, twice]).detach()

    forward, backward, twice = sum(on_ranks(num_ranks, division, work)).tolist()
    assert abs(forward) > 1
    assert backward == pytest.approx(forward, rel=1e-12)
    assert twice == pytest.approx(forward, rel=1e-12)


def test_labels_count_once(division: Division) -> None:
    batch = whole_batch()
    atoms, count = batch.num_atoms, batch.num_structures
    labels = Labels(
        energy=torch.arange(count).double(), has_energy=torch.tensor([True, True, False, True]),
        num_atoms=torch.bincount(batch.structure_of_atom), forces=torch.randn(atoms, 3).double(),
        has_forces=torch.arange(atoms) % 3 > 0, stress=torch.zeros(count, 3, 3).double(),
        has_stress=torch.tensor([True, False, True, True]),
    )  # fmt: skip
    parts = on_ranks(3, division, lambda whole, part: (part.halo.owned, labels_of_part(labels, part)))
    assert torch.equal(sum(own.has_energy.int() for _, own in parts), labels.has_energy.int())
    assert torch.equal(sum(own.has_stress.int() for _, own in parts), labels.has_stress.int())
    for owned, own in parts:
        assert torch.equal(own.forces, labels.forces[owned])
        assert torch.equal(own.has_forces, labels.has_forces[owned])
        assert torch.equal(own.num_atoms, labels.num_atoms)
        assert torch.equal(own.energy, labels.energy)


def test_batch_moves_with_its_halo(division: Division) -> None:
    def work(whole: GraphBatch, part: GraphBatch) -> None:
        moved = part.to("meta", torch.float32)
        assert moved.positions.dtype == torch.float32
        assert moved.halo.boundary.is_meta
        assert moved.halo.shared_pairs.is_meta
        assert moved.halo.ghost_counts == part.halo.ghost_counts
        assert moved.num_ghosts == part.num_ghosts

    on_ranks(2, division, work)
