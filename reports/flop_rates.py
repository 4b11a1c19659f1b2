"""FLOP rates of a point as the paper defines them: "peak" over the training loop, "sustained" over all wall time.

It owns these definitions; it does not own the FLOPs (records) nor the named peak a rate is held against.

- step: model FLOPs of a step over its typical time (median of the steps after warm-up, median over jobs)
- peak: model FLOPs of all steps over the time of the training loop, warm-up included, start-up and last I/O not
- sustained: the same FLOPs over the wall time of the whole process

Source of the last two: arXiv 2604.15821, as summaries of it report them. The costs (seconds per step) are summarised by
their median over jobs and the FLOPs divided by it, so that no rate is averaged (Hoefler and Belli, SC15, rule 3).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from janus.errors import UserError
from reports import samples
from reports.points import Point, peak_objection
from scaling_studies import ratios
from scaling_studies.records import Peak, Record


@dataclass(frozen=True, kw_only=True)
class FlopRates:
    """Rates of one point [FLOP/s], measured or predicted; None where not known, ``note`` then says why.

    step, peak, sustained: of model FLOPs; executed: of the FLOPs with recomputation, over the loop, None where no loop.
    """

    model_flops: float | None
    executed_flops: float | None
    step: float | None
    peak: float | None
    sustained: float | None
    executed: float | None
    ceiling: Peak | None
    note: str = ""

    def percent(self, rate: float | None) -> float | None:
        """A rate as percent of the ceiling; None where either is not known or where it cannot be (above 100 %)."""
        if rate is None or self.ceiling is None:
            return None
        try:
            return ratios.percent_of_peak(rate, 1.0, self.ceiling)
        except UserError:
            return None

    @property
    def is_impossible(self) -> bool:
        """Whether a rate lies above the ceiling: then FLOPs, time or ceiling are wrong and no percentage is given."""
        known = [rate for rate in (self.step, self.peak, self.sustained, self.executed) if rate is not None]
        return self.ceiling is not None and any(self.percent(rate) is None for rate in known)


def num_steps(record: Record) -> int:
    """Steps of the training loop: of a run those recorded, of a prediction those that its loop holds."""
    if record.source == "predicted":
        return round(record.loop_s / record.step_s[0]) if record.loop_s and record.step_s else 0
    return len(record.warm_up_step_s) + len(record.step_s)


def loop_rate(record: Record) -> float | None:
    """Model FLOPs over the training loop of one job [FLOP/s]."""
    return _over(record.model_flops, _per_step(record, record.loop_s))


def wall_rate(record: Record) -> float | None:
    """Model FLOPs over the whole wall time of one job [FLOP/s]."""
    return _over(record.model_flops, _per_step(record, record.wall_s))


def measured_rates(point: Point) -> FlopRates:
    """Rates of the jobs of a point together. Withheld where the jobs did different work or have different peaks."""
    if not point.jobs or point.measured is None:
        return _no_rates("not measured")
    if samples.differs_in_work(point):
        return _no_rates("withheld: jobs of this point did different work")
    rates = _rates(point.jobs, point.measured.median)
    if samples.differs_in_peak(point):
        return replace(rates, ceiling=None, note="withheld: jobs of this point have different peaks")
    return rates


def predicted_rates(point: Point) -> FlopRates:
    if point.prediction is None or point.predicted_s is None:
        return _no_rates("not predicted")
    return _rates([point.prediction], point.predicted_s)


def _rates(records: Sequence[Record], step_s: float) -> FlopRates:
    first = records[0]
    loop_s = _typical([_per_step(record, record.loop_s) for record in records])
    wall_s = _typical([_per_step(record, record.wall_s) for record in records])
    if loop_s is None and first.source == "predicted":
        loop_s = step_s  # a prediction has one step time, so its loop takes as long for each
    rates = FlopRates(
        model_flops=first.model_flops, executed_flops=first.executed_flops, step=_over(first.model_flops, step_s),
        peak=_over(first.model_flops, loop_s), sustained=_over(first.model_flops, wall_s),
        executed=_over(first.executed_flops, loop_s), ceiling=first.peak,
    )  # fmt: skip
    if first.model_flops is None:
        return replace(rates, note="FLOPs not known")
    if first.peak is None:
        return replace(rates, note="peak not known")
    if objection := peak_objection(first):
        return replace(rates, ceiling=None, note=f"withheld: {objection}")
    if rates.is_impossible:
        return replace(rates, note="withheld: a rate above the peak")
    return rates


def _no_rates(note: str) -> FlopRates:
    return FlopRates(
        model_flops=None, executed_flops=None, step=None, peak=None, sustained=None, executed=None, ceiling=None,
        note=note,
    )  # fmt: skip


def _per_step(record: Record, total_s: float | None) -> float | None:
    """Seconds of a span per step of the training loop."""
    steps = num_steps(record)
    return total_s / steps if total_s and steps else None


def _typical(costs: Sequence[float | None]) -> float | None:
    """Median of the costs of the jobs, None where one does not know it."""
    known = [cost for cost in costs if cost is not None]
    return statistics.median(known) if known and len(known) == len(costs) else None


def _over(flops: float | None, cost_s: float | None) -> float | None:
    return flops / cost_s if flops is not None and cost_s else None
