"""Index arrays of one layer's expert exchange on one rank: which rows go where, and which copies are computed here.

It turns an ``ExpertPlan`` and the order of this rank's tokens into indices; it sends and multiplies nothing.
Legend: T tokens here, D rows sent, Q rows received, C copies computed here, Z elements, k experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from janus.parallel.compression import Compression
from janus.placement import ExpertPlan


@dataclass(frozen=True, kw_only=True)
class TokenOrder:
    """This rank's tokens by element: order [T] lists them, start [Z+1] where each element begins; device: of them."""

    order: np.ndarray
    start: np.ndarray
    device: torch.device

    @classmethod
    def of(cls, element: Tensor, num_elements: int) -> TokenOrder:
        """From the element of each token [T]."""
        numbers = element.cpu().numpy()
        start = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=num_elements))])
        return cls(order=np.argsort(numbers, kind="stable"), start=start, device=element.device)

    @property
    def counts(self) -> np.ndarray:
        """Tokens of each element [Z]."""
        return np.diff(self.start)


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Copies computed on this rank, sorted by the slot of their expert.

    row [C]: the row that each copy takes; gate [C]: its place in the flattened weights [Z k]; num_rows: rows in all.
    loads: copies of each slot: experts that live here, then restored ones, each ascending.
    """

    row: Tensor
    gate: Tensor
    loads: tuple[int, ...]
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Route:
    """One layer's exchange on this rank.

    experts [Z,k]; num_tokens: T; copies: what is computed here. Under "tokens" also: token [D] of each row sent,
    ordered by rank and element; sent_rows, received_rows: per rank; compression: element of each row.
    """

    experts: Tensor
    num_tokens: int
    copies: Copies
    token: Tensor | None = None
    sent_rows: tuple[int, ...] = ()
    received_rows: tuple[int, ...] = ()
    compression: Compression | None = None


def route_of(plan: ExpertPlan, rank: int, order: TokenOrder) -> Route:
    """The route of a rank (index in its expert group)."""
    assert np.array_equal(order.counts, plan.tokens[rank]), (order.counts.tolist(), plan.tokens[rank].tolist())
    device = order.device
    experts = torch.from_numpy(np.ascontiguousarray(plan.experts)).to(device)
    if plan.strategy == "weights":
        return Route(
            experts=experts,
            num_tokens=len(order.order),
            copies=_copies_of_own_tokens(plan, rank, order, device),
        )
    present = plan.elements
    counts = plan.tokens[:, present]
    element = np.nonzero(plan.sends[rank].T)[1]  # by destination, then element
    token = order.order[_ranges(order.start[present[element]], counts[rank, element])]
    source, arriving = np.nonzero(plan.sends[:, :, rank])
    lengths = counts[source, arriving]
    row_start = np.zeros(counts.shape, dtype=np.int64)
    row_start[source, arriving] = np.cumsum(lengths) - lengths
    return Route(
        experts=experts,
        num_tokens=len(order.order),
        copies=_copies_of_arrivals(plan, rank, row_start, int(lengths.sum()), device),
        token=_tensor(token, device),
        sent_rows=tuple(plan.rows[rank].tolist()),
        received_rows=tuple(plan.rows[:, rank].tolist()),
        compression=Compression(
            len(plan.experts),
            _tensor(np.repeat(present[element], counts[rank, element]), device),
            _tensor(np.repeat(present[arriving], lengths), device),
        ),
    )


def _copies_of_arrivals(
    plan: ExpertPlan, rank: int, row_start: np.ndarray, num_rows: int, device: torch.device
) -> Copies:
    present = plan.elements
    counts = plan.tokens[:, present]
    source, element, choice = np.nonzero((plan.destination[:, present] == rank) & (counts > 0)[:, :, None])
    slot_of_expert = np.full(plan.num_experts, -1)
    held = np.concatenate([np.flatnonzero(plan.home == rank), np.flatnonzero(plan.borrowed[rank])])
    slot_of_expert[held] = np.arange(len(held))
    return _sorted_copies(
        slot=slot_of_expert[plan.experts[present[element], choice]],
        start=row_start[source, element],
        length=counts[source, element],
        gate=present[element] * plan.experts.shape[1] + choice,
        num_slots=len(held),
        num_rows=num_rows,
        device=device,
    )


def _copies_of_own_tokens(plan: ExpertPlan, rank: int, order: TokenOrder, device: torch.device) -> Copies:
    present = np.flatnonzero(order.counts)
    needed = np.flatnonzero(plan.restored[rank])
    slot_of_expert = np.full(plan.num_experts, -1)
    slot_of_expert[needed] = np.arange(len(needed))
    top_k = plan.experts.shape[1]
    element, choice = np.repeat(present, top_k), np.tile(np.arange(top_k), len(present))
    copies = _sorted_copies(
        slot=slot_of_expert[plan.experts[element, choice]],
        start=order.start[element],
        length=order.counts[element],
        gate=element * top_k + choice,
        num_slots=len(needed),
        num_rows=len(order.order),
        device=device,
    )
    row = _tensor(order.order, device)[copies.row]
    return Copies(row=row, gate=copies.gate, loads=copies.loads, num_rows=copies.num_rows)


def _sorted_copies(
    *,
    slot: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    gate: np.ndarray,
    num_slots: int,
    num_rows: int,
    device: torch.device,
) -> Copies:
    """Copies from segments of consecutive rows, ordered by slot."""
    assert slot.min(initial=0) >= 0, "a copy of an expert that is not held here"
    by_slot = np.argsort(slot, kind="stable")
    start, length, gate = start[by_slot], length[by_slot], gate[by_slot]
    loads = np.bincount(slot[by_slot], weights=length, minlength=num_slots).astype(np.int64)
    return Copies(
        row=_tensor(_ranges(start, length), device),
        gate=_tensor(np.repeat(gate, length), device),
        loads=tuple(loads.tolist()),
        num_rows=num_rows,
    )


def _ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... (length[0] numbers), start[1], ..."""
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(int(length.sum()))


def _tensor(index: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64)).to(device)
