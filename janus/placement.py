"""Just-in-time expert planning: where each copy of a token is computed, from the composition of the batch alone.

It owns the decision (pure, the same on every rank, importable without torch) and what it costs in copies, rows and
bytes. It does not own which rows of a batch are meant, nor the exchange (``janus/parallel/experts.py``).

An element's experts are fixed within a step, so the tokens per (rank, element) are all that has to be known. Two
strategies:

"tokens"   whole experts live on home ranks, contiguous blocks of X/n. A token's row travels once to every rank that
           computes one of its experts, is mixed there, and one row travels back. The weights of hot experts are copied
           to further ranks for this step where that pays: replication.
"weights"  every expert is divided evenly over the ranks (LAER-MoE, arXiv 2602.11686); the weights of the experts that
           a rank's own tokens need are restored there by an all-to-all of weights, tokens stay.

Legend: n ranks of the expert group, Z elements, k experts per token, X experts, d width, h hidden channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Strategy = Literal["tokens", "weights"]
STRATEGIES: tuple[Strategy, ...] = ("tokens", "weights")
FLOPS_PER_WEIGHT = 12  # of one copy in one step: a multiply and an add, six times (FE 1, FF 1, BF 2, BE 2)
PHASES = ("FE", "FF", "BF", "BE")  # in each, token rows travel there and back


@dataclass(frozen=True, kw_only=True)
class ExpertShape:
    """Sizes of a layer's experts: d, h, X, and the bytes of one number that travels."""

    width: int
    hidden: int
    num_experts: int
    item_bytes: int = 4

    @property
    def num_weights(self) -> int:
        """Weights of one expert, 3 d h."""
        return 3 * self.width * self.hidden


@dataclass(frozen=True, kw_only=True)
class ReplicationRule:
    """When an expert's weights are worth moving.

    flops_per_byte: what a rank computes while its link carries one byte (assumed: 200, of an accelerator with fast
    links; a CPU node with a fast fabric has about 50). weight_passes: how often the weights or their gradients travel
    in a step (at most 5: restored in FE, FF, BF and BE, gradients home; 2 where they are kept).
    most_replicas: experts that a rank may borrow at once in a layer; 0 turns replication off.
    """

    flops_per_byte: float = 200.0
    weight_passes: int = 2
    most_replicas: int = 4


def blocks(total: int, num_parts: int) -> np.ndarray:
    """Starts of ``num_parts`` contiguous blocks and the end of the last [num_parts + 1]; sizes differ by at most 1."""
    size, longer = divmod(total, num_parts)
    return np.concatenate([[0], np.cumsum(size + (np.arange(num_parts) < longer))])


def home_ranks(num_experts: int, num_ranks: int) -> np.ndarray:
    """Rank where each expert lives under the strategy "tokens" [X]."""
    return np.repeat(np.arange(num_ranks), np.diff(blocks(num_experts, num_ranks)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertPlan:
    """Where the copies of one layer's tokens are computed.

    experts [Z,k] of each element; tokens [n,Z] of each rank and element; destination [n,Z,k]: the rank that computes
    expert ``experts[z,j]`` for the tokens of element z on a rank; num_experts: X.
    """

    strategy: Strategy
    experts: np.ndarray
    tokens: np.ndarray
    destination: np.ndarray
    num_experts: int

    @property
    def num_ranks(self) -> int:
        """Ranks of the expert group."""
        return len(self.tokens)

    @cached_property
    def home(self) -> np.ndarray:
        """Rank where each expert lives [X]."""
        return home_ranks(self.num_experts, self.num_ranks)

    @cached_property
    def elements(self) -> np.ndarray:
        """Elements that are there, ascending: everything below is worked out on them only [P]."""
        return np.flatnonzero(self.tokens.sum(axis=0))

    @cached_property
    def sends(self) -> np.ndarray:
        """Whether a rank's tokens of an element are computed on a rank, bool [n, P, n] (from, element, to)."""
        sends = np.zeros((self.num_ranks, len(self.elements), self.num_ranks), dtype=bool)
        np.put_along_axis(sends, self.destination[:, self.elements], True, axis=2)
        return sends & (self.tokens[:, self.elements, None] > 0)

    @cached_property
    def rows(self) -> np.ndarray:
        """Token rows that a rank hands to a rank, itself included [n,n] (from, to); as many come back."""
        return np.einsum("sp,spr->sr", self.tokens[:, self.elements], self.sends)

    @cached_property
    def loads(self) -> np.ndarray:
        """Copies computed by each rank [n]."""
        return _loads(self.destination, self.tokens)

    @cached_property
    def loads_before(self) -> np.ndarray:
        """Copies that each rank would compute without replication [n]."""
        if self.strategy == "weights":
            return self.loads
        return _loads(np.broadcast_to(self.home[self.experts], self.destination.shape), self.tokens)

    @cached_property
    def computed(self) -> np.ndarray:
        """Whether a rank computes copies of an expert, bool [n,X]."""
        computed = np.zeros((self.num_ranks, self.num_experts), dtype=bool)
        there = np.broadcast_to((self.tokens > 0)[:, :, None], self.destination.shape)
        expert = np.broadcast_to(self.experts, self.destination.shape)
        computed[self.destination[there], expert[there]] = True
        return computed

    @cached_property
    def borrowed(self) -> np.ndarray:
        """Whether an expert's weights are moved to a rank where they do not live, bool [n,X] ("tokens")."""
        return self.computed & (self.home != np.arange(self.num_ranks)[:, None])

    @cached_property
    def moves_weights(self) -> bool:
        """Whether any weights travel in this layer: then every rank takes part in that all-to-all."""
        return self.strategy == "weights" or bool(self.borrowed.any())

    @cached_property
    def restored(self) -> np.ndarray:
        """Whether a rank gets an expert's weights by the all-to-all of weights, bool [n,X]."""
        return self.computed if self.strategy == "weights" else self.borrowed


def _loads(destination: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    copies = np.broadcast_to(tokens[:, :, None], destination.shape)
    return np.bincount(destination.ravel(), weights=copies.ravel(), minlength=len(tokens)).astype(np.int64)


def division(strategy: Strategy, shape: ExpertShape, num_ranks: int) -> np.ndarray:
    """Starts of the ranks' parts of one flattened matrix of all experts, and its end: of inner and outer [2, n+1].

    "tokens": of the experts [X]. "weights": of one expert's numbers, 2 h d (inner) and d h (outer); every expert alike.
    """
    if strategy == "tokens":
        return np.stack([blocks(shape.num_experts, num_ranks)] * 2)
    return np.stack([blocks(part * shape.width * shape.hidden, num_ranks) for part in (2, 1)])


def weights_sent(plan: ExpertPlan, shape: ExpertShape) -> np.ndarray:
    """Numbers that a rank hands to a rank to restore weights, itself included [n,n] (from, to)."""
    if plan.strategy == "weights":
        parts = np.diff(division("weights", shape, plan.num_ranks)).sum(axis=0)
        return parts[:, None] * plan.restored.sum(axis=1)
    lent = np.zeros((plan.num_ranks, plan.num_ranks), dtype=np.int64)
    borrower, expert = np.nonzero(plan.restored)
    np.add.at(lent, (plan.home[expert], borrower), 1)
    return lent * shape.num_weights


def exchange_traffic(
    plan: ExpertPlan,
    shape: ExpertShape,
    rank: int,
    *,
    restored_in: tuple[str, ...] | None = None,
    compressed: bool = False,
    recompute: bool = False,
    leaves_block: bool = False,
) -> dict[str, tuple[int, int]]:
    """Calls of all-to-all and bytes that one rank hands to others, by phase, of one layer and one micro-batch.

    Token rows, of d numbers of b bytes, with r(s,t) rows from rank s to t: in each phase a call there, sum over t of
    r(s,t) d b, and one back, of r(t,s) d b. Compressed: b = 2 and ceil(Z/d) more rows to each other rank in each call.
    Weights, if any move: a call in each phase of ``restored_in`` with w(s,t) numbers, and one in BE that takes the
    gradients home, w(t,s) numbers. restored_in: None where they are kept (FE), ``restoring_phases`` where freed;
    w(s,t) = m(t) c(s) for "weights" (m experts needed by t, c(s) numbers of each kept by s), 3 d h times the experts
    that t borrows from s for "tokens".

    recompute: the block runs under activation checkpointing: rows travel there and back twice in FF, four times in BF
    and twice in BE, gradients of weights go home in BF too, and kept weights are restored in all phases. leaves_block:
    the layer's result leaves its block linearly (the feature update): one call there less in BF then.
    """
    traffic = dict.fromkeys(PHASES, (0, 0))
    if plan.num_ranks == 1:
        return traffic

    def add(phase: str, calls: int, sent: int) -> None:
        traffic[phase] = traffic[phase][0] + calls, traffic[phase][1] + sent

    if plan.strategy == "tokens":
        own, headers = plan.rows[rank, rank], 0
        if compressed:
            headers = (plan.num_ranks - 1) * -(-plan.experts.shape[0] // shape.width)
        row_bytes = shape.width * (2 if compressed else shape.item_bytes)
        there, back = ((int(rows.sum() - own) + headers) * row_bytes for rows in (plan.rows[rank], plan.rows[:, rank]))
        for phase, times in zip(PHASES, (1, 2, 4, 2) if recompute else (1, 1, 1, 1), strict=True):
            add(phase, 2 * times, times * (there + back))
        if recompute and leaves_block:
            add("BF", -1, -there)
    if plan.moves_weights:
        weights = weights_sent(plan, shape)
        if restored_in is None:
            restored_in = PHASES if recompute else ("FE",)
        for phase in restored_in:
            add(phase, 1, int(weights[rank].sum() - weights[rank, rank]) * shape.item_bytes)
        for phase in ("BF", "BE") if recompute else ("BE",):
            add(phase, 1, int(weights[:, rank].sum() - weights[rank, rank]) * shape.item_bytes)
    return traffic


def restoring_phases(block: int, num_blocks: int, keep: int | None = 2) -> tuple[str, ...]:
    """Phases in which a block's freed weights are restored, when ``keep`` blocks are held at a time (None: all).

    Blocks are met upwards in FE and BF, downwards in FF and BE; the last ``keep`` stay where the direction turns, but
    for the turn to the next micro-batch, whose plan differs (``janus/parallel/gathered.py``).
    """
    if keep is None or keep >= num_blocks:
        return ("FE",)
    left_behind, ahead = block < num_blocks - keep, block >= keep
    is_restored = {"FE": True, "FF": left_behind, "BF": ahead, "BE": left_behind}
    return tuple(phase for phase, restored in is_restored.items() if restored)


def place_experts(
    experts: np.ndarray,
    tokens: np.ndarray,
    shape: ExpertShape,
    strategy: Strategy = "tokens",
    rule: ReplicationRule | None = None,
) -> ExpertPlan:
    """The plan of one layer. experts [Z,k], tokens [n,Z] per rank and element; rule None: nothing is replicated."""
    num_ranks = len(tokens)
    wide = (num_ranks, *experts.shape)
    if strategy == "weights":
        destination = np.broadcast_to(np.arange(num_ranks)[:, None, None], wide)
    else:
        destination = np.broadcast_to(home_ranks(shape.num_experts, num_ranks)[experts], wide)
        if rule is not None and rule.most_replicas > 0 and num_ranks > 1:
            destination = _balanced(experts, tokens, destination, shape, rule)
    return ExpertPlan(
        strategy=strategy, experts=experts, tokens=tokens, destination=destination, num_experts=shape.num_experts
    )


def _balanced(
    experts: np.ndarray, tokens: np.ndarray, home: np.ndarray, shape: ExpertShape, rule: ReplicationRule
) -> np.ndarray:
    """Destinations [n,Z,k] with segments moved away from overloaded ranks, up to the least estimated step."""
    loads = _loads(home, tokens)
    if rule.flops_per_byte * rule.weight_passes * shape.item_bytes >= FLOPS_PER_WEIGHT * (loads.max() - loads.mean()):
        return home  # perfect balance would not even pay for one expert
    moves = _Moves(experts, tokens, home, shape, rule)
    best, best_cost, made = 0, moves.cost(), 0
    while moves.make_next():
        made, cost = made + 1, moves.cost()
        if cost < best_cost:
            best, best_cost = made, cost
    destination = home.copy()
    for segments, taker in moves.made[:best]:
        destination.reshape(-1)[moves.place[segments]] = taker
    return destination


class _Moves:
    """Greedy moves of segments (a rank's tokens of one element for one of its experts) to less loaded ranks."""

    TOLERANCE = 0.01  # of the mean load: closer to it there is nothing to gain
    MOST_PER_RANK = 4  # moves in all, per rank of the group

    def __init__(
        self, experts: np.ndarray, tokens: np.ndarray, home: np.ndarray, shape: ExpertShape, rule: ReplicationRule
    ) -> None:
        self.rule, self.num_ranks, self.num_experts = rule, len(tokens), shape.num_experts
        self.source, self.element, choice = np.nonzero(np.broadcast_to((tokens > 0)[:, :, None], home.shape))
        self.place = np.ravel_multi_index((self.source, self.element, choice), home.shape)
        self.expert = experts[self.element, choice]
        self.size = tokens[self.source, self.element]
        self.rank = home[self.source, self.element, choice]
        self.at_home = home_ranks(self.num_experts, self.num_ranks) == np.arange(self.num_ranks)[:, None]
        self.holds = self.at_home.copy()
        self.refused = np.zeros((self.num_experts, self.num_ranks), dtype=bool)
        self.loads = np.bincount(self.rank, weights=self.size, minlength=self.num_ranks)
        self.choices = np.zeros((*tokens.shape, self.num_ranks), dtype=np.int32)  # experts of an element on a rank
        np.add.at(self.choices, (self.source, self.element, self.rank), 1)
        self.rows = np.einsum("sz,szr->sr", tokens, self.choices > 0)
        self.made: list[tuple[np.ndarray, int]] = []
        # costs in FLOPs of one rank: per copy computed, per row sent, per expert moved
        self.copy_flops = FLOPS_PER_WEIGHT * shape.num_weights
        self.row_flops = rule.flops_per_byte * len(PHASES) * shape.width * shape.item_bytes
        self.weight_flops = rule.flops_per_byte * rule.weight_passes * shape.num_weights * shape.item_bytes

    def cost(self) -> float:
        """Estimated step of the slowest rank: its copies, and the most that any rank sends of rows and of weights."""
        crossing = (self.rows.sum(axis=0) + self.rows.sum(axis=1) - 2 * self.rows.diagonal()).max()
        borrowed = self.holds & ~self.at_home
        weights = max(borrowed.sum(axis=1).max(), (self.at_home @ borrowed.sum(axis=0)).max())
        return float(self.copy_flops * self.loads.max() + self.row_flops * crossing + self.weight_flops * weights)

    def make_next(self) -> bool:
        """Make the next move; False when none is left that would help the fullest rank."""
        mean = self.loads.mean()
        while len(self.made) < self.MOST_PER_RANK * self.num_ranks:
            full = int(self.loads.argmax())
            room = np.minimum(self.loads[full] - mean, mean - self.loads)
            if self.loads[full] <= (1 + self.TOLERANCE) * mean:
                return False
            here = np.flatnonzero(self.rank == full)
            gain = self._gain(here, room)
            expert, taker = divmod(int(gain.argmax()), self.num_ranks)
            if gain[expert, taker] <= 0:
                return False
            chosen = self._choose(here[self.expert[here] == expert], full, taker, room[taker])
            if len(chosen):
                self._move(chosen, expert, full, taker)
                return True
            self.refused[expert, taker] = True
        return False

    def _gain(self, here: np.ndarray, room: np.ndarray) -> np.ndarray:
        """What the fullest rank gains if ranks with room took its copies of an expert, float [X,n]."""
        cells = self.num_experts * self.num_ranks
        copies = np.bincount(self.expert[here] * self.num_ranks + self.source[here], self.size[here], cells)
        copies = copies.reshape(self.num_experts, self.num_ranks)
        total = copies.sum(axis=1)[:, None]
        gain = self.copy_flops * np.minimum(total, room) + self.row_flops * np.minimum(copies, room)
        gain -= self.weight_flops * ~self.holds.T
        borrows_enough = (self.holds & ~self.at_home).sum(axis=1) >= self.rule.most_replicas
        gain[self.refused | (total == 0) | (room < 1) | (borrows_enough & ~self.holds.T)] = -1
        return gain

    def _choose(self, segments: np.ndarray, full: int, taker: int, wanted: float) -> np.ndarray:
        """About ``wanted`` copies, the taker's own tokens first; at least one segment if any is small enough."""
        segments = segments[self.size[segments] < self.loads[full] - self.loads[taker]]
        segments = segments[np.lexsort((-self.size[segments], self.source[segments] != taker))]
        count = int(np.searchsorted(np.cumsum(self.size[segments]), wanted, side="right"))
        return segments[: max(count, 1)]

    def _move(self, segments: np.ndarray, expert: int, full: int, taker: int) -> None:
        self.made.append((segments, taker))
        self.rank[segments] = taker
        moved = self.size[segments].sum()
        self.loads[full] -= moved
        self.loads[taker] += moved
        source, element, size = self.source[segments], self.element[segments], self.size[segments]
        # an expert is chosen once per element, so no (source, element) occurs twice here
        self.choices[source, element, full] -= 1
        np.subtract.at(self.rows[:, full], source, size * (self.choices[source, element, full] == 0))
        np.add.at(self.rows[:, taker], source, size * (self.choices[source, element, taker] == 0))
        self.choices[source, element, taker] += 1
        self.holds[taker, expert] = True
        if not self.at_home[full, expert]:
            self.holds[full, expert] = bool((self.expert[self.rank == full] == expert).any())
