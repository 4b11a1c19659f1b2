"""Where the time of a step goes: phases measured and predicted, causes predicted, waiting measured, and what limits.

It owns the tables and the naming of the limiting term; it does not own how losses are counted (``losses``).
"""

from __future__ import annotations

from collections.abc import Sequence

from reports import figures, values
from reports.campaign import Campaign
from reports.document import Block, Column, Heading, Picture, Section, Table, Text, Value
from reports.losses import Loss, limit_sentence, measured_losses, predicted_losses
from reports.points import PHASE_NAMES, PHASE_ORDER, Point, StudyView
from reports.scaling_section import last_measured
from reports.wording import NOT_MEASURED, place, scaled_name, seconds, study_title

PHASES = (
    "A step has these phases: data, the batch is read; FE, forward pass for the energies; FF, forces and stresses as "
    "their derivatives; BF + BE, backward pass of the loss through both; gradient sync, gradients are summed over "
    "ranks and ranks wait for one another; optimizer, parameters change."
)
LOSS_NOTE = (
    "Ideal is the time of the part at the base point, scaled as the ideal step; lost is found minus ideal, and the "
    "losses add up to that of the whole step."
)


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section for measured studies and one for those only predicted."""
    made: list[Section] = []
    for views, ident, title, tag in (
        (campaign.measured_views, "breakdown", "Where the time goes", ""),
        (campaign.predicted_views, "breakdown-predicted", "Where the time would go", NOT_MEASURED),
    ):
        parts = [(view, _study(view)) for view in views]
        blocks: list[Block] = [
            block for view, own in parts if own for block in (Heading(text=study_title(view)), *own)
        ]  # fmt: skip
        if blocks:
            blocks = blocks if made else [Text(text=PHASES), *blocks]
            short = "Breakdown" if not tag else "Breakdown, predicted"
            made.append(
                Section(id=ident, title=title, short=short, blocks=tuple(blocks), tag=tag,
                        tone="predicted" if tag else "")
            )  # fmt: skip
    return tuple(made)


def _study(view: StudyView) -> list[Block]:
    """What one study has to say; nothing where no phase is known."""
    pictures = [picture for picture in (figures.phases(view), figures.causes(view)) if isinstance(picture, Picture)]
    if not pictures:
        return []
    blocks: list[Block] = [Text(text=sentence) for sentence in _limits(view)]
    blocks += [*pictures, phase_table(view)]
    blocks += [table for table in _loss_tables(view) if table is not None]
    return blocks


def _predicted_point(view: StudyView) -> Point | None:
    """The point whose prediction is looked into: the one measured where that is predicted too, else the last."""
    measured = last_measured(view)
    if measured is not None and measured.predicted_s is not None and not measured.is_base:
        return measured
    known = [point for point in view.points if point.predicted_s is not None and not point.is_base]
    return known[-1] if known else None


def _limits(view: StudyView) -> list[str]:
    """The limiting term of the largest point, measured and predicted, and what is spent waiting there."""
    found = []
    measured, predicted = last_measured(view), _predicted_point(view)
    if measured is not None and not measured.is_base:
        found.append(limit_sentence(measured, measured_losses(view, measured), is_predicted=False))
    if measured is not None and measured.wait_measured_s is not None and measured.measured is not None:
        share = 100 * measured.wait_measured_s / measured.measured.median
        found.append(
            f"There a rank waits for others {seconds(measured.wait_measured_s)} of a step in the mean over ranks "
            f"({share:.1f} % of it), measured."
        )
    if predicted is not None:
        found.append(limit_sentence(predicted, predicted_losses(view, predicted), is_predicted=True))
    sentences = [sentence for sentence in found if sentence]
    return [" ".join(sentences)] if sentences else []


def phase_table(view: StudyView) -> Table:
    """Seconds of each phase at each point; the last columns are the measured wait and the predicted communication."""
    known = [point for point in view.points if point.phases_measured() or point.phases_predicted()]
    shown = [
        phase for phase in PHASE_ORDER
        if any(phase in point.phases_measured() or phase in point.phases_predicted() for point in known)
    ]  # fmt: skip
    columns = (
        Column(name=scaled_name(view), numeric=True, csv_name=view.scaled), Column(name="result"),
        *(Column(name=PHASE_NAMES[phase].partition(",")[0], numeric=True, csv_name=f"{phase}_s") for phase in shown),
        Column(name="waiting", numeric=True, csv_name="wait_s"),
        Column(name="communication", numeric=True, csv_name="communication_s"),
    )  # fmt: skip
    rows: list[tuple[Value | str, ...]] = []
    groups: list[int] = []
    for point in known:
        groups.append(len(rows))
        rows += _phase_rows(point, shown)
    return Table(
        name=f"{view.name}-phase-times", columns=columns, rows=tuple(rows), groups=tuple(groups[1:]), folded=True,
        caption=f"Phases of a step of {view.name}.",
        note="Waiting: measured, mean over ranks of the time spent waiting for other ranks, within the phases; or "
        "predicted. Communication: predicted, exposed.",
    )  # fmt: skip


def _phase_rows(point: Point, shown: Sequence[str]) -> list[tuple[Value | str, ...]]:
    rows: list[tuple[Value | str, ...]] = []
    x = Value(text=f"{point.x:,.0f}{' *' if point.oversubscribed else ''}", number=point.x)
    if measured := point.phases_measured():
        cells = [values.time(measured.get(phase)) for phase in shown]
        rows.append((x, Value(text="measured", tone="measured"), *cells, values.time(point.wait_measured_s), ""))
    if predicted := point.phases_predicted():
        cells = [values.time(predicted.get(phase)) for phase in shown]
        ends = (values.time(point.wait_predicted_s), values.time(point.exposed_predicted_s))
        rows.append((x, Value(text="predicted", tone="predicted"), *cells, *ends))
    return rows


def _loss_tables(view: StudyView) -> list[Table | None]:
    """What the largest point loses, by measured phase and by predicted cause."""
    measured, predicted = last_measured(view), _predicted_point(view)
    found: list[Table | None] = []
    if measured is not None and not measured.is_base:
        found.append(_loss_table(view, measured, measured_losses(view, measured), "measured"))
    if predicted is not None:
        found.append(_loss_table(view, predicted, predicted_losses(view, predicted), "predicted"))
    return found


def _loss_table(view: StudyView, point: Point, parts: Sequence[Loss], kind: str) -> Table | None:
    parts = [part for part in parts if part.base_s or part.found_s]
    total_s = sum(part.lost_s for part in parts)
    if not parts:
        return None
    columns = (
        Column(name="part of a step"), Column(name="at the base", numeric=True, csv_name="base_s"),
        Column(name="ideal here", numeric=True, csv_name="ideal_s"),
        Column(name="found here", numeric=True, csv_name="found_s"),
        Column(name="lost", numeric=True, csv_name="lost_s"),
        Column(name="share of the loss", numeric=True, csv_name="share_percent"),
    )  # fmt: skip
    rows = [
        (part.name, values.time(part.base_s), values.time(part.ideal_s), values.time(part.found_s),
         values.time(part.lost_s), values.percent(part.lost_s / total_s, digits=0) if total_s > 0 else values.NOT_KNOWN)
        for part in parts
    ]  # fmt: skip
    return Table(
        name=f"{view.name}-losses-{kind}", columns=columns, rows=tuple(rows), note=LOSS_NOTE, folded=True,
        caption=f"What {view.name} loses at {place(point)}, {kind}.",
    )  # fmt: skip
