"""AdamW, its learning-rate schedule and gradient clipping. It owns no parameters and no gradients' sum over ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from janus.train.config import OptimizerConfig, ScheduleConfig


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_optimizer(parameters: dict[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); vectors (biases, norms) are not decayed, matrices are."""
    matrices = [parameter for parameter in parameters.values() if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate, betas=(beta1, beta2), eps=config.epsilon,
    )  # fmt: skip


def learning_rate(step: int, num_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of one step: linear warm-up to ``peak``, then half a cosine to final_fraction * peak, or flat."""
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return peak
    span = max(1, num_steps - schedule.warmup_steps)
    progress = min(1.0, (step - schedule.warmup_steps) / span)
    floor = schedule.final_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(parameters: list[nn.Parameter], clip_norm: float | None) -> float:
    """Scale gradients so that their global norm is at most clip_norm; returns the norm before. None: only measure."""
    limit = clip_norm if clip_norm is not None else math.inf
    return float(nn.utils.clip_grad_norm_(parameters, limit))


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Optimizer state as named tensors ("exp_avg/NAME", "step/NAME"): nothing but tensors is kept."""
    return {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Put back what optimizer_tensors gave. AdamW keeps ``step`` on the CPU, moments beside their parameter."""
    for full_name, value in tensors.items():
        key, _, name = full_name.partition("/")
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.clone() if key == "step" else value.to(parameter.device, copy=True)
