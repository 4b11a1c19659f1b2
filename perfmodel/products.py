"""Matrix products of a model and what each costs in the four phases of a second-order step.

It owns the autodiff rules that turn one product of the energy forward into the products of the force pass and of
the double backward, and the ``Counts`` of a batch. It does not own which products a model has (``workload_*``).

The rules, for y [R, m] = x [R, n] W [n, m] (2 R n m FLOPs = "one forward"), written u for the gradient of the loss
with respect to the force pass's result:

    phase  product                       needed when
    FE     y = x W                       always
    FF     gx = gy W^T                   x depends on positions
    BF     d/d gy: u W                   FF ran, and gy depends on parameters or positions
           d/d W:  u^T gy                FF ran
    BE     d/d x:  gy' W^T               x depends on parameters or positions
           d/d W:  x^T gy'               y reaches the loss

so a product deep inside the model costs 6 forwards per step: 1 (FE) + 1 (FF) + 2 (BF) + 2 (BE). A product of two
activations (attention) costs 1 + 2 + 4 + 2 = 9 by the same reasoning.
Source: reverse-mode differentiation of a product; held to torch's FLOP counter by tests/perfmodel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

PHASES = ("FE", "FF", "BF", "BE")

RowKind = Literal[
    "once", "structures", "atoms", "neighbours", "edges", "edge_pairs", "bonds", "bond_pairs", "angles",
    "ghosts", "shared_pairs", "shared_bonded_pairs", "message_copies", "feature_copies",
]  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """What one rank has of one batch: structures, atoms, directed edges, directed bonds (short edges) and angles.

    Of a part of a divided batch (docs/parallel.md) atoms, edges, bonds and angles are those whose centre is owned here;
    ghosts: neighbours owned elsewhere; shared_pairs, shared_bonded_pairs: pairs with one owner here and one elsewhere,
    which have one directed edge here and one there.

    Of a model with experts: message_copies, feature_copies: rows of the routed experts' products here, of edges and of
    atoms; None: k per edge and per atom, as where experts are not spread. message_experts, feature_experts: experts
    with any row here, mean over blocks; None: all of them.
    """

    structures: float
    atoms: float
    edges: float
    bonds: float
    angles: float
    ghosts: float = 0.0
    shared_pairs: float = 0.0
    shared_bonded_pairs: float = 0.0
    message_copies: float | None = None
    feature_copies: float | None = None
    message_experts: float | None = None
    feature_experts: float | None = None

    def __add__(self, other: Counts) -> Counts:
        """Sums; what is None (the default) on one side stays None unless that side is empty."""
        names = [field.name for field in fields(self)]
        empty = not self.atoms, not other.atoms
        sums: dict[str, Any] = {name: _sum(getattr(self, name), getattr(other, name), *empty) for name in names}
        return replace(self, **sums)

    def scaled(self, factor: float) -> Counts:
        """Every count multiplied by a factor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value * factor for name, value in values.items() if value is not None})

    @property
    def work(self) -> float:
        """Directed edges + angles: the measure by which batches are packed."""
        return self.edges + self.angles

    def rows(self, kind: RowKind, top_k: float = 1) -> float:
        """Rows of a product or an operator.

        A count; 1 for "once"; atoms + ghosts for "neighbours". Features kept once per undirected pair have
        (edges + shared_pairs) / 2 rows: two edges per pair here, but one of those shared. top_k: experts per token.
        """
        if kind == "once":
            return 1.0
        if kind == "neighbours":
            return self.atoms + self.ghosts
        if kind == "edge_pairs":
            return (self.edges + self.shared_pairs) / 2
        if kind == "bond_pairs":
            return (self.bonds + self.shared_bonded_pairs) / 2
        if kind == "message_copies":
            return self.edges * top_k if self.message_copies is None else self.message_copies
        if kind == "feature_copies":
            return self.atoms * top_k if self.feature_copies is None else self.feature_copies
        return getattr(self, kind)

    def experts_called(self, kind: RowKind, num_experts: float) -> float:
        """Experts that have rows of this kind here."""
        called = self.message_experts if kind == "message_copies" else self.feature_experts
        return num_experts if called is None else called


def _sum(one: float | None, other: float | None, one_is_empty: bool, other_is_empty: bool) -> float | None:
    if one is None or other is None:
        return other if one is None and one_is_empty else one if other is None and other_is_empty else None
    return one + other


def total_counts(parts: Iterable[Counts]) -> Counts:
    """The sum of several batches' counts (all zero for none)."""
    total = Counts(0, 0, 0, 0, 0)
    for part in parts:
        total = total + part
    return total


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product of the energy forward: [rows, inputs] x [inputs, outputs], ``copies`` times.

    part: where it belongs ("block 0 atom attention"); copies: equal products (rows "once": rows of one).
    moves: the input depends on positions, so the force pass has a product too.
    learned: the input depends on parameters or positions, so the backward computes its gradient.
    cotangent_learned: the force pass's incoming gradient depends on parameters or positions.
    reaches_loss: False for dead results, which cost their forward only.
    after_silu: fused with the SiLU before it, which keeps only its own input: the double backward makes the force
    pass's product again (executed, not model FLOPs).
    leaves_block: the result leaves its block linearly, so that block's force pass does not depend on it (this saves
    something under recompute only).
    activations: the second factor is an activation too, as in attention.
    top_k, num_experts: of a grouped product of routed experts (rows "message_copies" or "feature_copies"): experts per
    token, and how many matrices there are, each of which that has rows is a kernel call; 0: not grouped.
    """

    part: str
    rows: RowKind
    inputs: int
    outputs: int
    copies: float = 1
    top_k: float = 1
    num_experts: int = 0
    moves: bool = True
    learned: bool = True
    cotangent_learned: bool = True
    reaches_loss: bool = True
    after_silu: bool = False
    leaves_block: bool = False
    activations: bool = False

    @property
    def is_grouped(self) -> bool:
        """Whether it is a grouped product, of rows sorted by expert."""
        return self.num_experts > 0

    def num_rows(self, counts: Counts) -> float:
        """Rows of one copy."""
        return counts.rows(self.rows, self.top_k)

    def launches(self, counts: Counts) -> float:
        """Kernel calls of one forward."""
        if self.is_grouped:
            return self.copies * counts.experts_called(self.rows, self.num_experts)
        return 1 if self.rows == "once" else self.copies

    def forward_flops(self, counts: Counts) -> float:
        """FLOPs of the product in the energy forward (a multiply and an add are two)."""
        return 2.0 * self.num_rows(counts) * self.copies * self.inputs * self.outputs

    def multiples(self, *, executed: bool = False) -> dict[str, int]:
        """How many forward-equivalents each phase costs; ``executed`` counts what fused operators make again."""
        if not self.reaches_loss:
            return {"FE": 1, "FF": 0, "BF": 0, "BE": 0}
        if self.activations:
            return {"FE": 1, "FF": 2, "BF": 4, "BE": 2} if self.moves else {"FE": 1, "FF": 0, "BF": 0, "BE": 2}
        force = 1 if self.moves else 0
        return {
            "FE": 1,
            "FF": force,
            "BF": force * (1 + self.cotangent_learned + (executed and self.after_silu)),
            "BE": 1 + self.learned,
        }


def phase_flops(products: Iterable[Product], counts: Counts, *, executed: bool = False) -> dict[str, float]:
    """FLOPs per phase summed over the products: model FLOPs, or those executed by the fused operators."""
    flops = dict.fromkeys(PHASES, 0.0)
    for product in products:
        forward = product.forward_flops(counts)
        for phase, multiple in product.multiples(executed=executed).items():
            flops[phase] += multiple * forward
    return flops


def phase_product_arrays(products: Iterable[Product], counts: Counts) -> tuple[dict[str, float], dict[str, float]]:
    """Per phase: elements of the three matrices that the products read and write, and the number of products."""
    arrays, launches = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
    for product in products:
        calls = product.launches(counts)
        touched = product.copies * product.num_rows(counts) * (product.inputs + product.outputs)
        touched += calls * product.inputs * product.outputs
        for phase, multiple in product.multiples(executed=True).items():
            arrays[phase] += multiple * touched
            launches[phase] += multiple * calls
    return arrays, launches
