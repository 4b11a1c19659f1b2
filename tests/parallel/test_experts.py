"""Spread experts against one process, through the double backward; and what the exchange costs, to the byte."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import ase
import ase.build
import pytest
import torch
from torch import Tensor, nn

from janus.config import ModelConfig
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.potential import evaluate_potential
from janus.model.recompute import recomputed_with
from janus.parallel.axis import LoneAxis
from janus.parallel.experts import plan_experts, share_composition, spread_experts
from janus.parallel.gathered import GatheredBuffers
from janus.parallel.ledger import BACKWARD, Entry, in_phase, remember_phase
from janus.parallel.pieces import Piece
from janus.placement import PHASES, ExpertPlan, ExpertShape, ReplicationRule, exchange_traffic, restoring_phases
from tests.model.conftest import MATRIS_MOE, batch_of, disturbed
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads

TOLERANCE = 1e-10  # relative, per tensor; float64 round-off is 1e-13 here
EAGER = ReplicationRule(flops_per_byte=0.01)  # moving weights costs next to nothing: replicate at once
PLACES = {"message_update": "edges", "feature_update": "atoms"}


def rattled(atoms: ase.Atoms, seed: int = 1) -> ase.Atoms:
    atoms.rattle(0.1, seed=seed)
    return atoms


def batches(num_ranks: int, dtype: torch.dtype = torch.float64) -> list[GraphBatch]:
    """A different batch on each rank; the third rank, or the second of two, has nothing."""
    contents = [
        [rattled(ase.build.bulk("NaCl", "rocksalt", a=5.2, cubic=True)), ase.build.molecule("CH3CH2OH")],
        [rattled(ase.build.bulk("Cu", cubic=True))],
        [],
        [rattled(ase.build.molecule("H2O"))],
        [ase.build.bulk("Cu", a=3.7)],
        [ase.Atoms("He")],
        [rattled(ase.build.bulk("Si", cubic=True)), rattled(ase.build.molecule("CO2"))],
        [rattled(ase.build.bulk("Si"), 2)],
    ]
    chosen = [contents[0], contents[2]] if num_ranks == 2 else contents[:num_ranks]
    return [batch_of(MATRIS_MOE, *one, dtype=dtype) for one in chosen]


def whole_model(*, hot: bool, dtype: torch.dtype = torch.float64, config: ModelConfig = MATRIS_MOE) -> nn.Module:
    """hot: every element chooses the first two experts, so that the others get nothing at all."""
    model = disturbed(build_model(config, seed=3, dtype=dtype))
    if hot:
        for block in model.blocks:
            for part in PLACES:
                with torch.no_grad():
                    getattr(block, part).experts.gate.table[:, :2] += 20.0
    return model


@dataclass
class Outcome:
    """What a rank (or the one process) found. predictions: energy, forces, stress; gradients: by parameter name."""

    predictions: list[Tensor]
    gradients: dict[str, Tensor | None]
    pieces: dict[str, Piece] = field(default_factory=dict)
    plans: dict[str, ExpertPlan] = field(default_factory=dict)
    shapes: dict[str, ExpertShape] = field(default_factory=dict)
    calls: dict[Entry, int] = field(default_factory=dict)
    sent_bytes: dict[Entry, int] = field(default_factory=dict)
    peak_blocks: int = 0


def recomputed_in_phases(block: nn.Module, function, *tensors: Tensor) -> tuple[Tensor, ...]:
    """As sharded blocks are recomputed: collectives inside are counted in the phase that they serve."""
    return recomputed_with(list(block.parameters()), function, *tensors, remember=remember_phase)


def evaluated(model: nn.Module, batch: GraphBatch, *, recompute: bool = False) -> list[Tensor]:
    """Adds the gradients of one micro-batch; returns its energy, forces and stress."""
    run_block = recomputed_in_phases if recompute else None
    found = evaluate_potential(model, batch, create_graph=True, phase=in_phase, run_block=run_block)
    loss = (found.energy - 1).square().sum() + (found.forces - 0.5).square().sum() + 100 * found.stress.square().sum()
    with in_phase(BACKWARD):
        loss.backward()
    return [found.energy.detach(), found.forces.detach(), found.stress.detach()]


def in_one_process(model: nn.Module, many: list[GraphBatch]) -> tuple[list[list[Tensor]], dict[str, Tensor]]:
    predictions = [evaluated(model, batch) for batch in many]
    return predictions, {name: parameter.grad for name, parameter in model.named_parameters()}


def spread(model: nn.Module, world: ThreadWorld, buffers: GatheredBuffers | None, **options) -> dict[str, Piece]:
    """Spread all experts of a model over all ranks."""
    axis, copies = world.axis("expert"), LoneAxis("copies", world.rank)
    pieces: dict[str, Piece] = {}
    for index, block in enumerate(model.blocks):
        for part, tokens in PLACES.items():
            prefix = f"blocks.{index}.{part}.experts."
            mixture = getattr(block, part).experts
            for piece in spread_experts(
                mixture, axis, copies, prefix=prefix, tokens=tokens, buffers=buffers, block=index, **options
            ):
                pieces[piece.name] = piece
    return pieces


def on_ranks(
    model: nn.Module,
    many: list[GraphBatch],
    *,
    freed: bool = False,
    recompute: bool = False,
    num_micro_batches: int = 1,
    **options,
) -> list[Outcome]:
    """Each rank evaluates its own batch ``num_micro_batches`` times."""
    copies = [copy.deepcopy(model) for _ in many]

    def work(world: ThreadWorld) -> Outcome:
        mine, batch = copies[world.rank], many[world.rank]
        buffers = GatheredBuffers(keep=2) if freed else None
        pieces = spread(mine, world, buffers, **options)
        axis = mine.blocks[0].message_update.experts.exchange.axis
        if freed:
            with buffers.hooks():
                for _ in range(num_micro_batches):
                    plans = plan_experts(mine, share_composition(batch, axis, MATRIS_MOE.num_elements))
                    predictions = evaluated(mine, batch, recompute=recompute)
        else:
            for _ in range(num_micro_batches):
                plans = plan_experts(mine, share_composition(batch, axis, MATRIS_MOE.num_elements))
                predictions = evaluated(mine, batch, recompute=recompute)
        gradients = {name: parameter.grad for name, parameter in mine.named_parameters()}
        shapes = {name: mine.get_submodule(name).exchange.shape for name in plans}
        ledger, peak = world.ledger, buffers.peak_blocks if freed else 0
        return Outcome(predictions, gradients, pieces, plans, shapes, ledger.calls, ledger.sent_bytes, peak)

    return run_on_threads(len(many), work)


def assembled(outcomes: list[Outcome], name: str, shape: torch.Size) -> Tensor:
    """The whole gradient: pieces put in their places, anything else summed over ranks."""
    if name not in outcomes[0].pieces:
        return sum(outcome.gradients[name] for outcome in outcomes if outcome.gradients[name] is not None)
    whole = torch.full((shape.numel(),), torch.nan, dtype=torch.float64)
    for outcome in outcomes:
        piece, start = outcome.pieces[name], 0
        assert piece.shape == tuple(shape)
        gradient = outcome.gradients[name]
        flat = torch.zeros(piece.parameter.numel()) if gradient is None else gradient.flatten()
        for first, last in piece.chunks:
            whole[first:last] = flat[start : start + last - first]
            start += last - first
    return whole.view(shape)


def error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    scale = float(wanted.norm())
    return float((found - wanted).norm()) / scale if scale > 1e-12 else float(found.norm())


CASES = {
    "tokens": {"strategy": "tokens"},
    "tokens, hot experts replicated": {"strategy": "tokens", "rule": EAGER, "hot": True},
    "tokens, replicated and freed": {"strategy": "tokens", "rule": EAGER, "hot": True, "freed": True},
    "tokens, recomputed": {"strategy": "tokens", "rule": EAGER, "hot": True, "recompute": True},
    "weights": {"strategy": "weights"},
    "weights, some experts empty": {"strategy": "weights", "hot": True, "freed": True},
    "weights, freed": {"strategy": "weights", "freed": True},
    "weights, freed and recomputed": {"strategy": "weights", "freed": True, "recompute": True},
    "weights, freed, two micro-batches": {"strategy": "weights", "freed": True, "num_micro_batches": 2},
}


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("case", CASES)
def test_spread_experts_equal_one_process(case: str, num_ranks: int) -> None:
    options = dict(CASES[case])
    model, many = whole_model(hot=options.pop("hot", False)), batches(num_ranks)
    outcomes = on_ranks(model, many, **options)
    repeats = options.get("num_micro_batches", 1)
    predictions, gradients = in_one_process(model, many)
    for outcome, wanted in zip(outcomes, predictions, strict=True):
        for found, right in zip(outcome.predictions, wanted, strict=True):
            assert error(found, right) <= TOLERANCE
    for name, parameter in model.named_parameters():
        wrong = error(assembled(outcomes, name, parameter.shape), repeats * gradients[name])
        assert wrong <= TOLERANCE, f"{name}: {wrong:.1e}"
    if "rule" in options:
        assert any(plan.borrowed.any() for plan in outcomes[0].plans.values())


def check_traffic(outcome: Outcome, rank: int, num_blocks: int, num_micro_batches: int = 1, **options) -> None:
    """Calls and bytes on the expert axis, phase by phase, are those of the formulas. num_blocks: 0 where kept."""
    calls, sent = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
    for name, plan in outcome.plans.items():
        restored_in = restoring_phases(int(name.split(".")[1]), num_blocks) if num_blocks else None
        traffic = exchange_traffic(
            plan, outcome.shapes[name], rank, restored_in=restored_in, leaves_block="feature" in name, **options
        )
        for phase, (more_calls, more_bytes) in traffic.items():
            calls[phase] += num_micro_batches * more_calls
            sent[phase] += num_micro_batches * more_bytes
    counted = {phase: Entry(phase, "expert", "all_to_all") for phase in PHASES}
    assert {phase: outcome.calls.get(counted[phase], 0) for phase in PHASES} == calls
    assert {phase: outcome.sent_bytes.get(counted[phase], 0) for phase in PHASES} == sent


@pytest.mark.parametrize("strategy", ["tokens", "weights"])
@pytest.mark.parametrize("recompute", [False, True])
def test_freed_weights_are_restored_as_often_as_predicted(strategy: str, recompute: bool) -> None:
    """Five blocks of which two are held, two micro-batches: calls, bytes, and what is alive at most."""
    config, many = replace(MATRIS_MOE, num_blocks=5), batches(2)
    model = whole_model(hot=True, config=config)
    outcomes = on_ranks(
        model, many, strategy=strategy, rule=EAGER, freed=True, num_micro_batches=2, recompute=recompute
    )
    for rank, outcome in enumerate(outcomes):
        check_traffic(outcome, rank, 5, num_micro_batches=2, recompute=recompute)
        assert outcome.peak_blocks == 2


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize(
    "case", ["tokens", "tokens, hot experts replicated", "tokens, replicated and freed", "weights", "weights, freed"]
)
@pytest.mark.parametrize(("compressed", "recompute"), [(False, False), (True, False), (True, True)])
def test_calls_and_bytes_are_those_of_the_formulas(
    case: str, num_ranks: int, compressed: bool, recompute: bool
) -> None:
    options = {**CASES[case], "recompute": recompute}
    model, many = whole_model(hot=options.pop("hot", False)), batches(num_ranks)
    outcomes = on_ranks(model, many, compressed=compressed, **options)
    for rank, outcome in enumerate(outcomes):
        check_traffic(outcome, rank, 2 if options.get("freed") else 0, compressed=compressed, recompute=recompute)
        assert outcome.calls[Entry("other", "expert", "all_gather")] == 1
        assert outcome.sent_bytes[Entry("other", "expert", "all_gather")] == (num_ranks - 1) * 2 * 94 * 8


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_compressed_rows_change_forces_little(num_ranks: int) -> None:
    """float32 with token rows in 16 bits: forces, energies and gradients stay near those of one float64 process."""
    model, many = whole_model(hot=False), batches(num_ranks)
    predictions, gradients = in_one_process(model, many)
    single = [batch.to("cpu", torch.float32) for batch in many]
    worst = {}
    for compressed in (False, True):
        outcomes = on_ranks(copy.deepcopy(model).float(), single, strategy="tokens", compressed=compressed)
        for index, what in enumerate(("energy", "forces", "stress")):
            found = torch.cat([outcome.predictions[index].double().flatten() for outcome in outcomes])
            wanted = torch.cat([prediction[index].flatten() for prediction in predictions])
            worst[what, compressed] = error(found, wanted)
        worst["gradients", compressed] = max(
            error(assembled(outcomes, name, parameter.shape).double(), gradients[name])
            for name, parameter in model.named_parameters()
        )
    for what in ("energy", "forces", "stress"):
        assert worst[what, False] <= 1e-5
        assert 1e-8 <= worst[what, True] <= 1e-3  # and the rows did travel in 16 bits
    assert worst["gradients", True] <= 1e-2


def test_one_rank_keeps_the_single_device_path() -> None:
    model = whole_model(hot=False)
    mixture = model.blocks[0].message_update.experts
    inner = mixture.inner
    pieces = spread_experts(mixture, LoneAxis("expert"), LoneAxis("copies"), prefix="x.", tokens="edges")
    assert mixture.exchange is None
    assert mixture.inner is inner
    assert [(piece.name, piece.chunks) for piece in pieces] == [
        ("x.inner", ((0, inner.numel()),)), ("x.outer", ((0, mixture.outer.numel()),)),
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", ["tokens", "weights"])
def test_pieces_divide_the_parameters(strategy: str) -> None:
    """Each number is on one rank, evenly to one expert or to one number of each."""
    model = whole_model(hot=False)
    outcomes = on_ranks(model, batches(4), strategy=strategy)
    for name, parameter in model.named_parameters():
        if name in outcomes[0].pieces:
            owned = torch.zeros(parameter.numel(), dtype=torch.int64)
            for outcome in outcomes:
                piece, start = outcome.pieces[name], 0
                for first, last in piece.chunks:
                    owned[first:last] += 1
                    values = piece.parameter.detach().flatten()[start : start + last - first]
                    assert torch.equal(values, parameter.detach().flatten()[first:last])
                    start += last - first
            assert (owned == 1).all()


@pytest.mark.parametrize("case", ["tokens, hot experts replicated", "tokens, recomputed", "weights, freed"])
def test_a_micro_batch_that_is_empty_on_all_ranks_passes(case: str) -> None:
    options = dict(CASES[case])
    model = whole_model(hot=options.pop("hot", False))
    for outcome in on_ranks(model, [batch_of(MATRIS_MOE)] * 2, **options):
        assert all(gradient is None or not gradient.any() for gradient in outcome.gradients.values())
