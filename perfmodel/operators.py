"""What a model does beside matrix products: fused operators by kind, and plain elementwise traffic, per phase.

It owns how many elements (rows x channels) and passes each phase touches; the seconds per element come from a
machine's rates. The kinds are those of janus/kernels/operators.py. Phase by phase an operator runs its forward (FE),
its backward (FF), its double backward (BF) and its backward again (BE).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from perfmodel.products import PHASES, Counts, RowKind

Kind = Literal["gather", "silu", "gated_norm", "attention_sums", "weighted_sum", "plain"]
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


@dataclass(frozen=True, kw_only=True)
class Operator:
    """``copies`` equal operators on [rows, channels]. kind "plain": unfused arithmetic, with arrays per phase.

    arrays: only for "plain": arrays of rows x channels that each pass reads or writes.
    top_k: experts per token, where rows are copies of tokens.
    """

    part: str
    kind: Kind
    rows: RowKind
    channels: int
    copies: float = 1
    reaches_loss: bool = True
    arrays: tuple[float, float, float] = (0.0, 0.0, 0.0)
    top_k: float = 1

    def elements(self, counts: Counts) -> float:
        """Rows x channels x copies."""
        return counts.rows(self.rows, self.top_k) * self.channels * self.copies

    def runs_in(self, phase: str) -> bool:
        """Dead results have a forward only."""
        return self.reaches_loss or phase == "FE"


@dataclass
class Elements:
    """Per phase: elements by fused kind and pass, bytes of plain traffic, and kernel launches."""

    fused: dict[str, dict[str, float]]
    plain_arrays: dict[str, float]
    launches: dict[str, float]


def phase_elements(operators: Iterable[Operator], counts: Counts) -> Elements:
    """Sum the operators of a model over the phases FE, FF, BF, BE. plain_arrays are in elements, not bytes."""
    result = Elements(
        fused={phase: dict.fromkeys(FUSED_KINDS, 0.0) for phase in PHASES},
        plain_arrays=dict.fromkeys(PHASES, 0.0),
        launches=dict.fromkeys(PHASES, 0.0),
    )
    for operator in operators:
        elements = operator.elements(counts)
        for phase in PHASES:
            if not operator.runs_in(phase):
                continue
            if operator.kind == "plain":
                arrays = operator.arrays[PASS_NAMES.index(PASS_OF_PHASE[phase])]
                result.plain_arrays[phase] += elements * arrays
                result.launches[phase] += operator.copies * arrays / 3
            else:
                result.fused[phase][operator.kind] += elements
                result.launches[phase] += operator.copies
    return result


def residual(part: str, rows: RowKind, channels: int) -> Operator:
    """y = update + w x: a product and a sum; the gradient is summed where x is used again."""
    return Operator(part=part, kind="plain", rows=rows, channels=channels, arrays=(5, 6, 9))


def fan_out(part: str, rows: RowKind, channels: int, uses: int) -> Operator:
    """A tensor used several times: its gradients are added up, in the backward and in the double backward."""
    return Operator(part=part, kind="plain", rows=rows, channels=channels, copies=uses - 1, arrays=(0, 3, 3))
