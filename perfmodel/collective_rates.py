"""What a collective of one axis costs on a calibrated host: measured per transport, collective and group.

It owns the numbers of a machine file's ``[collectives.TRANSPORT.COLLECTIVE.ranks_N_groups_G]`` tables and how they are
read between and beyond the sizes measured. It does not own measuring (``janus/calibrate_collectives.py``), fitting
(``calibration_collectives``) nor fabrics known from publications (``network``).

Sizes are those of ``perfmodel/network/schedule.py``: the buffer of one rank (all-reduce; input of a reduce-scatter),
the gathered result (all-gather), all that one rank sends, its own part included (all-to-all).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.quantities import Quantities

TRANSPORTS = ("gloo", "mpi", "nccl")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
KEYS = ("ranks", "groups", "latency_s", "bytes_per_s", "knots_bytes", "knots_s")


@dataclass(frozen=True, kw_only=True)
class CollectiveRates:
    """One collective over groups of ``ranks`` ranks, ``groups`` of them at once: ``ranks_on_host`` in all.

    seconds = latency_s + m / bytes_per_s of size m; where one line misses what was measured by more than a tenth,
    knots_bytes and knots_s [K] (ascending) hold the measured times and the line is only their summary.
    quality: median relative residual of the line or, with knots, the spread of the repeats.
    """

    transport: str
    collective: str
    ranks: int
    groups: int
    latency_s: float
    bytes_per_s: float
    knots_bytes: tuple[float, ...] = ()
    knots_s: tuple[float, ...] = ()
    quality: float | None = None

    @property
    def ranks_on_host(self) -> int:
        return self.ranks * self.groups

    @property
    def label(self) -> str:
        return f"ranks_{self.ranks}_groups_{self.groups}"

    def seconds(self, sizes_bytes: ArrayLike) -> NDArray[np.float64]:
        """Seconds of one collective of each size m: straight between knots, level below the first, the last piece's
        slope beyond the last.
        """
        sizes = np.asarray(sizes_bytes, dtype=np.float64)
        if not self.knots_bytes:
            return self.latency_s + sizes / self.bytes_per_s
        known, known_s = np.asarray(self.knots_bytes), np.asarray(self.knots_s)
        slope = (known_s[-1] - known_s[-2]) / (known[-1] - known[-2])
        beyond = np.maximum(sizes - known[-1], 0.0)
        return np.asarray(np.interp(sizes, known, known_s) + slope * beyond, dtype=np.float64)


def find_collective(
    rates: tuple[CollectiveRates, ...], transport: str, collective: str, ranks: int, groups: int = 1
) -> CollectiveRates | None:
    """The measured group that stands for one of ``ranks`` ranks, ``groups`` at once; None where nothing is near.

    As many ranks in the group where that was measured (the nearest number of groups at once, fuller before emptier),
    else the next larger group, else the largest.
    """
    same = [entry for entry in rates if (entry.transport, entry.collective) == (transport, collective)]
    if not same or ranks < 2:
        return None
    sizes = sorted({entry.ranks for entry in same})
    size = next((number for number in sizes if number >= ranks), sizes[-1])
    return min(
        (entry for entry in same if entry.ranks == size), key=lambda entry: (abs(entry.groups - groups), -entry.groups)
    )


def read_collectives(reader: Quantities) -> tuple[CollectiveRates, ...]:
    """Every [collectives.*] table of a machine file; what is wrong goes to the reader's problems."""
    reader.only("collectives", TRANSPORTS)
    found = []
    for transport in reader.table("collectives"):
        reader.only(f"collectives.{transport}", COLLECTIVES)
        for collective in reader.table(f"collectives.{transport}"):
            for label in reader.table(f"collectives.{transport}.{collective}"):
                found.append(
                    _read_group(reader, transport, collective, f"collectives.{transport}.{collective}.{label}")
                )
    return tuple(found)


def _read_group(reader: Quantities, transport: str, collective: str, base: str) -> CollectiveRates:
    reader.only(base, KEYS)
    knots = [_read_list(reader, f"{base}.{name}") for name in ("knots_bytes", "knots_s")]
    if len(knots[0]) != len(knots[1]) or len(knots[0]) == 1:
        reader.problems.append(
            f"{base} has {len(knots[0])} knots_bytes and {len(knots[1])} knots_s: give as many, 2 up"
        )
        knots = [(), ()]
    if any(after <= before for before, after in zip(knots[0], knots[0][1:], strict=False)):
        reader.problems.append(f"{base}.knots_bytes is {list(knots[0])}: it must ascend")
    latency_s = reader.required(f"{base}.latency_s", zero=True)
    return CollectiveRates(
        transport=transport, collective=collective, ranks=reader.whole(f"{base}.ranks"),
        groups=reader.whole(f"{base}.groups"), latency_s=latency_s, bytes_per_s=reader.required(f"{base}.bytes_per_s"),
        knots_bytes=knots[0], knots_s=knots[1], quality=reader.quality.get(f"{base}.latency_s"),
    )  # fmt: skip


def _read_list(reader: Quantities, path: str) -> tuple[float, ...]:
    value = reader.free(path)
    if value is None:
        return ()
    parts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(part, str | bool) for part in parts):
        reader.problems.append(f"{path} has the value {value!r}: it must be a list of numbers")
        return ()
    return tuple(float(part) for part in parts)
