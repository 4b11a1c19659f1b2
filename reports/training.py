"""One training run as the page shows it: what it was, where its errors ended, its loss curve. It runs nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from reports import wording
from reports.figures import MEASURED_COLOUR, SIZE, STYLE, plain_log_axis

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

    def step_time_rows(self) -> list[tuple[str, str]]:
        """Step time measured (median, without the first tenth: warm-up) and, where a plan was run, predicted."""
        times = [float(line["step_s"]) for line in self.steps if line.get("step_s") is not None]
        measured_s = statistics.median(times[len(times) // 10 :]) if times else None
        rows = [("step time, measured (median)", wording.seconds(measured_s) if measured_s else "n/a")]
        planned_s = (self.run.get("planned") or {}).get("step_s")
        if planned_s is None:
            return rows
        error = wording.signed_percent(planned_s / measured_s - 1) if measured_s else "n/a"
        return [*rows, ("step time, predicted by the plan", wording.seconds(planned_s)), ("error of the plan", error)]

    def rows(self) -> list[tuple[str, str]]:
        """What the run was and where it ended, as name and text; what the files do not say is n/a."""
        run = self.run
        tenth = max(1, len(self.losses) // 10)
        values = [loss for _, loss in self.losses]
        ends = (statistics.fmean(values[:tenth]), statistics.fmean(values[-tenth:])) if values else None
        rows = [
            ("ranks", str(run.get("world_size", "n/a"))),
            ("steps", f"{len(self.steps):,}"),
            *self.step_time_rows(),
            ("parameters", f"{run['parameters']:,}" if run.get("parameters") else "n/a"),
            ("structures trained on", f"{run['num_training']:,}" if run.get("num_training") else "n/a"),
            ("loss, first to last tenth", f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "n/a"),
        ]
        validation = run.get("validation") or {}
        last = self.steps[-1] if self.steps else {}
        for short, key, name, unit in UNITS:
            apart = (validation.get(short) or {}).get("mae")
            if apart is not None:
                rows.append((f"{name} (mean absolute), structures kept apart", f"{1e3 * apart:.4g} {unit}"))
            if last.get(key) is not None:
                rows.append((f"{name} (mean absolute), last batch", f"{1e3 * last[key]:.4g} {unit}"))
        for key, name in (("start_up_s", "start-up"), ("loop_s", "training loop"), ("wall_s", "whole run")):
            rows.append((name, wording.seconds(run[key]) if run.get(key) else "n/a"))
        return rows

    def figure(self) -> Figure:
        """Loss against step, logarithmic, each step a thin line, the median of a window drawn over it."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=SIZE, layout="constrained")
            axes = figure.add_subplot()
            steps, losses = [step for step, _ in self.losses], [loss for _, loss in self.losses]
            axes.plot(steps, losses, color=MEASURED_COLOUR, linewidth=0.8, alpha=0.45)
            window = max(1, len(losses) // 20)
            smooth = [statistics.median(losses[max(0, end - window) : end]) for end in range(1, len(losses) + 1)]
            axes.plot(steps, smooth, color=MEASURED_COLOUR, linewidth=1.8)
            if losses and min(losses) > 0:
                axes.set_yscale("log")
                plain_log_axis(axes.yaxis, *axes.get_ylim())
            axes.set_xlabel("optimizer step")
            axes.set_ylabel("loss")
            return figure

    @property
    def caption(self) -> str:
        window = max(1, len(self.losses) // 20)
        return f"Loss of each step, and the median of the last {wording.count_of(window, 'step')}. Measured."
