"""Figures that others published, to stand beside predictions and marked as published. It owns no result of ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """Published weak-scaling result of one model on one full machine. Efficiencies and peak share in percent."""

    machine: str
    model: str
    flops_per_s: float
    percent_of_peak: float
    weak_efficiency_percent: float
    num_devices: int
    device: str
    source: str


PUBLISHED_RUNS = (
    PublishedRun(
        machine="lineshine",
        model="matris-moe-l",
        flops_per_s=1.2e18,
        percent_of_peak=24.41,
        weak_efficiency_percent=90.3,
        num_devices=40_960,  # 20,480 nodes of 2 CPUs
        device="LX2 CPU",
        source="arXiv 2604.15821 (read in summaries): FLOPs / training-loop time, share of FP32 peak, weak efficiency",
    ),
)


def published_run(machine: str, model: str) -> PublishedRun | None:
    """What was published for this model on this machine, or None."""
    return next((run for run in PUBLISHED_RUNS if (run.machine, run.model) == (machine, model)), None)
