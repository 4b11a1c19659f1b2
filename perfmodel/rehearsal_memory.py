"""What a rehearsed rank will need of this host's memory, before anything is built.

It owns what building needs: each block is made whole, but for experts that live elsewhere, and then cut down to what
the rank keeps. What a step needs is ``memory``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus.config import ModelConfig
from janus.layout import Layout
from perfmodel.memory import AVERAGE_STATES, BASE_BYTES, OPTIMIZER_STATES, predict_rank_memory, resident_of
from perfmodel.products import Counts
from perfmodel.step_work import RunSettings
from perfmodel.traffic_parameters import block_of, is_routed, kept_pieces, trained_parameters
from perfmodel.workload import ITEM_BYTES

INITIAL_ITEM_BYTES = 4  # models are initialised in float32, and then converted


@dataclass(frozen=True, kw_only=True)
class RehearsalNeed:
    """Resident bytes, about, while the rank's part is built and in its steps."""

    building_bytes: float
    step_bytes: float

    @property
    def total_bytes(self) -> float:
        """At the worst moment."""
        return max(self.building_bytes, self.step_bytes)


def rehearsal_need(
    model: ModelConfig,
    layout: Layout,
    rank: int,
    micro_batches: Sequence[Counts],
    settings: RunSettings,
    *,
    with_optimizer: bool = True,
) -> RehearsalNeed:
    """Of one rank of a layout with these rows; without an optimizer there are no moments and no average."""
    item = ITEM_BYTES[settings.dtype]
    numel, _ = kept_pieces(model, layout, rank, settings.expert_strategy)
    step_bytes = predict_rank_memory(model, micro_batches, layout, settings, rank=rank).resident_bytes
    if not with_optimizer:
        left_out = OPTIMIZER_STATES + (AVERAGE_STATES if settings.averages else 0)
        step_bytes -= float(resident_of(item * numel * left_out))
    converted = item if item != INITIAL_ITEM_BYTES else 0
    building = _largest_block(model, layout) * (INITIAL_ITEM_BYTES + converted)
    return RehearsalNeed(building_bytes=BASE_BYTES + item * numel + building, step_bytes=step_bytes)


def _largest_block(model: ModelConfig, layout: Layout) -> float:
    """Numbers of the largest block while it is built: whole, but for experts that live elsewhere."""
    sizes: dict[int, float] = {}
    for name, numel in trained_parameters(model).items():
        block, parts = block_of(name), layout.expert_degree if is_routed(name) else 1
        sizes[block] = sizes.get(block, 0.0) + numel / parts
    return max(sizes.values())
