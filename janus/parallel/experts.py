"""Experts spread over the expert axis (FSEP): each rank keeps a part of them, and tokens or weights travel.

It applies an ``ExpertPlan`` (``janus/placement.py``, where the two strategies and their bytes are) to the mixtures of
a model. It does not own the plan, the index arrays (``routes.py``) or how weights are sent (``expert_weights.py``).

On the expert axis, per micro-batch: one all-gather of 2 Z counts before the forward pass; per layer and phase what
``placement.exchange_traffic`` says. All ranks of the axis call them in one order, those without tokens too.
Legend: T tokens here, D rows sent, Q rows received, C copies computed here, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from janus.kernels import operators
from janus.model.batch import GraphBatch
from janus.model.experts import MixtureOfExperts, grouped_gated_product
from janus.parallel.axis import Axis
from janus.parallel.collectives import finish, start_all_to_all
from janus.parallel.expert_weights import WeightMover, kept_parts
from janus.parallel.gathered import GatheredBuffers
from janus.parallel.pieces import Piece
from janus.parallel.routes import Route, TokenOrder, route_of
from janus.placement import ExpertPlan, ExpertShape, ReplicationRule, Strategy, place_experts

TokenKind = Literal["atoms", "edges"]


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What a micro-batch holds. counts: tokens per rank of the expert axis and element [n,Z]; orders: this rank's."""

    counts: Mapping[TokenKind, np.ndarray]
    orders: Mapping[TokenKind, TokenOrder]


def share_composition(batch: GraphBatch, axis: Axis, num_elements: int) -> Composition:
    """Tell all ranks of the expert axis this rank's atoms and edges per element (of the edge's centre): 2 Z int64."""
    element = batch.numbers - 1
    orders: dict[TokenKind, TokenOrder] = {
        "atoms": TokenOrder.of(element, num_elements),
        "edges": TokenOrder.of(element[batch.centre], num_elements),
    }
    mine = torch.from_numpy(np.concatenate([orders["atoms"].counts, orders["edges"].counts])).to(batch.numbers.device)
    everyones = mine.new_empty(axis.size * len(mine))
    axis.all_gather(everyones, mine).wait()
    counts = everyones.cpu().numpy().reshape(axis.size, 2, num_elements)
    return Composition(counts={"atoms": counts[:, 0], "edges": counts[:, 1]}, orders=orders)


@torch.no_grad()
def plan_experts(model: nn.Module, composition: Composition) -> dict[str, ExpertPlan]:
    """Plan every spread mixture of a model for one micro-batch, before its forward pass; the plans, by module name.

    The gates' tables must be there. The plans hold until the next call: through the backward and any recomputation.
    Weights that block 0 gets from other ranks are on their way when it returns.
    """
    plans = {}
    for name, module in model.named_modules():
        if isinstance(module, MixtureOfExperts) and module.exchange is not None:
            experts, _ = module.gate()
            plans[name] = module.exchange.prepare(experts.cpu().numpy(), composition)
    return plans


def spread_experts(
    mixture: MixtureOfExperts,
    axis: Axis,
    copies: Axis,
    *,
    prefix: str,
    tokens: TokenKind,
    strategy: Strategy = "tokens",
    rule: ReplicationRule | None = None,
    compressed: bool = False,
    buffers: GatheredBuffers | None = None,
    block: int = 0,
) -> list[Piece]:
    """Keep this rank's part of a mixture's experts and compute by exchange from now on; the parts.

    copies: the axis of the ranks with equal parts. prefix: the mixture's name in the undistributed model, with a final
    dot. tokens: what its rows are. rule: when to replicate (None: never). compressed: token rows travel in 16 bits.
    buffers: where weights that travel are registered under ``block``, to be freed and restored (None: they are kept).
    An axis of one rank: nothing changes but for the list.
    """
    inner, outer = mixture.inner.detach(), mixture.outer.detach()
    num_experts, double_hidden, width = inner.shape
    shape = ExpertShape(
        width=width, hidden=double_hidden // 2, num_experts=num_experts, item_bytes=inner.element_size()
    )
    if axis.size > 1:
        mover = WeightMover(axis, strategy, shape)
        if buffers is not None and buffers.keep is not None and rule is not None:
            rule = replace(rule, weight_passes=5)
        mixture.exchange = ExpertExchange(mover, tokens, rule, compressed)
        if buffers is not None:
            mover.register(mixture, buffers, block)
    pieces = []
    for name, whole in (("inner", inner), ("outer", outer)):
        part, chunks = kept_parts(whole, axis, strategy)
        parameter = nn.Parameter(part.clone()) if axis.size > 1 else getattr(mixture, name)
        setattr(mixture, name, parameter)
        pieces.append(
            Piece(
                name=prefix + name, shape=tuple(whole.shape), parameter=parameter, chunks=chunks, owners=axis,
                copies=copies,
            )
        )  # fmt: skip
    return pieces


class ExpertExchange:
    """One mixture's exchange on this rank; the mixture calls it in its place."""

    def __init__(self, mover: WeightMover, tokens: TokenKind, rule: ReplicationRule | None, compressed: bool) -> None:
        self.axis, self.strategy, self.shape = mover.axis, mover.strategy, mover.shape
        self.mover, self.tokens, self.rule, self.compressed = mover, tokens, rule, compressed
        self.plan: ExpertPlan | None = None
        self.route: Route | None = None

    def prepare(self, experts: np.ndarray, composition: Composition) -> ExpertPlan:
        """Plan the next micro-batch. experts [Z,k] of each element."""
        counts = composition.counts[self.tokens]
        self.plan = place_experts(experts, counts, self.shape, self.strategy, self.rule)
        self.route = route_of(self.plan, self.axis.index, composition.orders[self.tokens])
        self.mover.aim(self.plan, composition.orders[self.tokens].device)
        return self.plan

    def __call__(self, mixture: MixtureOfExperts, tokens: Tensor) -> Tensor:
        """tokens [T,d] -> the mixture's output [T,d], shared experts included."""
        route = self.route
        assert route is not None, "experts are spread: plan_experts() comes before the forward pass"
        assert len(tokens) == route.num_tokens, (len(tokens), route.num_tokens)
        return (self._moving_tokens if self.strategy == "tokens" else self._moving_weights)(mixture, tokens, route)

    def _moving_weights(self, mixture: MixtureOfExperts, tokens: Tensor, route: Route) -> Tensor:
        loan = self.mover.borrow(mixture)
        shared = None if mixture.shared is None else mixture.shared(tokens)
        mixed = self._mixed(mixture, tokens, route, [loan.finish()])
        return mixed if shared is None else mixed + shared

    def _moving_tokens(self, mixture: MixtureOfExperts, tokens: Tensor, route: Route) -> Tensor:
        """The first product of the shared experts runs while rows travel, the second while they travel back."""
        compression = route.compression if self.compressed else None
        sent = operators.gathered(tokens, route.token)
        there = start_all_to_all(sent, self.axis, route.received_rows, route.sent_rows, compression)
        loan = self.mover.borrow(mixture) if self.plan.moves_weights else None
        hidden = None if mixture.shared is None else mixture.shared.hidden(tokens)
        parts = [(mixture.inner, mixture.outer)] if loan is None else [(mixture.inner, mixture.outer), loan.finish()]
        mixed = self._mixed(mixture, finish(there), route, parts)
        turned = None if compression is None else compression.adjoint()
        back = start_all_to_all(mixed, self.axis, route.sent_rows, route.received_rows, turned)
        shared = None if hidden is None else mixture.shared.outer(hidden)
        total = operators.segment_sum(finish(back), route.token, len(tokens))
        return total if shared is None else total + shared

    def _mixed(
        self, mixture: MixtureOfExperts, rows: Tensor, route: Route, parts: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Weighted sum of the experts computed here, for each row [Q,d]; parts: weights living here, then restored."""
        copies = route.copies
        weights = functional.softmax(mixture.gate.table.gather(1, route.experts), dim=1)
        operand = operators.gathered(rows, copies.row)
        products, slot, row = [], 0, 0
        for inner, outer in parts:
            loads = copies.loads[slot : slot + len(inner)]
            num_rows = sum(loads)
            products.append(grouped_gated_product(operand[row : row + num_rows], inner, outer, loads))
            slot, row = slot + len(inner), row + num_rows
        assert slot == len(copies.loads), (slot, len(copies.loads))
        product = products[0] if len(products) == 1 else torch.cat(products)
        weight = operators.gathered(weights.reshape(-1, 1), copies.gate)
        return operators.segment_sum(product * weight, copies.row, copies.num_rows)
