"""Sums of gradients over copies: exact for any share of the data, started in the backward, counted."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from janus.model.potential import evaluate_potential
from janus.parallel.axis import Axis, LoneAxis
from janus.parallel.gradients import ROOT, GradientSums, block_of
from janus.parallel.ledger import BACKWARD, in_phase
from janus.parallel.pieces import Piece
from janus.train.optimizer import build_optimizer, step_stage
from tests.model.conftest import batch_of
from tests.parallel.sharded_runs import (
    CONFIGS,
    OPTIMIZER,
    SHARES,
    Run,
    config_of,
    loss_of,
    merged,
    model_of,
    run_alone,
    shard,
    structures,
    whole_values,
    worst_difference,
)
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads

TOLERANCE = 1e-10  # float64 sums in another order; seen 1e-14


def whole_pieces(model: nn.Module, copies: Axis) -> dict[str, Piece]:
    """Every parameter whole on every rank of ``copies``."""
    return {
        name: Piece(
            name=name, shape=tuple(parameter.shape), parameter=parameter, chunks=((0, parameter.numel()),),
            owners=LoneAxis("whole"), copies=copies,
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }  # fmt: skip


def all_reduces(world: ThreadWorld, axis: str) -> tuple[int, int]:
    """Calls and bytes of all-reduces on an axis; they are all in phase "sync"."""
    found = [entry for entry in world.ledger.calls if entry.collective == "all_reduce" and entry.axis == axis]
    assert {entry.phase for entry in found} <= {"sync"}
    return sum(world.ledger.calls[e] for e in found), sum(world.ledger.sent_bytes[e] for e in found)


def bucket_bytes_of(pieces: dict[str, Piece], stages: list[list[str]]) -> list[int]:
    return [sum(8 * pieces[name].parameter.numel() for name in names) for names in stages]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("family", CONFIGS)
def test_data_parallel_with_unequal_numbers_of_micro_batches(family, num_ranks):
    """Ranks with 3, 1 and no micro-batches: no lockstep among replicas."""
    config = config_of(family, 2)
    shares = {1: [[[0, 1, 2, 3, 4]]], 2: [[[0], [2], [4]], [[1, 3]]], 3: [[[0], [2], [4]], [], [[1, 3]]]}[num_ranks]

    def work(world: ThreadWorld) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        model = model_of(config)
        pieces = whole_pieces(model, world.axis("world"))
        sums = GradientSums(pieces, bucket_bytes=5000)
        optimizer = build_optimizer(pieces, OPTIMIZER, sums.stages)
        gradients = {}
        for step in range(3):
            optimizer.zero_grad(set_to_none=True)
            mine = shares[world.rank]
            for number, share in enumerate(mine):
                batch = batch_of(config, *(structures()[i] for i in share))
                with sums.last_micro_batch() if number == len(mine) - 1 else nullcontext():
                    loss_of(evaluate_potential(model, batch, create_graph=True)).backward()
            started = all_reduces(world, "world")[0]
            for stage in sums.finish():
                if step == 0:
                    gradients |= {name: pieces[name].parameter.grad.clone() for name in sums.stages[stage]}
                step_stage(optimizer, stage)
            per_step = len(sums.stages) if num_ranks > 1 else 0
            assert started == step * per_step + (per_step if mine else 0)
            total = sum(2 * (num_ranks - 1) * size // num_ranks for size in bucket_bytes_of(pieces, sums.stages))
            assert all_reduces(world, "world") == ((step + 1) * per_step, (step + 1) * total)
        assert per_step != 1
        return gradients, whole_values(pieces, Tensor.detach), len(sums.stages)

    expected = run_alone(config, 3)
    for gradients, values, _ in run_on_threads(num_ranks, work):
        assert worst_difference(gradients, expected.gradients) <= TOLERANCE
        assert worst_difference(values, expected.values) <= TOLERANCE


def test_buckets_are_full_and_follow_the_backward():
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    model.head = nn.Linear(4, 1)
    pieces = whole_pieces(model, LoneAxis("world"))
    per_parameter = GradientSums(pieces, bucket_bytes=1).stages
    names = list(pieces)
    assert sorted(itertools.chain(*per_parameter)) == sorted(names)
    assert [block_of(names[0]) for names in per_parameter] == [2, 2, 1, 1, 0, 0, ROOT, ROOT]
    two = GradientSums(pieces, bucket_bytes=4 * 20).stages
    assert [sorted(names) for names in two] == [
        ["blocks.2.bias", "blocks.2.weight"], ["blocks.1.bias", "blocks.1.weight"],
        ["blocks.0.bias", "blocks.0.weight"], ["head.bias", "head.weight"],
    ]  # fmt: skip
    assert len(GradientSums(pieces, bucket_bytes=1 << 20).stages) == 1


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_replicas_of_a_sharded_unit(family, recompute):
    """2 units x 2 replicas: the sum over copies of each unit starts before the backward has ended; calls and bytes."""
    config = config_of(family, 4)
    num_units = config.num_blocks + 1

    def work(world: ThreadWorld) -> dict[str, Tensor]:
        run = Run.start(world, config, SHARES[4], shard_degree=2, recompute=recompute)
        sums = GradientSums(run.pieces, run.sharded, bucket_bytes=1 << 20)
        assert [min(map(block_of, names)) for names in sums.stages] == [3, 2, 1, 0, ROOT]
        with run.sharded.step():
            for number, batch in enumerate(run.batches):
                with sums.last_micro_batch() if number == len(run.batches) - 1 else nullcontext():
                    run.backward(run.evaluate(batch))
                    # the root's is the last: its reduce-scatter is still under way
                    expected = num_units - 1 if number == len(run.batches) - 1 else 0
                    assert all_reduces(world, "copies")[0] == expected
        assert list(sums.finish()) == list(range(num_units))
        assert all_reduces(world, "copies") == (num_units, sum(unit.shard_bytes for unit in run.sharded.units))
        return whole_values(run.pieces, lambda leaf: leaf.grad)

    found = merged(run_on_threads(4, work))
    assert worst_difference(found, run_alone(config, 1).gradients) <= TOLERANCE


@pytest.mark.parametrize("recompute", [False, True])
def test_units_and_whole_parameters_side_by_side(recompute):
    """Experts whole on all ranks, the rest sharded; one rank's axis of copies serves both; two micro-batches."""
    config = config_of("matris-moe")
    experts = [f"{layer}.experts.{part}" for layer in ("message_update", "feature_update")
               for part in ("inner", "outer")]  # fmt: skip

    def work(world: ThreadWorld) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model, everyone = model_of(config), world.axis("world")
        whole = whole_pieces(model, everyone)
        exclude = dict.fromkeys(range(config.num_blocks), experts)
        kept = {f"blocks.{index}.{name}" for index in range(config.num_blocks) for name in experts}
        sharded = shard(
            model, world.axis("shard"), LoneAxis("copies"), recompute=recompute, exclude=exclude,
            root_exclude=sorted(kept),
        )  # fmt: skip
        pieces = {name: sharded.pieces.get(name, piece) for name, piece in whole.items()
                  if name in sharded.pieces or name in kept}  # fmt: skip
        sums = GradientSums(pieces, sharded, bucket_bytes=1 << 20)
        many = structures()
        run = Run(world, config, sharded, model, pieces, [batch_of(config, *(many[i] for i in share))
                                                          for share in SHARES[2][world.rank]])  # fmt: skip
        optimizer = build_optimizer(pieces, OPTIMIZER, sums.stages)
        with sharded.step():
            run.backward(run.evaluate(run.batches[0]))
            with sums.last_micro_batch():
                run.backward(run.evaluate(run.batches[1]))
        for stage in sums.finish():
            step_stage(optimizer, stage)
        gradients = whole_values(pieces, lambda leaf: leaf.grad)
        return gradients, whole_values(pieces, Tensor.detach)

    ranks = run_on_threads(2, work)
    expected = run_alone(config, 1)
    assert worst_difference(merged([gradients for gradients, _ in ranks]), expected.gradients) <= TOLERANCE
    assert worst_difference(merged([values for _, values in ranks]), expected.values) <= TOLERANCE


def test_a_replica_without_micro_batches():
    """Two shard groups: the second has nothing to do in this step and adds zeros."""
    config = config_of("matris", 2)
    shares = [[[0, 1]], [[2, 3, 4]], [], []]

    def work(world: ThreadWorld) -> dict[str, Tensor]:
        run = Run.start(world, config, shares, shard_degree=2)
        return run.train(1).gradients

    assert worst_difference(merged(run_on_threads(4, work)), run_alone(config, 1).gradients) <= TOLERANCE


def test_gradients_that_come_too_late_are_noticed():
    """After the sum has started a further gradient would be lost or counted twice."""

    def work(world: ThreadWorld) -> None:
        model = nn.Linear(2, 1)
        nn.init.ones_(model.weight)
        sums = GradientSums(whole_pieces(model, world.axis("world")), bucket_bytes=1 << 20)
        with sums.last_micro_batch(), in_phase(BACKWARD):
            model(torch.ones(1, 2)).sum().backward()
        with pytest.raises(AssertionError, match="had started"):
            model(torch.ones(1, 2)).sum().backward()

    run_on_threads(2, work)


def test_a_parameter_without_gradient_counts_as_zero():
    def work(world: ThreadWorld) -> tuple[Tensor, Tensor]:
        model = nn.ModuleDict({"used": nn.Linear(2, 1, bias=False), "idle": nn.Linear(2, 1, bias=False)})
        sums = GradientSums(whole_pieces(model, world.axis("world")), bucket_bytes=1)
        if world.rank == 0:
            with sums.last_micro_batch():
                model["used"](torch.tensor([[3.0, 4.0]])).sum().backward()
        assert list(sums.finish()) == [0, 1]
        return model["used"].weight.grad, model["idle"].weight.grad

    for used, idle in run_on_threads(3, work):
        assert used.tolist() == [[3.0, 4.0]]
        assert idle.tolist() == [[0.0, 0.0]]
