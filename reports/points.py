"""Records arranged as studies and points: measured beside predicted, with the ratios of each point.

It owns this arrangement and the rules of what may be shown; it does not own the statistics and ratios themselves
(``scaling_studies``) nor drawing (``figures``) or wording (``wording``).

A point lies at ``x``, the value of what its study scales: ranks, or structures per rank of a throughput study.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from janus.errors import UserError
from scaling_studies import ratios
from scaling_studies.records import DONE, MEASURED, OPEN_STATES, PREDICTED, Peak, Record
from scaling_studies.statistics import Interval, Summary, bootstrap_ratio, job_step_s, summarize

PHASE_ORDER = ("data", "FE", "FF", "BF_BE", "sync", "optimizer", "other")
PHASE_NAMES = {
    "data": "data", "FE": "FE, energy forward", "FF": "FF, forces", "BF_BE": "BF + BE, double backward",
    "sync": "gradient sync, waiting", "optimizer": "optimizer", "other": "outside any phase",
}  # fmt: skip
MERGED_PHASES = {"BF": "BF_BE", "BE": "BF_BE", "BF+BE": "BF_BE"}
COMMUNICATION_CAUSES = (  # of a prediction, as perfmodel names them
    "gathers", "scatters", "halos", "exchanges", "group sums", "gradient sums", "small sums",
)  # fmt: skip
WAIT_CAUSE = "wait"
CAUSE_NAMES = {WAIT_CAUSE: "waiting", "outside": "outside phases"}  # others as perfmodel names them
MODE_ORDER = ("weak", "strong", "throughput")
SUPERLINEAR = 1.05  # assumed: an efficiency this far above the ideal needs a reason
FLOPS_ROUNDING = 1e-6
SAME_SCALED_WORK = 0.05  # assumed: relative difference up to which a study held constant what it says


@dataclass(frozen=True, kw_only=True)
class Share:
    """Percent of a peak, or None with the reason it is not given."""

    percent: float | None
    peak: Peak | None
    note: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell: its good measured jobs, every attempt that did not count, and its prediction if there is one.

    scaled: what the study scales ("ranks" or "structures_per_rank"); x, base_x: its value here and at the base point.
    open: attempts that have not ended: neither jobs nor excluded.
    """

    study: str
    mode: str
    scaled: str
    x: float
    base_x: float
    ranks: int
    base_ranks: int
    cell_id: str
    jobs: tuple[Record, ...]
    excluded: tuple[Record, ...]
    open: tuple[Record, ...]
    prediction: Record | None
    repeats_planned: int

    @property
    def any_record(self) -> Record:
        """A record to read the cell's constants from."""
        found = (*self.jobs, self.prediction, *self.excluded, *self.open)
        return next(record for record in found if record is not None)

    @property
    def model(self) -> str:
        return self.any_record.model

    @property
    def is_base(self) -> bool:
        return self.x == self.base_x

    @cached_property
    def oversubscribed(self) -> bool:
        """More ranks than cores, by any attempt that ended."""
        return any(record.oversubscribed for record in (*self.jobs, *self.excluded))

    @cached_property
    def model_flops(self) -> float | None:
        """Model FLOPs of a step, median over the jobs, else of the prediction; None where not recorded."""
        found = [job.model_flops for job in self.jobs if job.model_flops is not None]
        if found:
            return statistics.median(found)
        return self.prediction.model_flops if self.prediction is not None else None

    @cached_property
    def job_values_s(self) -> tuple[float, ...]:
        """Median step time of each job [s]."""
        return tuple(job_step_s(job.step_s) for job in self.jobs)

    @cached_property
    def measured(self) -> Summary | None:
        """Median step time over jobs [s] and its interval; None without a good job."""
        return summarize(self.job_values_s) if self.jobs else None

    @cached_property
    def predicted_s(self) -> float | None:
        """Predicted step time [s], None where the prediction failed or is missing."""
        good = self.prediction is not None and self.prediction.state == DONE
        return job_step_s(self.prediction.step_s) if good and self.prediction is not None else None

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        if self.predicted_s is None or self.measured is None:
            return None
        return ratios.signed_error(self.predicted_s, self.measured.median)

    def share_measured(self) -> Share:
        """Percent of peak of the measured median, from model FLOPs."""
        return _share(self.jobs[0], self.measured.median) if self.jobs and self.measured else _no_share("not measured")

    def share_predicted(self) -> Share:
        if self.prediction is None or self.predicted_s is None:
            return _no_share("not predicted")
        return _share(self.prediction, self.predicted_s)

    def phases_measured(self) -> dict[str, float]:
        """Phase -> seconds of a typical step, median over jobs of the job's median; remainder as "other"."""
        return _phases(self.jobs, self.measured.median) if self.measured else {}

    def phases_predicted(self) -> dict[str, float]:
        if self.prediction is None or self.predicted_s is None:
            return {}
        return _phases([self.prediction], self.predicted_s)

    def causes_predicted(self) -> dict[str, float]:
        """Cause -> predicted seconds of a step over all phases, largest first; empty where not recorded."""
        if self.prediction is None or self.predicted_s is None:
            return {}
        totals: dict[str, float] = {}
        for causes in self.prediction.phase_cause_s.values():
            for cause, value_s in causes.items():
                totals[cause] = totals.get(cause, 0.0) + value_s
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    @property
    def exposed_predicted_s(self) -> float | None:
        """Predicted seconds of a step in communication that nothing hides; None where causes are not recorded."""
        causes = self.causes_predicted()
        return sum(causes.get(cause, 0.0) for cause in COMMUNICATION_CAUSES) if causes else None

    @property
    def wait_predicted_s(self) -> float | None:
        """Predicted seconds a rank waits for others in a step; None where causes are not recorded."""
        causes = self.causes_predicted()
        return causes.get(WAIT_CAUSE, 0.0) if causes else None

    @property
    def bound_s(self) -> float | None:
        """Lower bound of the step time [s]: the prediction without communication and waiting; None if not known."""
        if self.predicted_s is None or self.exposed_predicted_s is None or self.wait_predicted_s is None:
            return None
        return self.predicted_s - self.exposed_predicted_s - self.wait_predicted_s

    @property
    def wait_measured_s(self) -> float | None:
        """Seconds a rank waits for others in a step: mean over ranks, median over jobs; None if not recorded."""
        waits = [statistics.fmean(job.rank_times.wait_s) for job in self.jobs if job.rank_times is not None]
        return statistics.median(waits) if waits else None


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """The points of one study in order of x."""

    name: str
    mode: str
    question: str
    scaled: str
    base_ranks: int
    base_x: float
    points: tuple[Point, ...]

    @cached_property
    def is_measured(self) -> bool:
        """Whether any attempt has ended; False for a study that was only predicted."""
        return any(point.jobs or point.excluded for point in self.points)

    @cached_property
    def base(self) -> Point | None:
        return next((point for point in self.points if point.is_base), None)

    @property
    def efficiency_known(self) -> bool:
        """Whether the base point was measured, so that measured efficiencies exist."""
        return self.base is not None and self.base.measured is not None

    def ideal_s(self, point: Point, base_step_s: float) -> float:
        """Step time of an ideal machine at a point [s], from the base point's."""
        return ratios.ideal_step_s(self.mode, base_step_s, self.base_x, point.x)

    def efficiency_measured(self, point: Point, step_s: float | None = None) -> float | None:
        """Efficiency of a measured step time (default: the point's median) against the base point's median.

        None where the two were timed by different clocks or did not do the work that the study says.
        """
        if self.base is None or self.base.measured is None or point.measured is None or not self._is_comparable(point):
            return None
        own_s = point.measured.median if step_s is None else step_s
        return ratios.efficiency(self.mode, self.base.measured.median, self.base_x, own_s, point.x)

    def _one_clock(self, point: Point) -> bool:
        """Whether the jobs of a point and of the base were timed alike."""
        base_jobs = self.base.jobs if self.base is not None else ()
        return len({job.clock for job in (*base_jobs, *point.jobs)}) < 2

    def work_against_base(self, point: Point) -> float | None:
        """Model FLOPs of a point's step over those that the base point's work asks for here; None where not known.

        1 where the study held constant what it says: work per rank (weak), in all (strong), per structure (throughput).
        """
        own = point.model_flops
        base = self.base.model_flops if self.base is not None else None
        if not own or not base:
            return None
        return own / (base if self.mode == "strong" else base * point.x / self.base_x)

    def same_work(self, point: Point) -> bool:
        """Whether the work of a point is what the base point and the mode of the study ask for, as far as is known."""
        share = self.work_against_base(point)
        return share is None or abs(share - 1) <= SAME_SCALED_WORK

    def _is_comparable(self, point: Point) -> bool:
        return self._one_clock(point) and self.same_work(point)

    @cached_property
    def _efficiency_intervals(self) -> dict[float, Interval | None]:
        base_s = self.base.job_values_s if self.base is not None else ()
        return {
            point.x: bootstrap_ratio(base_s, point.job_values_s, factor=self.ideal_s(point, 1.0))
            for point in self.points
            if not point.is_base and self._is_comparable(point)
        }

    def efficiency_interval(self, point: Point) -> Interval | None:
        """Interval of the measured efficiency, jobs of base and point drawn together; None below six jobs at either.

        None at the base point too, whose efficiency is 1 by definition.
        """
        return self._efficiency_intervals.get(point.x)

    def efficiency_predicted(self, point: Point) -> float | None:
        """The same of predicted times, against the predicted base point."""
        if self.base is None or self.base.predicted_s is None or point.predicted_s is None:
            return None
        if not self.same_work(point):
            return None
        return ratios.efficiency(self.mode, self.base.predicted_s, self.base_x, point.predicted_s, point.x)

    def efficiency_bound(self, point: Point) -> float | None:
        """Upper bound of the predicted efficiency: this point without communication, the base as predicted."""
        if self.base is None or self.base.predicted_s is None or point.bound_s is None or not self.same_work(point):
            return None
        return ratios.efficiency(self.mode, self.base.predicted_s, self.base_x, point.bound_s, point.x)


def arrange(records: Sequence[Record]) -> tuple[StudyView, ...]:
    """Studies in order of first appearance, measured ones first. Raises UserError when points are ambiguous."""
    views = []
    for name in dict.fromkeys(record.study for record in records):
        own = [record for record in records if record.study == name]
        for field in ("mode", "base_ranks", "scaled", "base_x"):
            if len({getattr(record, field) for record in own}) > 1:
                raise UserError(f"records of study {name} disagree on {field}: keep changed studies in another folder")
        points = tuple(sorted(_points(own), key=lambda point: point.x))
        if len({point.x for point in points}) < len(points):
            what = own[0].scaled.replace("_", " ")
            raise UserError(f"study {name} has two cells of the same {what}: keep each study in a folder")
        first = own[0]
        views.append(
            StudyView(
                name=name, mode=first.mode, question=first.question, scaled=first.scaled,
                base_ranks=first.base_ranks, base_x=first.base_x, points=points,
            )
        )  # fmt: skip
    return tuple(sorted(views, key=lambda view: (not view.is_measured, MODE_ORDER.index(view.mode))))


def _points(records: Sequence[Record]) -> list[Point]:
    points = []
    for cell_id in dict.fromkeys(record.cell_id for record in records):
        own = [record for record in records if record.cell_id == cell_id]
        ended = [record for record in own if record.source == MEASURED and record.state not in OPEN_STATES]
        predictions = [record for record in own if record.source == PREDICTED]
        first = own[0]
        points.append(
            Point(
                study=first.study, mode=first.mode, scaled=first.scaled, x=first.x, base_x=first.base_x,
                ranks=first.ranks, base_ranks=first.base_ranks, cell_id=cell_id,
                jobs=tuple(record for record in ended if record.state == DONE),
                excluded=tuple(record for record in ended if record.state != DONE),
                open=tuple(record for record in own if record.state in OPEN_STATES),
                prediction=predictions[-1] if predictions else None,
                repeats_planned=max(record.repeats_planned for record in own),
            )
        )  # fmt: skip
    return points


def peak_objection(record: Record) -> str:
    """Why a record's FLOPs cannot be held against its peak; empty where nothing speaks against it."""
    if record.peak is not None and record.peak.dtype != record.dtype:
        return f"peak in {record.peak.dtype}, run in {record.dtype}"
    model, executed = record.model_flops, record.executed_flops
    if model is not None and executed is not None and model > (1 + FLOPS_ROUNDING) * executed:
        return "more model FLOPs than executed ones"
    return ""


def _no_share(note: str) -> Share:
    return Share(percent=None, peak=None, note=note)


def _share(record: Record, step_s: float) -> Share:
    """Percent of peak, or the reason there is none. A value above 100 % is withheld and says so."""
    if record.peak is None:
        return _no_share("peak not known")
    if record.model_flops is None:
        return _no_share("FLOPs not known")
    if objection := peak_objection(record):
        return _no_share(f"withheld: {objection}")
    try:
        percent = ratios.percent_of_peak(record.model_flops, step_s, record.peak)
    except UserError as error:
        return Share(percent=None, peak=record.peak, note=f"withheld: {error}")
    return Share(percent=percent, peak=record.peak, note="")


def _phases(records: Sequence[Record], step_s: float) -> dict[str, float]:
    """Typical seconds of each phase over several records of one cell; what no phase claims is "other"."""
    per_record = []
    for record in records:
        merged: dict[str, float] = {}
        for phase, values in record.phase_s.items():
            name = MERGED_PHASES.get(phase, phase)
            name = name if name in PHASE_ORDER else "other"
            merged[name] = merged.get(name, 0.0) + statistics.median(values)
        per_record.append(merged)
    if not any(per_record):
        return {}
    names = [name for name in PHASE_ORDER if any(name in entry for entry in per_record)]
    typical = {name: statistics.median(entry.get(name, 0.0) for entry in per_record) for name in names}
    rest = step_s - sum(typical.values())
    if rest > 0:
        typical["other"] = typical.get("other", 0.0) + rest
    return typical


def paired(views: Sequence[StudyView], keep: Callable[[Point], bool] = lambda point: True) -> list[Point]:
    """All points that are both measured and predicted, filtered."""
    return [point for view in views for point in view.points if point.error is not None and keep(point)]
