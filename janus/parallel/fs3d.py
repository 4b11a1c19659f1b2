"""Applies a layout to a model, in a stated order: experts are spread, what is left of each block is sharded, then the
rest as the root; micro-batches arrive partitioned. What one rank then holds and runs is a ``DistributedModel``.

It owns the order in which the parts are put together, not the parts: ``experts.py`` (FSEP), ``sharding.py`` (FSDP),
``local_graph.py`` and ``halo.py`` (FSGP), ``gradients.py`` (data parallel). A degree of 1 applies nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from janus.layout import AxisName, Layout
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.experts import MixtureOfExperts
from janus.model.potential import Phase, Prediction, evaluate_potential
from janus.parallel.axis import Axis, LoneAxis
from janus.parallel.communication import Communicator
from janus.parallel.experts import plan_experts, share_composition, spread_experts
from janus.parallel.gathered import GatheredBuffers
from janus.parallel.gradients import GradientSums
from janus.parallel.ledger import BACKWARD, in_phase
from janus.parallel.pieces import Piece
from janus.parallel.sharding import ShardedParameters
from janus.placement import ReplicationRule

if TYPE_CHECKING:
    from janus.model.compiled import CompiledPotential
    from janus.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The groups of the layout that this rank belongs to."""

    shard: Axis
    shard_copies: Axis
    expert: Axis
    expert_copies: Axis
    graph: Axis
    world: Axis

    @classmethod
    def of(cls, layout: Layout, communicator: Communicator, transport: str | None = None) -> Axes:
        """Make them; all ranks call it. transport: None for the communicator's."""
        names: tuple[AxisName, ...] = ("shard", "shard_copies", "expert", "expert_copies", "graph", "world")
        return cls(**{name: communicator.make_axis(name, layout.groups(name), transport=transport) for name in names})


@dataclass(frozen=True, kw_only=True)
class DistributedModel:
    """What one rank holds and runs of a model. All ranks of a unit call the same methods in one order.

    pieces: what this rank keeps of each parameter, in the model's order; a parameter may have no piece here.
    shapes: of every trainable parameter of the undistributed model, in its order.
    compiled: what evaluates training batches instead of ``evaluate_potential``, of an undivided model.
    """

    layout: Layout
    rank: int
    axes: Axes
    model: nn.Module
    sharded: ShardedParameters
    sums: GradientSums
    pieces: dict[str, Piece]
    shapes: dict[str, tuple[int, ...]]
    spreads_experts: bool
    compiled: CompiledPotential | None = None

    @property
    def graph_index(self) -> int:
        """This rank's place among those that share its micro-batches."""
        return self.axes.graph.index

    @contextmanager
    def step(self, *, training: bool = True) -> Iterator[None]:
        """Around the evaluations and backwards of one step (or of a validation); parameters change outside only."""
        if not self.sharded.units and not self.spreads_experts:
            yield
            return
        with self.sharded.step(training=training):
            yield

    def evaluate(
        self, batch: GraphBatch, *, create_graph: bool, phase: Phase | None = None,
        tokens: dict[str, Tensor] | None = None,
    ) -> Prediction:  # fmt: skip
        """evaluate_potential of this rank's part of a micro-batch (maybe empty), inside ``step``.

        tokens: where the tokens per expert [X] of each MoE layer are added, as this step routes them.
        """

        @contextmanager
        def timed(name: str) -> Iterator[None]:
            with in_phase(name), phase(name) if phase is not None else nullcontext():
                yield

        with self.sharded.around(self.model) if self.sharded.units else nullcontext():
            if self.spreads_experts:
                plan_experts(self.model, share_composition(batch, self.axes.expert, self.model.config.num_elements))
            if tokens is not None:
                for layer, counts in (self.model.tokens_per_expert(batch) or {}).items():
                    tokens[layer] = tokens.get(layer, 0) + counts
            if self.compiled is not None and create_graph:
                return self.compiled(batch, phase=timed)
            return evaluate_potential(
                self.model, batch, create_graph=create_graph, phase=timed, run_block=self.sharded.run_block
            )

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradients of this rank's part of the loss; the phases BF and BE.

        is_last: of the step's micro-batches; sums over replicas start while it runs (``sums.finish`` ends them).
        """
        with in_phase(BACKWARD), self.sums.last_micro_batch() if is_last else nullcontext():
            if loss.requires_grad:
                loss.backward()

    def finish_gradients(self) -> None:
        """Complete the sums over replicas, outside ``step``; all ranks call it."""
        deque(self.sums.finish(), maxlen=0)

    def zero_gradients(self) -> None:
        """Clear all gradients."""
        for piece in self.pieces.values():
            piece.parameter.grad = None

    def constants(self) -> dict[str, Tensor]:
        """Tensors of the model that training does not change (the reference energies), equal on all ranks."""
        everything = chain(self.model.named_parameters(), self.model.named_buffers())
        return {name: tensor.detach() for name, tensor in everything if name not in self.shapes}


def distribute(
    config: TrainConfig, layout: Layout, communicator: Communicator, axes: Axes | None = None,
    before_root: Callable[[nn.Module], None] | None = None,
) -> DistributedModel:  # fmt: skip
    """Build the model of a run in its layout, block by block: no rank ever holds all of a sharded model.

    All ranks call it. The initial weights are those that ``build_model`` gives a single process for the same seed.
    axes: those of the layout, where they are there already. before_root: called with the model once its blocks are
    divided, while what is outside of them is still whole.
    """
    axes = axes if axes is not None else Axes.of(layout, communicator)
    parallel = config.parallel
    buffers = GatheredBuffers(parallel.gathered_blocks or None)
    sharded = ShardedParameters(axes.shard, axes.shard_copies, buffers, recompute=config.run.recompute)
    spread: dict[str, Piece] = {}

    def divide_block(index: int, block: nn.Module) -> None:
        mixtures = _mixtures(block)
        if layout.expert_degree > 1:
            for name, mixture in mixtures.items():
                for piece in _spread(name, mixture, f"blocks.{index}.", index, config, axes, buffers):
                    spread[piece.name] = piece
        if layout.shard_degree > 1:
            experts = [f"{name}.{matrix}" for name in mixtures for matrix in ("inner", "outer")]
            gates = [f"{name}.gate.table" for name in mixtures]  # plans are made of them before a block runs: root
            sharded.add_block(index, block, exclude=[*gates, *(experts if layout.expert_degree > 1 else [])])

    model = build_model(
        config.model, seed=config.run.seed, dtype=getattr(torch, config.run.dtype), device=communicator.device,
        on_block=divide_block,
    )  # fmt: skip
    # on all ranks or on none: a host may lack what compiling needs
    compiled = communicator.together(lambda: _compiled(model)) if config.run.compile else None
    if before_root is not None:
        before_root(model)
    if layout.shard_degree > 1:
        sharded.add_root(model, exclude=list(spread))
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in build_model(config.model, device="meta").named_parameters()
        if parameter.requires_grad
    }
    divided = {**sharded.pieces, **spread}
    if layout.shard_degree == 1:
        divided |= _whole_pieces(model, axes.world, skip=divided)
    pieces = {name: divided[name] for name in shapes if name in divided}
    return DistributedModel(
        layout=layout, rank=communicator.rank, axes=axes, model=model, sharded=sharded,
        sums=GradientSums(pieces, sharded, bucket_bytes=parallel.bucket_bytes),
        pieces=pieces, shapes=shapes, spreads_experts=layout.expert_degree > 1, compiled=compiled,
    )  # fmt: skip


def _compiled(model: nn.Module) -> CompiledPotential:
    from janus.model.compiled import CompiledPotential  # the compiler takes a second to import

    return CompiledPotential(model)


def _mixtures(block: nn.Module) -> dict[str, MixtureOfExperts]:
    return {name: module for name, module in block.named_modules() if isinstance(module, MixtureOfExperts)}


def _spread(
    name: str, mixture: MixtureOfExperts, prefix: str, index: int, config: TrainConfig, axes: Axes,
    buffers: GatheredBuffers,
) -> list[Piece]:  # fmt: skip
    parallel = config.parallel
    rule = ReplicationRule(flops_per_byte=parallel.expert_flops_per_byte) if parallel.expert_replication else None
    return spread_experts(
        mixture, axes.expert, axes.expert_copies, prefix=f"{prefix}{name}.",
        tokens="edges" if name.startswith("message_update") else "atoms",
        strategy=parallel.expert_strategy, rule=rule,
        compressed=parallel.expert_compression == "float16", buffers=buffers, block=index,
    )  # fmt: skip


def _whole_pieces(model: nn.Module, world: Axis, skip: dict[str, Piece]) -> dict[str, Piece]:
    """Parameters that every rank holds whole."""
    alone = LoneAxis("whole")
    return {
        name: Piece(
            name=name, shape=tuple(parameter.shape), parameter=parameter, chunks=((0, parameter.numel()),),
            owners=alone, copies=world,
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in skip
    }  # fmt: skip
