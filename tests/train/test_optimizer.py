"""Schedule, clipping, weight decay groups, and the average of the weights."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from janus.parallel.pieces import Piece, leaves
from janus.train.config import OptimizerConfig, ScheduleConfig
from janus.train.ema import WeightAverage
from janus.train.optimizer import (
    build_optimizer,
    clip_gradients,
    clip_to_norm,
    gradient_norm,
    learning_rate,
    step_stage,
    trainable,
)
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads


def test_warm_up_then_half_a_cosine():
    schedule = ScheduleConfig(warmup_steps=4, final_fraction=0.1)
    rates = [learning_rate(step, 24, 2.0, schedule) for step in range(24)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[14] == pytest.approx(2.0 * 0.55)  # half way down: mean of 1 and 0.1
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[4:]))
    assert rates[-1] > 0.2
    assert learning_rate(24, 24, 2.0, schedule) == pytest.approx(0.2)


def test_constant_schedule_stays():
    schedule = ScheduleConfig(kind="constant", warmup_steps=0)
    assert {learning_rate(step, 10, 0.3, schedule) for step in range(10)} == {0.3}


def test_clipping_scales_to_the_norm_and_returns_the_one_before():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, None) == 5.0
    assert parameters[1].grad.item() == 4.0
    assert clip_gradients(parameters, 1.0) == 5.0
    assert parameters[0].grad[0].item() == pytest.approx(0.6, rel=1e-5)


def test_vectors_are_not_decayed_and_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.register_parameter("frozen", nn.Parameter(torch.ones(2), requires_grad=False))
    parameters = trainable(model)
    assert list(parameters) == ["weight", "bias"]
    groups = build_optimizer(parameters, OptimizerConfig(weight_decay=0.5)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.5, 1), (0.0, 1)]


def test_average_follows_and_gives_the_weights_back():
    parameter = nn.Parameter(torch.tensor([0.0, 0.0], dtype=torch.float64))
    average = WeightAverage({"p": parameter}, decay=0.9)
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update(0)  # decay (1 + 0) / (10 + 0)
    assert average.tensors["p"].tolist() == pytest.approx([0.9, 0.9])
    average.update(1000)
    assert average.tensors["p"].tolist() == pytest.approx([0.91, 0.91])
    with average.applied():
        assert parameter.tolist() == average.tensors["p"].tolist()
    assert parameter.tolist() == [1.0, 1.0]


def pieces_of(world: ThreadWorld, unit: int) -> dict[str, Piece]:
    """A 5 x 3 matrix and a vector of 4, divided over ``unit`` ranks; the other ranks hold copies."""
    owners = world.axis("shard", [range(start, start + unit) for start in range(0, world.size, unit)])
    copies = world.axis("copies", [range(start, world.size, unit) for start in range(unit)])
    pieces = {}
    for name, shape in (("matrix", (5, 3)), ("vector", (4,))):
        values = torch.arange(1.0, 1 + math.prod(shape), dtype=torch.float64)
        bounds = [round(part * len(values) / unit) for part in range(unit + 1)]
        start, stop = bounds[owners.index : owners.index + 2]
        leaf = nn.Parameter(values[start:stop].clone())
        leaf.grad = 0.1 * values[start:stop] ** 2
        pieces[name] = Piece(
            name=name, shape=shape, parameter=leaf, chunks=((start, stop),), owners=owners, copies=copies
        )
    return pieces


def whole_model() -> dict[str, nn.Parameter]:
    parameters = {"matrix": nn.Parameter(torch.arange(1.0, 16.0, dtype=torch.float64).view(5, 3)),
                  "vector": nn.Parameter(torch.arange(1.0, 5.0, dtype=torch.float64))}  # fmt: skip
    for parameter in parameters.values():
        parameter.grad = 0.1 * parameter.detach() ** 2
    return parameters


@pytest.mark.parametrize(("num_ranks", "unit"), [(1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (6, 3), (8, 8)])
def test_norm_and_clipping_over_pieces_equal_one_process(num_ranks, unit):
    """Each element counts once, however many ranks hold it. Tolerance: sums in another order."""
    expected = whole_model()
    norm = float(nn.utils.clip_grad_norm_(expected.values(), 7.0))

    def work(world: ThreadWorld) -> tuple[float, dict[str, Tensor]]:
        pieces = pieces_of(world, unit)
        found = gradient_norm(pieces, world.axis("world"))
        clip_to_norm(pieces, found, 7.0)
        return found, {name: piece.parameter.grad for name, piece in pieces.items()}

    for rank, (found, gradients) in enumerate(run_on_threads(num_ranks, work)):
        assert found == pytest.approx(norm, rel=1e-14)
        for name, whole in expected.items():
            bounds = [round(part * whole.numel() / unit) for part in range(unit + 1)]
            start, stop = bounds[rank % unit : rank % unit + 2]
            assert torch.allclose(gradients[name], whole.grad.flatten()[start:stop], rtol=1e-14)


def test_a_gradient_that_is_not_finite_shows_in_the_norm_of_all_ranks():
    def work(world: ThreadWorld) -> float:
        pieces = pieces_of(world, 2)
        if world.rank == 1:
            pieces["vector"].parameter.grad[-1] = torch.nan
        return gradient_norm(pieces, world.axis("world"))

    assert all(math.isnan(norm) for norm in run_on_threads(2, work))


def test_pieces_of_matrices_are_decayed_though_they_are_flat():
    """Two steps on pieces, stage by stage, against whole parameters at once."""
    config = OptimizerConfig(weight_decay=0.5, learning_rate=0.1)
    expected = whole_model()
    reference = build_optimizer(expected, config)

    def work(world: ThreadWorld) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        pieces = pieces_of(world, 2)
        optimizer = build_optimizer(pieces, config, [["vector"], ["matrix"]])
        before = pieces["matrix"].parameter.detach().clone()
        step_stage(optimizer, 0)
        assert torch.equal(pieces["matrix"].parameter, before)
        step_stage(optimizer, 1)
        assert not torch.equal(pieces["matrix"].parameter, before)
        assert [group["stage"] for group in optimizer.param_groups] == [0, 1]
        optimizer.step()
        values = {name: leaf.detach().clone() for name, leaf in leaves(pieces).items()}
        return values, {name: optimizer.state[leaf] for name, leaf in leaves(pieces).items()}

    reference.step()
    reference.step()
    ranks = run_on_threads(2, work)
    for name, parameter in expected.items():
        assert torch.allclose(torch.cat([values[name] for values, _ in ranks]), parameter.flatten(), rtol=1e-14)
        for key in ("exp_avg", "exp_avg_sq"):
            found = torch.cat([state[name][key] for _, state in ranks])
            assert torch.allclose(found, reference.state[parameter][key].flatten(), rtol=1e-14)
        assert {float(state[name]["step"]) for _, state in ranks} == {2.0}
