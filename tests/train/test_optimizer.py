"""Schedule, clipping, weight decay groups, and the average of the weights."""

import itertools

import pytest
import torch
from torch import nn

from janus.train.config import OptimizerConfig, ScheduleConfig
from janus.train.ema import WeightAverage
from janus.train.optimizer import build_optimizer, clip_gradients, learning_rate, trainable


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
