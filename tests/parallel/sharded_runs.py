"""Small training runs on one process and on thread ranks with sharded parameters, for the tests of sharding.

The loss is a sum over structures, so ranks with different structures add up to one process with all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import ase
import ase.build
import torch
from torch import Tensor, nn

from janus.config import ModelConfig
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.potential import Prediction, evaluate_potential
from janus.parallel.axis import Axis
from janus.parallel.gathered import GatheredBuffers
from janus.parallel.gradients import GradientSums
from janus.parallel.ledger import BACKWARD, in_phase
from janus.parallel.pieces import Piece
from janus.parallel.sharding import ShardedParameters
from janus.train.config import OptimizerConfig
from janus.train.optimizer import build_optimizer, clip_to_norm, gradient_norm, step_stage
from tests.model.conftest import MATRIS, MATRIS_MOE, batch_of, disturbed
from tests.parallel.thread_ranks import ThreadWorld

OPTIMIZER = OptimizerConfig(learning_rate=3e-3, weight_decay=0.3)
CONFIGS = {"matris": MATRIS, "matris-moe": MATRIS_MOE}


def config_of(family: str, num_blocks: int = 3) -> ModelConfig:
    return replace(CONFIGS[family], num_blocks=num_blocks, width=8)


def structures() -> list[ase.Atoms]:
    """Five small ones of different sizes, a one-atom cell among them."""
    salt, silicon = ase.build.bulk("NaCl", "rocksalt", a=5.2), ase.build.bulk("Si")
    many = [salt, ase.build.molecule("CH4"), ase.build.bulk("Cu", a=3.7), silicon, ase.build.molecule("H2O")]
    for seed, atoms in enumerate(many):
        if len(atoms) > 1:
            atoms.rattle(0.1, seed=seed)
    return many


# who gets which structures: SHARES[number of ranks][rank][micro-batch]; uneven, and with empty ranks
SHARES = {
    1: [[[0, 1], [2, 3, 4]]],
    2: [[[0, 1], [3]], [[2], [4]]],
    3: [[[0, 1, 4], []], [[], []], [[3], [2]]],
    4: [[[0], [3]], [[1], []], [[2], [4]], [[], []]],
}


_building = threading.Lock()  # the seeded generator is the process's


def model_of(config: ModelConfig) -> nn.Module:
    with _building:
        return disturbed(build_model(config, seed=3, dtype=torch.float64))


def loss_of(prediction: Prediction) -> Tensor:
    return (
        (prediction.energy / 10 - 0.3).square().sum()
        + 2 * (prediction.forces - 0.1).square().sum()
        + 30 * (prediction.stress - 0.01).square().sum()
    )


@dataclass
class Trace:
    """What a run produced: per micro-batch of the first step, then the first gradients, norms and final values."""

    predictions: list[Prediction] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)


def run_alone(config: ModelConfig, num_steps: int = 5, clip_norm: float | None = None) -> Trace:
    """One process, one batch of all structures, torch's own AdamW and norm."""
    model, trace = model_of(config), Trace()
    batch = batch_of(config, *structures())
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(parameters, OPTIMIZER)
    for step in range(num_steps):
        optimizer.zero_grad(set_to_none=True)
        prediction = evaluate_potential(model, batch, create_graph=True)
        loss_of(prediction).backward()
        if step == 0:
            trace.predictions = [prediction]
            trace.gradients = {name: _or_zeros(p.grad, p).clone() for name, p in parameters.items()}
        limit = float("inf") if clip_norm is None else clip_norm
        trace.norms.append(float(nn.utils.clip_grad_norm_(list(parameters.values()), limit)))
        optimizer.step()
    trace.values = {name: p.detach().clone() for name, p in parameters.items()}
    return trace


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def shard(
    model: nn.Module, axis: Axis, copies: Axis, *, keep: int | None = 2, recompute: bool = False,
    exclude: dict[int, Sequence[str]] | None = None, root_exclude: Sequence[str] = (),
) -> ShardedParameters:  # fmt: skip
    sharded = ShardedParameters(axis, copies, GatheredBuffers(keep), recompute=recompute)
    for index, block in enumerate(model.blocks):
        sharded.add_block(index, block, exclude=(exclude or {}).get(index, ()))
    sharded.add_root(model, exclude=root_exclude)
    return sharded


@dataclass
class Run:
    """A sharded run on one rank, in parts that a test may look between."""

    world: ThreadWorld
    config: ModelConfig
    sharded: ShardedParameters
    model: nn.Module
    pieces: dict[str, Piece]
    batches: list[GraphBatch]

    @classmethod
    def start(
        cls, world: ThreadWorld, config: ModelConfig, shares: Sequence[Sequence[Sequence[int]]],
        shard_degree: int | None = None, **options: Any,
    ) -> Run:  # fmt: skip
        """Ranks 0..degree-1 are the first shard group, and so on; the others hold copies."""
        degree = world.size if shard_degree is None else shard_degree
        groups = [range(start, start + degree) for start in range(0, world.size, degree)]
        copies = [range(start, world.size, degree) for start in range(degree)]
        model = model_of(config)
        sharded = shard(model, world.axis("shard", groups), world.axis("copies", copies), **options)
        many = structures()
        batches = [batch_of(config, *(many[i] for i in share)) for share in shares[world.rank]]
        return cls(world, config, sharded, model, sharded.pieces, batches)

    def evaluate(self, batch: GraphBatch, *, create_graph: bool = True) -> Prediction:
        with self.sharded.around(self.model):
            return evaluate_potential(
                self.model, batch, create_graph=create_graph, run_block=self.sharded.run_block, phase=in_phase
            )

    def backward(self, prediction: Prediction) -> None:
        with in_phase(BACKWARD):
            loss_of(prediction).backward()

    def train(self, num_steps: int, clip_norm: float | None = None, bucket_bytes: int = 4096) -> Trace:
        trace, everyone = Trace(), self.world.axis("world")
        sums = GradientSums(self.pieces, self.sharded, bucket_bytes=bucket_bytes)
        optimizer = build_optimizer(self.pieces, OPTIMIZER, sums.stages)
        for step in range(num_steps):
            optimizer.zero_grad(set_to_none=True)
            with self.sharded.step():
                for number, batch in enumerate(self.batches):
                    with sums.last_micro_batch() if number == len(self.batches) - 1 else nullcontext():
                        prediction = self.evaluate(batch)
                        self.backward(prediction)
                    if step == 0:
                        trace.predictions.append(prediction)
            for stage in sums.finish():
                if clip_norm is None and step > 0:
                    step_stage(optimizer, stage)
            if step == 0:
                trace.gradients = whole_values(self.pieces, lambda leaf: leaf.grad)
            trace.norms.append(gradient_norm(self.pieces, everyone))
            if clip_norm is not None:
                clip_to_norm(self.pieces, trace.norms[-1], clip_norm)
            if clip_norm is not None or step == 0:
                optimizer.step()
        trace.values = whole_values(self.pieces, lambda leaf: leaf.detach())
        return trace


def whole_values(pieces: dict[str, Piece], value: Any) -> dict[str, Tensor]:
    """This rank's elements in whole tensors, NaN elsewhere: ``merged`` puts the ranks' together."""
    wholes = {}
    for name, piece in pieces.items():
        flat = torch.full(piece.shape, torch.nan, dtype=torch.float64).flatten()
        start = 0
        for begin, stop in piece.chunks:
            flat[begin:stop] = value(piece.parameter).reshape(-1)[start : start + stop - begin]
            start += stop - begin
        wholes[name] = flat.view(piece.shape)
    return wholes


def merged(per_rank: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors from the ranks' elements; asserts that copies agree to the last bit and that nothing is missing."""
    result: dict[str, Tensor] = {}
    for wholes in per_rank:
        for name, whole in wholes.items():
            known = result.setdefault(name, torch.full_like(whole, torch.nan))
            both = ~known.isnan() & ~whole.isnan()
            assert torch.equal(known[both], whole[both]), name
            result[name] = torch.where(known.isnan(), whole, known)
    for name, whole in result.items():
        assert not whole.isnan().any(), f"{name}: elements that no rank holds"
    return result


def worst_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference over tensors; absolute where the expected one is (nearly) zero."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - expected[name]).norm() / max(float(expected[name].norm()), 1e-2)) for name in expected
    )
