"""How noisy a host was while it was calibrated, and which constants that leaves in doubt.

It owns the limits and what depends on which timings; it does not watch the host (``janus/cli/calibrate.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfmodel.calibration_fits import spread

# Half the interquartile range of repeats over their median. Assumed: what doubles the error of a median of few repeats
LIMITS = {"kernels": 0.08, "collectives": 0.35, "loading": 0.1, "steps": 0.06}
BUSY_SHARE = 0.05  # of the cores' time that other processes took: assumed, above it constants moved by their own error
CONSTANTS = {
    "kernels": "matmul_*, grouped_*, fused_*",
    "collectives": "collectives.*, all_reduce_*, overlap_efficiency",
    "loading": "data_*",
    "steps": "families.*, op_s, step_*, batch_s, plain_bytes_per_s, fresh_bytes_per_s, optimizer_*",
}
_KEYS = {"kernels": ("matmul", "grouped", "fused"), "collectives": ("collectives",), "loading": ("data",)}


@dataclass(frozen=True, kw_only=True)
class Noise:
    """load_before: processes that wanted to run in the minute before (-1: not known); other_share: of the cores' time
    while measuring, what other processes took (None: not known).
    """

    load_before: float
    other_share: float | None = None

    def provenance(self) -> dict[str, float]:
        """Entries of the machine file."""
        known = {"load_before": round(self.load_before, 2)}
        return known if self.other_share is None else known | {"other_work_share": round(self.other_share, 4)}

    def sentences(self, cores: int) -> list[str]:
        """Warnings, empty on a quiet host."""
        found = []
        if self.load_before > max(0.5, 0.25 * cores):
            found.append(f"the load of the host was {self.load_before:.1f} before the first measurement")
        if self.other_share is not None and self.other_share > BUSY_SHARE:
            found.append(f"other processes took {100 * self.other_share:.0f} % of the cores' time")
        return found


def stage_spreads(raws: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median spread of the repeats by what they measure, over all fillings whose ranks have a core each: where ranks
    share cores, their turns are spread by themselves.
    """
    chosen = [raw for raw in raws if not raw["crowded"]]
    found = {}
    for name, keys in _KEYS.items():
        samples = [sample for raw in chosen for key in keys for sample in raw[key]]
        if samples:
            found[name] = float(np.median([spread(sample["seconds"]) for sample in samples]))
    steps = [spread(step["step_seconds"]) for raw in chosen for step in raw["steps"]]
    return found | {"steps": float(np.median(steps))}


def distrusted(spreads: Mapping[str, float], noise: Noise | None) -> list[str]:
    """Constants in doubt, by name: those whose repeats lie too far apart; all that were fitted to steps where other
    processes took much of the cores' time.
    """
    found = [name for name, value in spreads.items() if value > LIMITS[name]]
    if noise is not None and noise.other_share is not None and noise.other_share > BUSY_SHARE and "steps" not in found:
        found.append("steps")
    return [CONSTANTS[name] for name in found]
