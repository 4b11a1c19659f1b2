"""Performance attributes in the form that papers for the ACM Gordon Bell Prize carry. It owns these words alone.

Rows as in the table of W. Jia et al., SC20 (DeePMD): category, method, basis, precision, scale, mechanism.
"""

from __future__ import annotations

from reports.campaign import Campaign
from reports.document import Column, Table
from reports.points import MODE_ORDER, Point
from reports.wording import NOT_MEASURED, count_of, listed, seconds
from scaling_studies.records import Record


def attribute_table(campaign: Campaign) -> Table:
    """Performance attributes as papers for the ACM Gordon Bell Prize carry them."""
    rows = (
        ("Category of achievement", _category(campaign)),
        ("Type of method used", "Neural interatomic potential trained by a stochastic gradient method on energies, "
         "forces (first derivatives) and stresses; explicit and implicit do not apply"),
        ("Results reported on the basis of", _basis(campaign)),
        ("Precision reported", _precision(campaign)),
        ("System scale", _scale(campaign)),
        ("Measurement mechanism", _mechanism(campaign)),
    )  # fmt: skip
    columns = (Column(name="performance attribute"), Column(name="this report"))
    return Table(
        name="attributes", columns=columns, rows=rows, caption="Performance attributes (ACM Gordon Bell form)."
    )


def _category(campaign: Campaign) -> str:
    parts = []
    for kind, views in (("measured", campaign.measured_views), ("predicted", campaign.predicted_views)):
        modes = [mode for mode in MODE_ORDER if any(view.mode == mode for view in views)]
        if modes:
            words = [f"{mode} scaling" if mode != "throughput" else mode for mode in modes]
            parts.append(f"{listed(words)} ({kind if kind == 'measured' else NOT_MEASURED})")
    return f"Scalability: {'; '.join(parts)}. Time-to-solution of a whole training is not claimed"


def _basis(campaign: Campaign) -> str:
    whole = "whole training step: reading data, forward, forces, double backward, gradient sum and optimizer"
    if campaign.is_predicted_only:
        return f"Predicted {whole}"
    return f"Measured {whole}; start-up and the wall time of the whole process are given apart"


def _precision(campaign: Campaign) -> str:
    records = [record for view in campaign.views for point in view.points for record in _shown(point)]
    return listed(sorted({record.dtype for record in records})) or "n/a"


def _shown(point: Point) -> list[Record]:
    return [*point.jobs, *([point.prediction] if point.prediction is not None else [])]


def _scale(campaign: Campaign) -> str:
    """The largest point of each machine, measured and predicted."""
    parts = []
    for kind, views in (("measured", campaign.measured_views), ("predicted", campaign.predicted_views)):
        largest: dict[str, Record] = {}
        for point in (point for view in views for point in view.points):
            records = point.jobs if kind == "measured" else _shown(point)
            for record in records[:1]:
                if record.machine not in largest or record.ranks > largest[record.machine].ranks:
                    largest[record.machine] = record
        parts += [
            f"{kind} up to {count_of(record.ranks, 'rank')}{_nodes(record)} of {machine}"
            for machine, record in largest.items()
        ]
    return "; ".join(parts) or "n/a"


def _nodes(record: Record) -> str:
    return f" on {count_of(record.nodes, 'node')}" if record.nodes else ""


def _mechanism(campaign: Campaign) -> str:
    flops = "FLOPs by formulas from the shapes of the model and of each batch, without recomputation"
    if campaign.is_predicted_only:
        return f"None: nothing was measured. Times are predicted; {flops}"
    jobs = [job for view in campaign.measured_views for point in view.points for job in point.jobs]
    steps = sum(len(job.step_s) for job in jobs)
    shortest = min((min(job.step_s) for job in jobs), default=0.0)
    return f"Timers: {count_of(steps, 'step')}, the shortest {seconds(shortest)}, with each rank's clock; {flops}"
