"""Sums gradients over the data-parallel ranks, in flattened buckets.

The loss is normalised over the global batch already, so gradients are summed, never averaged. Wire volume per rank
and step: 2(n-1)/n times the bytes of all gradients; one all-reduce per bucket. It does not own the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from janus.parallel.communication import Communicator


class GradientBuckets:
    """Parameters grouped, in reverse order as their gradients appear, into buckets of at most ``bucket_bytes``."""

    def __init__(self, parameters: Sequence[nn.Parameter], bucket_bytes: int) -> None:
        self._parameters = list(parameters)
        self.buckets: list[list[nn.Parameter]] = []
        room = 0
        for parameter in reversed(self._parameters):
            size = parameter.numel() * parameter.element_size()
            if size > room or not self.buckets:
                self.buckets.append([])
                room = bucket_bytes
            self.buckets[-1].append(parameter)
            room -= size

    def fill_missing(self) -> None:
        """Zero gradients where none arose: a rank without structures, or a parameter that the loss does not reach."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def sum_over_ranks(self, communicator: Communicator) -> None:
        """Replace each gradient by its sum over all ranks. All ranks call it."""
        if communicator.world_size == 1:
            return
        for bucket in self.buckets:
            flat = torch.cat([parameter.grad.reshape(-1) for parameter in bucket])
            communicator.all_reduce_sum(flat)
            offset = 0
            for parameter in bucket:
                piece = flat[offset : offset + parameter.numel()]
                parameter.grad.copy_(piece.view_as(parameter.grad))
                offset += parameter.numel()
