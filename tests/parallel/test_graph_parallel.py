"""Models on a partitioned batch against the whole batch, through the double backward; and what the exchanges cost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import ase
import ase.build
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from janus.config import ModelConfig
from janus.errors import UserError
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.potential import evaluate_potential
from janus.model.recompute import recomputed_with
from janus.parallel.ledger import BACKWARD, in_phase, remember_phase
from janus.parallel.local_graph import labels_of_part, local_batch, partition
from janus.train.config import LossConfig
from janus.train.loss import Denominators, Labels, batch_loss, denominators_of_labels
from tests.model.conftest import MATRIS, MATRIS_MOE, batch_of, disturbed
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads

TOLERANCE = 1e-10  # relative, per tensor; float64 round-off is 1e-13 here
LOSS = LossConfig(kind="huber", energy=1.0, forces=2.0, stress=30.0)
CONFIGS = {"matris": MATRIS, "matris-moe": MATRIS_MOE}


def rattled(atoms: ase.Atoms, seed: int = 1) -> ase.Atoms:
    atoms.rattle(0.12, seed=seed)
    return atoms


def molecule() -> ase.Atoms:
    return ase.build.molecule("CH3CH2OH")


def isolated() -> ase.Atoms:
    """Two clusters and two lone atoms, without a cell."""
    far = [[0, 0, 0], [1.6, 0.1, 0], [30, 0, 0], [31.5, 0, 0.2], [30.4, 1.4, 0], [0, 60, 0], [90, 0, 0]]
    return ase.Atoms("OHCOHArHe", positions=far)


CASES = {
    "periodic cell": lambda: [rattled(ase.build.bulk("NaCl", "rocksalt", a=5.2, cubic=True))],
    "long cell": lambda: [rattled(ase.build.bulk("Si", cubic=True).repeat((1, 1, 3)))],
    "several structures": lambda: [
        rattled(ase.build.bulk("Cu", cubic=True)), molecule(), rattled(ase.build.bulk("Si"), 2), isolated(),
    ],
    "one-atom cell": lambda: [ase.build.bulk("Cu", a=3.7)],
    "small cell beside a molecule": lambda: [molecule(), rattled(ase.build.bulk("Mo", "bcc", a=2.9, cubic=True))],
    "isolated clusters": lambda: [isolated()],
    "one lone atom": lambda: [ase.Atoms("He")],
    "nothing": lambda: [],
}  # fmt: skip


def labels_of(batch: GraphBatch) -> Labels:
    """Random labels; the last structure of several has no energy, the first no stress."""
    generator = torch.Generator().manual_seed(5)
    count, atoms = batch.num_structures, batch.num_atoms
    has_energy, has_stress = torch.ones(count, dtype=torch.bool), batch.volume > 0
    if count > 1:
        has_energy[-1], has_stress[0] = False, False
    return Labels(
        energy=torch.randn(count, generator=generator, dtype=torch.float64),
        has_energy=has_energy,
        num_atoms=torch.bincount(batch.structure_of_atom, minlength=count),
        forces=torch.randn(atoms, 3, generator=generator, dtype=torch.float64),
        has_forces=torch.arange(atoms) % 5 != 3,
        stress=torch.randn(count, 3, 3, generator=generator, dtype=torch.float64),
        has_stress=has_stress,
    )


@dataclass
class Outcome:
    energy: Tensor
    stress: Tensor
    forces: Tensor
    owned: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]
    ledger: list[dict[str, str | int]]
    part: GraphBatch


def recomputed_in_phases(block: nn.Module, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor):
    return recomputed_with(list(block.parameters()), function, *tensors, remember=remember_phase)


def train_step(
    model: nn.Module, part: GraphBatch, labels: Labels, denominators: Denominators, recompute: bool
) -> tuple[Tensor, ...]:
    runner = recomputed_in_phases if recompute else None
    prediction = evaluate_potential(model, part, create_graph=True, phase=in_phase, run_block=runner)
    loss, _ = batch_loss(prediction, labels, denominators, LOSS)
    if loss.requires_grad:
        with in_phase(BACKWARD):
            loss.backward()
    return prediction.energy.detach(), prediction.stress.detach(), prediction.forces.detach(), loss.detach()


def run(
    model: nn.Module,
    many: list[ase.Atoms],
    num_ranks: int,
    recompute: bool = False,
    part_of_atom: np.ndarray | None = None,
) -> list[Outcome]:
    batch = batch_of(model.config, *many)
    labels = labels_of(batch)
    models = [copy.deepcopy(model) for _ in range(num_ranks)]

    def work(world: ThreadWorld) -> Outcome:
        own = models[world.rank]
        axis = world.axis("graph")
        part = partition(batch, axis) if part_of_atom is None else local_batch(batch, part_of_atom, axis)
        step = train_step(own, part, labels_of_part(labels, part), denominators_of_labels(labels), recompute)
        energy, stress, forces, loss = step
        gradients = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
        owned = torch.arange(batch.num_atoms) if part.halo is None else part.halo.owned
        return Outcome(energy, stress, forces, owned, loss, gradients, world.ledger.rows(), part)

    return run_on_threads(num_ranks, work)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference, relative to the norm; where that is zero, scaled so that 1e-12 is the tolerance."""
    norm = float(wanted.norm())
    return float((found - wanted).norm()) / (norm if norm > 0 else 1e-12 / TOLERANCE)


def worst_difference(outcomes: list[Outcome], reference: Outcome) -> dict[str, float]:
    forces = torch.full_like(reference.forces, float("nan"))
    for outcome in outcomes:
        forces[outcome.owned] = outcome.forces
    worst = {
        "energy": max(difference(o.energy, reference.energy) for o in outcomes),
        "stress": max(difference(o.stress, reference.stress) for o in outcomes),
        "forces": difference(forces, reference.forces),
        "loss": difference(sum(o.loss for o in outcomes), reference.loss),
    }
    for name in {name for o in [reference, *outcomes] for name in o.gradients}:
        present = [o.gradients[name] for o in outcomes if name in o.gradients]
        wanted = reference.gradients.get(name, torch.zeros_like(present[0]) if present else None)
        worst[name] = difference(sum(present, torch.zeros_like(wanted)), wanted)
    return worst


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    model = disturbed(build_model(CONFIGS[request.param], seed=3, dtype=torch.float64))
    model.set_reference_energies(torch.linspace(-1.0, 2.0, 95, dtype=torch.float64))
    return model


@pytest.mark.parametrize("name", list(CASES))
def test_parts_are_exact(model: nn.Module, name: str) -> None:
    many = CASES[name]()
    (reference,) = run(model, many, 1)
    for num_ranks in (2, 3, 4, 8):
        outcomes = run(model, many, num_ranks)
        assert sum(len(o.owned) for o in outcomes) == len(reference.forces)
        over = {key: value for key, value in worst_difference(outcomes, reference).items() if not value <= TOLERANCE}
        assert over == {}, num_ranks


@pytest.mark.parametrize("name", ["long cell", "several structures"])
def test_any_division_is_exact(model: nn.Module, name: str) -> None:
    """Atoms strewn over ranks at random, one rank without any: exactness is not a matter of a good division."""
    many = CASES[name]()
    (reference,) = run(model, many, 1)
    part_of_atom = np.random.default_rng(3).choice([0, 1, 3, 4], len(reference.forces))
    worst = worst_difference(run(model, many, 5, part_of_atom=part_of_atom), reference)
    assert {key: value for key, value in worst.items() if not value <= TOLERANCE} == {}


@pytest.mark.parametrize("name", ["periodic cell", "several structures", "one-atom cell"])
def test_parts_are_exact_with_recomputation(model: nn.Module, name: str) -> None:
    many = CASES[name]()
    (reference,) = run(model, many, 1)
    for num_ranks in (2, 4):
        worst = worst_difference(run(model, many, num_ranks, recompute=True), reference)
        assert {key: value for key, value in worst.items() if not value <= TOLERANCE} == {}, num_ranks


class Numbers:
    """Numbers that one rank sends, as the docstring of ``janus.parallel.halo`` states them: forth as in FE, or back."""

    def __init__(self, config: ModelConfig, part: GraphBatch, forth: bool) -> None:
        sent, ghosts = len(part.halo.boundary), part.halo.num_ghosts
        outward, inward = (sent, ghosts) if forth else (ghosts, sent)
        bonded = len(part.halo.shared_bonded_pairs)
        self.positions = 3 * outward
        self.last_means = self.first_block = 0
        if config.family == "matris":
            self.last_means = config.width * len(part.halo.shared_pairs)
            block = config.width * (4 * bonded + outward + 2 * inward + bonded + outward) + 2 * self.last_means
            self.blocks = config.num_blocks * block - self.last_means
        else:
            self.first_block = config.width * outward
            self.blocks = config.num_blocks * self.first_block


def all_to_alls(outcome: Outcome) -> dict[str, tuple[int, int]]:
    """Calls and bytes by phase."""
    return {r["phase"]: (r["calls"], r["sent_bytes"]) for r in outcome.ledger if r["collective"] == "all_to_all"}


def calls_of_blocks(config: ModelConfig) -> int:
    return 4 * config.num_blocks - 1 if config.family == "matris" else config.num_blocks


@pytest.mark.parametrize("name", ["long cell", "several structures", "one-atom cell"])
@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_messages_are_those_documented(model: nn.Module, name: str, num_ranks: int) -> None:
    config = model.config
    calls, fewer = 1 + calls_of_blocks(config), int(config.family == "matris-moe")
    for outcome in run(model, CASES[name](), num_ranks):
        forth, back = Numbers(config, outcome.part, True), Numbers(config, outcome.part, False)
        assert all_to_alls(outcome) == {
            "FE": (calls, 8 * (forth.positions + forth.blocks)),
            "FF": (calls - fewer, 8 * (back.positions + back.blocks - back.first_block)),
            "BF": (calls - fewer, 8 * (forth.positions + forth.blocks - forth.first_block)),
            "BE": (calls, 8 * (back.positions + back.blocks)),
        }
        reduced = (1, 2 * (num_ranks - 1) * 80 * outcome.part.num_structures // num_ranks)
        found = {r["phase"]: (r["calls"], r["sent_bytes"]) for r in outcome.ledger if r["collective"] == "all_reduce"}
        assert found == {"FF": reduced, "BF": reduced}


@pytest.mark.parametrize("name", ["long cell", "several structures"])
def test_messages_of_recomputation(model: nn.Module, name: str) -> None:
    config, blocks = model.config, calls_of_blocks(model.config)
    left_out = config.num_blocks - 1 if config.family == "matris" else 1
    for outcome in run(model, CASES[name](), 3, recompute=True):
        forth, back = Numbers(config, outcome.part, True), Numbers(config, outcome.part, False)
        less = (config.num_blocks - 1) * forth.last_means + forth.first_block
        assert all_to_alls(outcome) == {
            "FE": (1 + blocks, 8 * (forth.positions + forth.blocks)),
            "FF": (1 + 2 * blocks, 8 * (back.positions + back.blocks + forth.blocks)),
            "BF": (1 + 4 * blocks - left_out, 8 * (forth.positions + 2 * (forth.blocks + back.blocks) - less)),
            "BE": (1 + 2 * blocks, 8 * (back.positions + forth.blocks + back.blocks)),
        }


def test_compat_models_are_refused() -> None:
    config = ModelConfig(num_blocks=1, width=8, cutoff_angstrom=4.0, line_cutoff_angstrom=3.0, compat=True)
    with pytest.raises(UserError, match="compat models cannot be graph parallel"):
        run(build_model(config, dtype=torch.float64), CASES["long cell"](), 2)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_empty_batches_reach_the_same_parameters(model: nn.Module, num_ranks: int, recompute: bool) -> None:
    """A rank without work must take part in whatever the gradients of parameters bring about, with zeros."""

    def reached(many: list[ase.Atoms]) -> list[dict[str, Tensor]]:
        batch = batch_of(model.config, *many)
        labels = labels_of(batch)
        counts = Denominators(energies=3, force_components=30, stress_components=9)
        models = [copy.deepcopy(model) for _ in range(num_ranks)]

        def work(world: ThreadWorld) -> dict[str, Tensor]:
            part = partition(batch, world.axis("graph"))
            train_step(models[world.rank], part, labels_of_part(labels, part), counts, recompute)
            return {name: p.grad for name, p in models[world.rank].named_parameters() if p.grad is not None}

        return run_on_threads(num_ranks, work)

    full = reached(CASES["periodic cell"]())[0]
    for empty in reached([]):
        assert set(empty) == set(full)
        assert not any(gradient.any() for gradient in empty.values())
