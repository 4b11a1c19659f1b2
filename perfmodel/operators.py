"""What a model does beside matrix products in fused operators, by kind and phase.

It owns how many elements (rows x channels) and passes each phase touches; the seconds per element come from a
machine's rates, everything else from ``plain_arithmetic``. The kinds are those of janus/kernels/operators.py. Phase by
phase an operator runs its forward (FE), its backward (FF), its double backward (BF) and its backward again (BE).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from perfmodel.products import PHASES, Counts, Product, RowKind

Kind = Literal["gather", "silu", "gated_norm", "attention_sums", "weighted_sum"]
FUSED_KINDS: tuple[Kind, ...] = ("gather", "silu", "gated_norm", "attention_sums", "weighted_sum")
PASS_NAMES = (
    "forward",
    "backward",
    "double",
)  # what calibration measures: FE is forward, FF and BE backward, BF double
PASS_OF_PHASE = {"FE": "forward", "FF": "backward", "BF": "double", "BE": "backward"}

# Arrays of rows x channels read or written by one operator: the lower bound of its traffic, used for machines whose
# operators were not timed. Counted from janus/kernels/fused.py.
ARRAYS: dict[str, dict[str, int]] = {
    "gather": {"forward": 3, "backward": 3, "double": 3},
    "silu": {"forward": 2, "backward": 3, "double": 5},
    "gated_norm": {"forward": 3, "backward": 5, "double": 8},
    "attention_sums": {"forward": 4, "backward": 6, "double": 10},
    "weighted_sum": {"forward": 3, "backward": 6, "double": 9},
}


_ONE = dict.fromkeys(PHASES, 1)
LOOPS = {"weighted_sum": {"FE": 1, "FF": 2, "BF": 4, "BE": 2}}  # compiled loops of one operator


@dataclass(frozen=True, kw_only=True)
class Operator:
    """``copies`` equal operators on [rows, channels]. top_k: experts per token, where rows are copies of tokens."""

    part: str
    kind: Kind
    rows: RowKind
    channels: int
    copies: float = 1
    reaches_loss: bool = True
    top_k: float = 1

    def elements(self, counts: Counts) -> float:
        """Rows x channels x copies."""
        return counts.rows(self.rows, self.top_k) * self.channels * self.copies

    def runs_in(self, phase: str) -> bool:
        """Dead results have a forward only."""
        return self.reaches_loss or phase == "FE"


@dataclass
class Elements:
    """Per phase: elements by fused kind and pass, and loops run."""

    fused: dict[str, dict[str, dict[str, float]]]
    launches: dict[str, float]


def no_elements() -> dict[str, dict[str, float]]:
    """Zero elements by kind and pass."""
    return {kind: dict.fromkeys(PASS_NAMES, 0.0) for kind in FUSED_KINDS}


def phase_elements(operators: Iterable[Operator], products: Iterable[Product], counts: Counts) -> Elements:
    """Sum the fused operators of a model over the phases FE, FF, BF, BE.

    A product fused with the SiLU before it keeps only the SiLU's input, and makes the SiLU again for the gradient of
    its weights, in BE.
    """
    result = Elements(fused={phase: no_elements() for phase in PHASES}, launches=dict.fromkeys(PHASES, 0.0))
    for operator in operators:
        elements = operator.elements(counts)
        for phase in PHASES:
            if operator.runs_in(phase):
                result.fused[phase][operator.kind][PASS_OF_PHASE[phase]] += elements
                result.launches[phase] += operator.copies * LOOPS.get(operator.kind, _ONE)[phase]
    for product in products:
        if product.after_silu and product.reaches_loss:
            result.fused["BE"]["silu"]["forward"] += product.num_rows(counts) * product.copies * product.inputs
            result.launches["BE"] += product.copies
    return result
