"""One training run as the page shows it: what it was, where its errors ended, its loss curve. It runs nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib

from reports import values, wording
from reports.document import Column, Picture, Table, Value
from reports.drawing import MEASURED_COLOUR, STYLE, new_axes, plain_log_axis

# key of a validation, key of a step's line, name, unit of the 1e-3 multiple
UNITS = (
    ("energy", "energy_mae_ev_per_atom", "energy error", "meV/atom"),
    ("forces", "forces_mae_ev_per_angstrom", "force error", "meV/Å"),
    ("stress", "stress_mae_ev_per_cubic_angstrom", "stress error", "meV/Å³"),
)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """run: content of run.json; steps: lines of steps.jsonl, in order."""

    run: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step counted from 1, loss) of every step that has one."""
        return [(int(line["step"]) + 1, float(line["loss"])) for line in self.steps if line.get("loss") is not None]

    def _step_times(self) -> list[tuple[str, Value]]:
        """Step time measured (median, without the first tenth: warm-up) and, where a plan was run, predicted."""
        times = [float(line["step_s"]) for line in self.steps if line.get("step_s") is not None]
        measured_s = statistics.median(times[len(times) // 10 :]) if times else None
        rows = [("step time, measured (median)", values.time(measured_s, "measured"))]
        planned_s = (self.run.get("planned") or {}).get("step_s")
        if planned_s is None:
            return rows
        error = planned_s / measured_s - 1 if measured_s else None
        predicted = ("step time, predicted by the plan", values.time(planned_s, "predicted"))
        return [*rows, predicted, ("error of the plan", values.signed_percent(error))]

    def _errors(self) -> list[tuple[str, Value]]:
        """Mean absolute errors on structures kept apart, and on the last batch."""
        rows = []
        validation = self.run.get("validation") or {}
        last = self.steps[-1] if self.steps else {}
        for short, key, name, unit in UNITS:
            apart = (validation.get(short) or {}).get("mae")
            if apart is not None:
                rows.append((f"{name} (mean absolute), structures kept apart", _milli(apart, unit)))
            if last.get(key) is not None:
                rows.append((f"{name} (mean absolute), last batch", _milli(last[key], unit)))
        return rows

    def rows(self) -> tuple[tuple[str, Value], ...]:
        """What the run was and where it ended, as name and value; what the files do not say is n/a."""
        run = self.run
        tenth = max(1, len(self.losses) // 10)
        losses = [loss for _, loss in self.losses]
        ends = [statistics.fmean(part) for part in (losses[:tenth], losses[-tenth:])] if losses else []
        times = (("start_up_s", "start-up"), ("loop_s", "training loop"), ("wall_s", "whole run"))
        return (
            ("ranks", values.count(run.get("world_size"))),
            ("steps", values.count(len(self.steps))),
            *self._step_times(),
            ("parameters", values.count(run.get("parameters"))),
            ("structures trained on", values.count(run.get("num_training"))),
            *((f"loss, {part} tenth", Value(text=f"{value:.4g}", number=value))
              for part, value in zip(("first", "last"), ends, strict=False)),
            *self._errors(),
            *((name, values.time(run.get(key))) for key, name in times),
        )  # fmt: skip

    def picture(self) -> Picture:
        """Loss against step, each step a thin line, the median of a window drawn over it."""
        steps, losses = [step for step, _ in self.losses], [loss for _, loss in self.losses]
        window = max(1, len(losses) // 20)
        smooth = [statistics.median(losses[max(0, end - window) : end]) for end in range(1, len(losses) + 1)]
        with matplotlib.rc_context(STYLE):
            figure, axes = new_axes()
            axes.plot(steps, losses, color=MEASURED_COLOUR, linewidth=0.8, alpha=0.45)
            axes.plot(steps, smooth, color=MEASURED_COLOUR, linewidth=1.8)
            if losses and min(losses) > 0:
                axes.set_yscale("log")
                plain_log_axis(axes.yaxis, *axes.get_ylim())
            axes.set_xlabel("optimizer step")
            axes.set_ylabel("loss")
        rows = tuple(
            tuple(Value(text=f"{number:.6g}", number=number) for number in row)
            for row in zip(steps, losses, smooth, strict=True)
        )
        names = ("optimizer step", "loss", "median of the window")
        columns = tuple(Column(name=name, numeric=True, csv_name=name.replace(" ", "_")) for name in names)
        return Picture(
            name="training-loss", figure=figure, description="loss against optimizer step",
            caption=f"Loss of each step, and the median of the last {wording.count_of(window, 'step')}. Measured.",
            data=Table(name="training-loss-data", columns=columns, rows=rows),
        )  # fmt: skip


def _milli(value: float, unit: str) -> Value:
    """An error in thousandths of its unit; number in the unit itself."""
    return Value(text=f"{1e3 * value:.4g} {unit}", number=value)
