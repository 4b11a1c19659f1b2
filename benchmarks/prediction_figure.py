"""A picture of predicted against measured step times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

COLOURS = {1: "#1b6ca8", 2: "#c8553d", 4: "#4d7c3a"}
MARKS = {"gloo": "o", "mpi": "^"}
TICKS_S = [base * 10.0**power for power in range(-3, 3) for base in (1, 2, 5)]


def draw(report: Mapping[str, Any], path: Path) -> None:
    """One point per layout: median measured and predicted step; grey: within 15 %."""
    cases = report["cases"]
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    seconds = [x for case in cases for x in (median(case["measured_s"]), median(case["predicted_s"]["exact"]))]
    ends = [min(seconds) / 1.15, max(seconds) * 1.15]
    axes.fill_between(ends, [x * 0.85 for x in ends], [x * 1.15 for x in ends], color="0.9", lw=0, label="within 15 %")
    axes.plot(ends, ends, color="0.5", lw=0.8)
    for ranks, colour in COLOURS.items():
        for transport, mark in MARKS.items():
            chosen = [
                case for case in cases
                if case["ranks"] == ranks and case["layout"].endswith("(mpi)") == (transport == "mpi")
            ]  # fmt: skip
            if chosen:
                points = [(median(case["measured_s"]), median(case["predicted_s"]["exact"])) for case in chosen]
                name = f"{ranks} ranks, {transport}" if ranks > 1 else "1 rank"
                axes.plot(*zip(*points, strict=True), mark, color=colour, ms=3.5, mew=0, alpha=0.75, label=name)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured step [s]", ylabel="predicted step [s]")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(TICKS_S))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axes.set_title(f"step times of {len(cases)} layouts on one host: predicted beside measured", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
