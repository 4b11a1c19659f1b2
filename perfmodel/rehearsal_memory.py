"""What a rehearsed rank will need of this host's memory, before anything is built.

It owns the sum over building and stepping; what a step keeps is ``memory``'s. Building is where whole blocks are for a
moment: each block is made whole, but for experts that live elsewhere, and then cut down to what the rank keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from janus.config import ModelConfig
from janus.layout import Layout
from perfmodel.memory import activation_bytes, batch_bytes
from perfmodel.products import Counts
from perfmodel.step_work import RunSettings
from perfmodel.traffic_parameters import block_of, kept_pieces, sharded_units, trained_parameters
from perfmodel.workload import ITEM_BYTES

PROCESS_BYTES = 0.5e9  # assumed: interpreter, torch, compiled loops on x86-64 Linux with the CPU build of torch 2.13
INITIAL_ITEM_BYTES = 4  # models are initialised in float32
ADAM_MOMENTS = 2
ROUTED = (".experts.inner", ".experts.outer")  # names of the routed experts' matrices


@dataclass(frozen=True, kw_only=True)
class RehearsalNeed:
    """Bytes, about. process: what a process has anyway; building: whole blocks, for a moment; states: parameters,
    gradients, moments and averages kept; gathered: whole parameters and gradients of a step; activations, batches.
    """

    process: float
    building: float
    states: float
    gathered: float
    activations: float
    batches: float

    @property
    def total(self) -> float:
        """At the worst moment."""
        return self.process + max(self.building, self.states + self.gathered + self.activations) + self.batches


def rehearsal_need(
    model: ModelConfig,
    layout: Layout,
    rank: int,
    micro_batches: Sequence[Counts],
    settings: RunSettings,
    *,
    with_optimizer: bool = True,
) -> RehearsalNeed:
    """Of one rank of a layout with these rows; for one micro-batch at a time. Estimates: about 25 % either way."""
    item = ITEM_BYTES[settings.dtype]
    numel, _ = kept_pieces(model, layout, rank, settings.expert_strategy)
    copies = 2 + (ADAM_MOMENTS + settings.averages if with_optimizer else 0)
    units = {block: each * layout.shard_degree for block, each in sharded_units(model, layout).items()}
    root = units.pop(-1, 0)
    held = min(settings.gathered_blocks or model.num_blocks, model.num_blocks)
    largest = max(units.values(), default=0)
    # BF makes whole gradients of every block, which wait for BE, but for recomputed ones
    whole_gradients = largest if settings.recompute else sum(units.values())
    moved = _moved_experts(model, layout, settings)
    activations = max(
        (activation_bytes(model, one, recompute=settings.recompute, dtype=settings.dtype) for one in micro_batches),
        default=0.0,
    )
    return RehearsalNeed(
        process=PROCESS_BYTES,
        building=item * numel + _largest_block(model, layout) * max(item, INITIAL_ITEM_BYTES) * (2 if item > 4 else 1),
        states=item * numel * copies,
        gathered=item * (2 * root + held * (largest + moved) + whole_gradients + largest + moved),
        activations=activations,
        batches=sum(batch_bytes(one) for one in micro_batches),
    )


def _largest_block(model: ModelConfig, layout: Layout) -> float:
    """Numbers of the largest block while it is built: whole, but for experts that live elsewhere."""
    sizes: dict[int, float] = {}
    for name, numel in trained_parameters(model).items():
        block, parts = block_of(name), layout.expert_degree if name.endswith(ROUTED) else 1
        sizes[block] = sizes.get(block, 0.0) + numel / parts
    return max(sizes.values())


def _moved_experts(model: ModelConfig, layout: Layout, settings: RunSettings) -> float:
    """Numbers of a block's experts that are restored whole where weights travel: all of them at most."""
    if layout.expert_degree == 1 or settings.expert_strategy == "tokens":
        return 0.0
    one_block = trained_parameters(replace(model, num_blocks=1))
    return float(sum(numel for name, numel in one_block.items() if name.endswith(ROUTED)))
