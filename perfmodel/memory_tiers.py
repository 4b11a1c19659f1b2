"""Which part of a rank's memory lies where on a machine with two memories, and what that moves in every step.

It owns the order in which parts go to the second memory and how often each is read and written in a step; not how much
there is of each (``memory``) and not what the moves cost (a machine's ``second_memory_bytes_per_s``). On a machine with
one memory everything is in the first. Assumed: nobody has published how the paper's system divides its memories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perfmodel.machine import Machine

if TYPE_CHECKING:
    from perfmodel.memory import MemoryPrediction

# Parts in the order in which they leave, and how often a step moves each of their bytes between the memories.
# moments, average: read and written once, in the optimizer. gradients of what is kept: written after BE, read by the
# optimizer. parameters: shards are read for every gathering (FE FF BF BE) and by the optimizer, and written once.
# activations: written in FE and FF, read in BF and BE.
MOVES: dict[str, float] = {
    "moments": 2.0, "average": 2.0, "batches": 1.0, "gradients": 2.0, "parameters": 6.0, "activations": 2.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """Bytes of one rank in both memories. second: by cause, what lies in the second; fits: whether both hold theirs.

    moved_bytes_per_step: between the memories, in both directions together; it can overlap with compute.
    """

    first_bytes: float
    second_bytes: float
    moved_bytes_per_step: float
    fits: bool
    second: dict[str, float] = field(default_factory=dict)


def used_bytes(prediction: MemoryPrediction, machine: Machine | None) -> float:
    """What counts against a limit: resident bytes on a calibrated host, else (or without a machine) allocated ones."""
    resident = machine is not None and machine.is_calibrated_host
    return prediction.resident_bytes if resident else prediction.total_bytes


def place_in_tiers(
    prediction: MemoryPrediction, machine: Machine, *, ranks_per_node: int | None = None, reserve: float = 0.0
) -> Tiers:
    """Fill the first memory with what is used most; what finds no room goes to the second, whole parts or pieces.

    ranks_per_node: that share a node's memories; None: one per device. reserve: fraction of the first memory that is
    left free. The process itself, gathered blocks, buffers and work tensors stay in the first memory. Where there is
    no second one, ``fits`` tells whether everything fits in the first (``used_bytes``).
    """
    ranks = ranks_per_node or machine.devices_per_node
    room = machine.memory_bytes_per_node / ranks * (1 - reserve)
    second_room = machine.second_memory_bytes_per_node / ranks
    total = used_bytes(prediction, machine)
    second: dict[str, float] = {}
    for cause, part in ((name, prediction.cause_bytes[name]) for name in MOVES) if second_room else ():
        over = total - sum(second.values()) - room
        if over > 0 and part > 0:
            second[cause] = min(part, over)
    second_bytes = sum(second.values())
    return Tiers(
        first_bytes=total - second_bytes, second_bytes=second_bytes, second=second,
        moved_bytes_per_step=sum(MOVES[cause] * size for cause, size in second.items()),
        fits=total - second_bytes <= room and second_bytes <= second_room,
    )  # fmt: skip
