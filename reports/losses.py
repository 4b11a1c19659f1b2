"""What keeps a point from its ideal: seconds lost against the base point, part by part. It owns no number of its own.

A part (a phase, or a predicted cause) loses what it takes at the point less what it would take there on an ideal
machine, which is its time at the base point scaled like the ideal step. Medians of parts need not add up to the median
of the step; what is missing or too much is a part of its own, so that the losses add up to the step's loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reports.points import CAUSE_NAMES, PHASE_NAMES, Point, StudyView
from reports.wording import place, seconds

REST = "medians that do not add up"
ROUNDING = 1e-9  # of a step: a smaller rest is none
NEGLIGIBLE = 0.02  # of the ideal step: losses below are not explained


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One part of a step at one point [s]: at the base point, ideal here, found here. name: for people."""

    name: str
    base_s: float
    ideal_s: float
    found_s: float

    @property
    def lost_s(self) -> float:
        return self.found_s - self.ideal_s


def losses(
    view: StudyView, point: Point, base: Mapping[str, float], found: Mapping[str, float], names: Mapping[str, str]
) -> tuple[Loss, ...]:
    """Every part of the base or of the point, the largest loss first; empty where either is not known."""
    if not base or not found:
        return ()
    parts = [
        Loss(
            name=names.get(part, part), base_s=base.get(part, 0.0), found_s=found.get(part, 0.0),
            ideal_s=base.get(part, 0.0) * view.ideal_s(point, 1.0),
        )
        for part in dict.fromkeys((*base, *found))
    ]  # fmt: skip
    return tuple(sorted(parts, key=lambda loss: -loss.lost_s))


def _with_rest(parts: tuple[Loss, ...], view: StudyView, point: Point) -> tuple[Loss, ...]:
    """The measured parts and, last, what their medians have more or less than the median of the step."""
    if not parts or view.base is None or view.base.measured is None or point.measured is None:
        return parts
    base_s = view.base.measured.median - sum(part.base_s for part in parts)
    found_s = point.measured.median - sum(part.found_s for part in parts)
    if max(abs(base_s) / view.base.measured.median, abs(found_s) / point.measured.median) < ROUNDING:
        return parts
    return (*parts, Loss(name=REST, base_s=base_s, found_s=found_s, ideal_s=base_s * view.ideal_s(point, 1.0)))


def measured_losses(view: StudyView, point: Point) -> tuple[Loss, ...]:
    """By phase, from measured medians."""
    base = view.base.phases_measured() if view.base is not None else {}
    return _with_rest(losses(view, point, base, point.phases_measured(), PHASE_NAMES), view, point)


def predicted_losses(view: StudyView, point: Point) -> tuple[Loss, ...]:
    """By cause where the predictions record them, else by phase."""
    if view.base is None:
        return ()
    if view.base.causes_predicted() and point.causes_predicted():
        return losses(view, point, view.base.causes_predicted(), point.causes_predicted(), CAUSE_NAMES)
    return losses(view, point, view.base.phases_predicted(), point.phases_predicted(), PHASE_NAMES)


def limit_sentence(point: Point, parts: tuple[Loss, ...], *, is_predicted: bool) -> str:
    """What limits a point, in one sentence; empty where it is not known."""
    if not parts:
        return ""
    total_s, ideal_s = sum(part.lost_s for part in parts), sum(part.ideal_s for part in parts)
    named = [part for part in parts if part.name != REST]
    kind = "predicted" if is_predicted else "measured"
    if abs(total_s) <= NEGLIGIBLE * ideal_s:
        return f"At {place(point)} the {kind} step is within {100 * NEGLIGIBLE:.0f} % of the ideal: nothing limits it."
    if total_s < 0:
        most = min(named, key=lambda part: part.lost_s)
        return (
            f"At {place(point)} the {kind} step is {seconds(-total_s)} shorter than the ideal {seconds(ideal_s)}, most "
            f"of all in {most.name} ({seconds(-most.lost_s)} less)."
        )
    most = max(named, key=lambda part: part.lost_s)
    share = (
        f"{100 * most.lost_s / total_s:.0f} % of that" if most.lost_s <= total_s else "and other parts make up for some"
    )
    return (
        f"At {place(point)} the {kind} step takes {seconds(total_s)} on top of the ideal {seconds(ideal_s)}. What "
        f"limits it is {most.name}: {seconds(most.lost_s)}, {share}."
    )
