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
from dataclasses import dataclass, fields
from typing import Literal

PHASES = ("FE", "FF", "BF", "BE")

RowKind = Literal["once", "structures", "atoms", "edges", "edge_pairs", "bonds", "bond_pairs", "angles"]


@dataclass(frozen=True)
class Counts:
    """What one batch holds: structures, atoms, directed edges, directed bonds (short edges) and angles."""

    structures: float
    atoms: float
    edges: float
    bonds: float
    angles: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def scaled(self, factor: float) -> Counts:
        """Every count multiplied by a factor."""
        return Counts(*(getattr(self, field.name) * factor for field in fields(self)))

    @property
    def work(self) -> float:
        """Directed edges + angles: the measure by which batches are packed."""
        return self.edges + self.angles

    def rows(self, kind: RowKind) -> float:
        """Rows of a product: a count, half of one for features kept once per undirected pair, 1 for "once"."""
        if kind == "once":
            return 1.0
        if kind == "edge_pairs":
            return self.edges / 2
        if kind == "bond_pairs":
            return self.bonds / 2
        return getattr(self, kind)


def total_counts(parts: Iterable[Counts]) -> Counts:
    """The sum of several batches' counts (all zero for none)."""
    total = Counts(0, 0, 0, 0, 0)
    for part in parts:
        total = total + part
    return total


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product of the energy forward: [rows, inputs] x [inputs, outputs], ``copies`` times.

    part: where it belongs ("block 0 atom attention"); copies: equal products, or tokens per row (top-k experts).
    moves: the input depends on positions, so the force pass has a product too.
    learned: the input depends on parameters or positions, so the backward computes its gradient.
    cotangent_learned: the force pass's incoming gradient depends on parameters or positions.
    reaches_loss: False for dead results, which cost their forward only.
    after_silu: fused with the SiLU before it, which keeps only its own input: the double backward makes the force
    pass's product again (executed, not model FLOPs).
    leaves_block: the result leaves its block linearly, so that block's force pass does not depend on it (this saves
    something under recompute only).
    activations: the second factor is an activation too, as in attention.
    weights: distinct weight matrices, each its own kernel call (0: one per copy; experts: all of them).
    """

    part: str
    rows: RowKind
    inputs: int
    outputs: int
    copies: float = 1
    moves: bool = True
    learned: bool = True
    cotangent_learned: bool = True
    reaches_loss: bool = True
    after_silu: bool = False
    leaves_block: bool = False
    activations: bool = False
    weights: float = 0

    @property
    def launches(self) -> float:
        """Kernel calls of one forward."""
        return self.weights or self.copies

    def forward_flops(self, counts: Counts) -> float:
        """FLOPs of the product in the energy forward (a multiply and an add are two)."""
        return 2.0 * counts.rows(self.rows) * self.copies * self.inputs * self.outputs

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
        rows = counts.rows(product.rows)
        touched = product.copies * rows * (product.inputs + product.outputs)
        touched += product.launches * product.inputs * product.outputs
        for phase, multiple in product.multiples(executed=True).items():
            arrays[phase] += multiple * touched
            launches[phase] += multiple * product.launches
    return arrays, launches
