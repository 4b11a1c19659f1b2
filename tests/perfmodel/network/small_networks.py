"""Networks small enough to solve by hand, for tests: one switch, and links listed one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.routes import Routes
from perfmodel.network.schedule import Round, Schedule


class OneSwitch:
    """n ranks, each with one link into a switch and one out of it."""

    def __init__(self, num_ranks: int, link_bytes_per_s: float = 1e9, latency_s: float = 1e-6) -> None:
        self.num_ranks = num_ranks
        self.capacity_bytes_per_s = np.full(2 * num_ranks, float(link_bytes_per_s))
        self.latency_s = latency_s

    def routes(self, source_ranks: NDArray[np.int64], target_ranks: NDArray[np.int64]) -> Routes:
        paths = [[int(s), self.num_ranks + int(t)] if s != t else []
                 for s, t in zip(source_ranks, target_ranks, strict=True)]  # fmt: skip
        return routes_over(paths, latency_s=self.latency_s)


class Racks(OneSwitch):
    """Racks of equally many ranks under one top switch; a rack's uplink carries ``taper`` of its ranks' links."""

    def __init__(self, num_racks: int, ranks_per_rack: int, taper: float, link_bytes_per_s: float = 1e9) -> None:
        super().__init__(num_racks * ranks_per_rack, link_bytes_per_s)
        self.ranks_per_rack, self.num_racks = ranks_per_rack, num_racks
        uplink = np.full(2 * num_racks, link_bytes_per_s * ranks_per_rack * taper)
        self.capacity_bytes_per_s = np.concatenate([self.capacity_bytes_per_s, uplink])

    def routes(self, source_ranks: NDArray[np.int64], target_ranks: NDArray[np.int64]) -> Routes:
        paths = []
        for source, target in zip(source_ranks.tolist(), target_ranks.tolist(), strict=True):
            up, down = source // self.ranks_per_rack, target // self.ranks_per_rack
            over_top = [2 * self.num_ranks + up, 2 * self.num_ranks + self.num_racks + down] if up != down else []
            paths.append([source, *over_top, self.num_ranks + target] if source != target else [])
        return routes_over(paths, latency_s=self.latency_s)


def routes_over(
    paths: Sequence[Sequence[int]], shares: Sequence[Sequence[float]] | None = None, latency_s: float = 0.0
) -> Routes:
    """Routes along listed links."""
    lengths = [len(path) for path in paths]
    flat = [link for path in paths for link in path]
    weights = [share for row in shares for share in row] if shares is not None else [1.0] * len(flat)
    return Routes(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), links=np.array(flat, dtype=np.int64),
        shares=np.array(weights, dtype=np.float64), latency_s=np.full(len(paths), latency_s),
    )  # fmt: skip


def one_round(num_ranks: int, pairs: Sequence[tuple[int, int]], fractions: Sequence[float] | None = None) -> Schedule:
    """All these messages posted at once."""
    entry = Round(
        source=np.array([pair[0] for pair in pairs], dtype=np.int64),
        target=np.array([pair[1] for pair in pairs], dtype=np.int64),
        fraction=np.array(fractions if fractions is not None else [1.0] * len(pairs)),
        reduced=np.zeros(len(pairs)),
    )
    return schedule_of(num_ranks, [entry])


def schedule_of(num_ranks: int, rounds: Sequence[Round]) -> Schedule:
    """A schedule of given rounds."""
    return Schedule(collective="all_to_all", algorithm="test", num_ranks=num_ranks,
                    num_rounds=sum(entry.repeat for entry in rounds), make_rounds=lambda: iter(rounds))  # fmt: skip


def shifts(num_ranks: int, fraction: float, numbers: Sequence[int], reduced: float = 0.0) -> list[Round]:
    """Round k: every rank sends to the rank k further."""
    ranks = np.arange(num_ranks, dtype=np.int64)
    return [
        Round(source=ranks, target=(ranks + shift) % num_ranks, fraction=np.full(num_ranks, fraction),
              reduced=np.full(num_ranks, reduced))
        for shift in numbers
    ]  # fmt: skip
