"""Figures that others published, to stand beside predictions and marked as published. It owns no result of ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """Published scaling results of one model on one full machine. Efficiencies and shares of peak in percent.

    flops_per_s, percent_of_peak: over the training loop ("peak"); sustained: over the whole wall time.
    """

    machine: str
    model: str
    flops_per_s: float
    percent_of_peak: float
    sustained_flops_per_s: float
    sustained_percent_of_peak: float
    weak_efficiency_percent: float
    strong_efficiency_percent: float
    num_devices: int
    device: str
    source: str

    def efficiency_percent(self, mode: str) -> float:
        """Efficiency of weak or strong scaling."""
        return self.weak_efficiency_percent if mode == "weak" else self.strong_efficiency_percent


_SOURCE = "arXiv 2604.15821 (read in summaries): FLOPs / training-loop time, share of FP32 peak, scaling efficiencies"
PUBLISHED_RUNS = (
    PublishedRun(
        machine="lineshine",
        model="matris-moe-l",
        flops_per_s=1.2e18,
        percent_of_peak=24.41,
        sustained_flops_per_s=1.033e18,
        sustained_percent_of_peak=21.02,
        weak_efficiency_percent=90.3,
        strong_efficiency_percent=50.60,
        num_devices=40_960,  # 20,480 nodes of 2 CPUs
        device="LX2 CPU",
        source=_SOURCE,
    ),
    PublishedRun(
        machine="cnis",
        model="matris-moe-l",
        flops_per_s=1.0e18,
        percent_of_peak=35.52,
        sustained_flops_per_s=762.3e15,
        sustained_percent_of_peak=25.84,
        weak_efficiency_percent=93.78,
        strong_efficiency_percent=53.93,
        num_devices=45_056,  # 5,632 nodes of 8
        device="GPGPU",
        source=_SOURCE,
    ),
)


def published_run(machine: str, model: str) -> PublishedRun | None:
    """What was published for this model on this machine, or None."""
    return next((run for run in PUBLISHED_RUNS if (run.machine, run.model) == (machine, model)), None)
