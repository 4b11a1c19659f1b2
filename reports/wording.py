"""The words and number formats that sections share. It does not own the numbers; it decides how they are said.

No sentence here compares times in words: that needs a rank test and at least six jobs per point
(``scaling_studies.statistics.compare``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from reports.points import Point, StudyView

NOT_MEASURED = "predicted, not measured"
SCALED_NAMES = {"ranks": "ranks", "structures_per_rank": "structures per rank"}


def seconds(value_s: float, *, unit: bool = True) -> str:
    """A time with three significant digits: milliseconds below one second. unit False: milliseconds as a number."""
    if unit and value_s < 0:
        return f"−{seconds(-value_s)}" if value_s <= -1e-9 else "0 s"
    if not unit:
        return f"{1e3 * value_s:.4g}"
    if value_s < 1e-9:
        return "0 s"
    if value_s < 1e-3:
        return f"{1e6 * value_s:.3g} µs"
    if value_s < 1:
        return f"{1e3 * value_s:.3g} ms"
    return f"{value_s:,.0f} s" if value_s >= 999.5 else f"{value_s:#.3g}".rstrip(".") + " s"


def count_of(number: float, thing: str) -> str:
    """A number with its noun: 1 rank, 2 ranks."""
    return f"{number:,.0f} {thing}{'' if number == 1 else 's'}"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as percent."""
    text = f"{abs(100 * fraction):.{digits}f}"
    return f"{'−' if fraction < 0 and float(text) else ''}{text} %"


def not_ended(number: int) -> str:
    """How many attempts are still open, as the end of a sentence."""
    return f"{count_of(number, 'attempt')} {'has' if number == 1 else 'have'} not ended"


def signed_percent(fraction: float) -> str:
    """A change or an error with its sign; what rounds to nothing has none."""
    text = f"{abs(100 * fraction):.1f} %"
    return text if text == "0.0 %" else f"{'+' if fraction > 0 else '−'}{text}"


def binary_bytes(value_bytes: float) -> str:
    """An amount of memory in MiB, or in GiB from ten of them on."""
    if value_bytes >= 10 * 2**30:
        return f"{value_bytes / 2**30:,.1f} GiB"
    return f"{value_bytes / 2**20:,.0f} MiB"


def flops_rate(flops_per_s: float) -> str:
    """A FLOP rate with three significant digits and its prefix."""
    return f"{_prefixed(flops_per_s)}FLOP/s"


def byte_rate(bytes_per_s: float) -> str:
    """A rate of bytes with three significant digits and its (decimal) prefix."""
    return f"{_prefixed(bytes_per_s)}B/s"


def _prefixed(value: float) -> str:
    for scale, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value / 1e6:.3g} M"


def plain(value: Any) -> str:
    """A provenance value for people; what is missing is "n/a"."""
    if value is None or value in ("", [], {}):
        return "n/a"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(dict.fromkeys(plain(entry) for entry in value))
    return str(value)


def tied(text: str) -> str:
    """The text with numbers tied to their units, so that no line ends between the two."""
    return re.sub(r"(\d) (%|ms|µs|s|ranks?|runs?|jobs?|points?|MiB|GiB)(?!\w)", "\\1\u00a0\\2", text)


def listed(items: Sequence[Any]) -> str:
    """Items as words: "a, b and c"; empty for none."""
    words = [str(item) for item in items]
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"


def scaled_name(view: StudyView | Point) -> str:
    """What a study scales, as a column or an axis is called."""
    return SCALED_NAMES[view.scaled]


def scaled_place(scaled: str, x: float) -> str:
    """A value of what is scaled: "4 ranks", "8 structures per rank"."""
    return count_of(x, "rank") if scaled == "ranks" else f"{count_of(x, 'structure')} per rank"


def place(point: Point) -> str:
    """Where a point lies, without its study."""
    return scaled_place(point.scaled, point.x)


def base_place(view: StudyView) -> str:
    """Where the base point of a study lies."""
    return scaled_place(view.scaled, view.base_x)


def layout_text(layout: Mapping[str, object]) -> str:
    """Units and their degrees, like "4 replicas of units of 8 ranks (shard 8, graph 8, expert 8)"."""
    replicas, unit = layout.get("replicas"), layout.get("unit")
    if not isinstance(replicas, int) or not isinstance(unit, int):
        return "n/a"
    if unit == 1:
        return f"{count_of(replicas, 'replica')} of one rank"
    degrees = [
        f"{name} {layout[f'{name}_degree']}" for name in ("shard", "graph", "expert") if f"{name}_degree" in layout
    ]
    of = f" ({', '.join(degrees)})" if degrees else ""
    return f"{count_of(replicas, 'replica')} of units of {unit:,} ranks{of}"


def study_title(view: StudyView) -> str:
    """Title of a study's section: its mode, and its name where that says more."""
    kind = "Throughput" if view.mode == "throughput" else f"{view.mode.capitalize()} scaling"
    return kind if view.name == view.mode else f"{kind}: {view.name}"


def tag_of(view: StudyView) -> str:
    """The mark of a study that was only predicted."""
    return "" if view.is_measured else NOT_MEASURED


def constant(view: StudyView) -> str:
    """What a study holds constant, and how its efficiency is defined."""
    base = f"{view.base_x:g}"
    if view.mode == "weak":
        return (
            "Every rank keeps the same structures, so the total work grows with the ranks. Ideal is a constant step "
            f"time; efficiency = T({base}) / T(N)."
        )
    if view.mode == "throughput":
        return (
            f"The ranks stay the same ({view.base_ranks:,}) and each is given more structures. Ideal is a step time "
            f"that grows with the structures; efficiency = structures per second, relative to those at {base} per rank."
        )
    factor = "" if base == "1" else f"{base} "
    return (
        "The structures of a step stay the same and are shared by the ranks. Ideal is a step time of 1/N; "
        f"efficiency = {factor}T({base}) / (N T(N))."
    )


def interval_note(points: Sequence[Point]) -> str:
    """What is to be said about points without a confidence interval; empty when all measured points have one."""
    few = [point for point in points if point.measured is not None and point.measured.low is None]
    if not few:
        return ""
    least = min(len(point.jobs) for point in few)
    return (
        f"{'One point has' if len(few) == 1 else f'{len(few)} points have'} fewer than six jobs (as few as {least}): "
        "no 95 % interval of a median exists there, so the jobs are shown and no error bar."
    )
