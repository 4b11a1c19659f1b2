"""AdamW, its learning-rate schedule and gradient clipping, on parameters or on the pieces that a rank keeps of them.

Without clipping each stage of gradients is updated as soon as its sum over ranks has arrived (``step_stage``); clipping
needs the norm of all of them first. It owns no parameters and no gradients' sum over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from janus.parallel.axis import Axis
from janus.parallel.pieces import Piece
from janus.train.config import OptimizerConfig, ScheduleConfig

NORM_MARGIN = 1e-6  # torch's clip_grad_norm_ divides by norm + 1e-6


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_optimizer(
    parameters: Mapping[str, nn.Parameter] | Mapping[str, Piece],
    config: OptimizerConfig,
    stages: Sequence[Sequence[str]] | None = None,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); vectors (biases, norms) are not decayed, matrices are.

    A piece is a matrix if the parameter that it is part of is one. stages: names that ``step_stage`` updates together
    (``GradientSums.stages``); None: all in one.
    """
    groups = []
    for stage, names in enumerate([list(parameters)] if stages is None else stages):
        for decay, is_matrix in ((config.weight_decay, True), (0.0, False)):
            chosen = [_leaf(parameters[name]) for name in names if _is_matrix(parameters[name]) == is_matrix]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "stage": stage})
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(beta1, beta2), eps=config.epsilon)


def _leaf(parameter: nn.Parameter | Piece) -> nn.Parameter:
    return parameter.parameter if isinstance(parameter, Piece) else parameter


def _is_matrix(parameter: nn.Parameter | Piece) -> bool:
    return parameter.is_matrix if isinstance(parameter, Piece) else parameter.dim() > 1


def step_stage(optimizer: torch.optim.Optimizer, stage: int) -> None:
    """Update one stage's parameters: their gradients are complete while later ones are still being summed."""
    groups = optimizer.param_groups
    optimizer.param_groups = [group for group in groups if group["stage"] == stage]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups


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


def gradient_norm(pieces: Mapping[str, Piece], world: Axis) -> float:
    """Norm of the whole model's gradient, the same on all ranks; all of them call it, when every sum is complete.

    Accumulated in float64, each element once: a piece that c ranks hold counts 1/c on each. One all-reduce of 8 bytes
    over all ranks, phase "sync".
    """
    device = next((piece.parameter.device for piece in pieces.values()), None)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for piece in pieces.values():
        if piece.parameter.grad is not None:
            total += torch.linalg.vector_norm(piece.parameter.grad, dtype=torch.float64).square() / piece.copies.size
    world.all_reduce(total, phase="sync").wait()
    return math.sqrt(float(total))


@torch.no_grad()
def clip_to_norm(pieces: Mapping[str, Piece], norm: float, clip_norm: float) -> None:
    """Scale all gradients, of the global norm ``norm``, so that it is at most ``clip_norm``."""
    factor = min(1.0, clip_norm / (norm + NORM_MARGIN))
    gradients = [piece.parameter.grad for piece in pieces.values() if piece.parameter.grad is not None]
    torch._foreach_mul_(gradients, factor)
