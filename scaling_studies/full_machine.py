"""The weak study continued to a full machine, as predicted records: nothing of it is ever run here.

It owns turning ``perfmodel.full_machine`` into records; it does not own the prediction nor what it assumes.
"""

from __future__ import annotations

from janus.config import to_mapping
from perfmodel.full_machine import FullMachinePoint, FullMachineStudy, predict_weak_scaling
from scaling_studies.predicted import device_peaks
from scaling_studies.records import PREDICTED, Record, cell_hash

STUDY = "full-machine"
MODEL = "matris-moe-l"
DTYPE = "float32"
QUESTION = "How far would the weak scaling of the largest published model go on the full machine?"
METHOD = "perfmodel, analytic FS-3D step, not fitted to published results"


def full_machine_records(study: FullMachineStudy | None = None) -> list[Record]:
    """One predicted record per point, from one unit to the full machine. study: default MatRIS-MoE-L on LineShine."""
    study = study or predict_weak_scaling()
    base_ranks = study.points[0].ranks
    return [_record(study, point, base_ranks) for point in study.points]


def _record(study: FullMachineStudy, point: FullMachinePoint, base_ranks: int) -> Record:
    peak = device_peaks(study.machine).get(DTYPE)
    resolved = {
        "machine": study.machine.name, "model": to_mapping(study.model), "layout": point.layout.to_mapping(),
        "assumptions": list(study.assumptions),
    }  # fmt: skip
    return Record(
        source=PREDICTED, method=METHOD, study=STUDY, question=QUESTION, mode="weak", cell_id=cell_hash(resolved),
        repeats_planned=0, ranks=point.ranks, base_ranks=base_ranks, model=MODEL, dtype=DTYPE,
        machine=study.machine.name, layout=dict(point.layout.to_mapping()), step_s=(point.step_s,),
        phase_s={phase: (seconds,) for phase, seconds in point.phase_s.items()},
        model_flops=point.flops_model, executed_flops=point.flops_executed,
        peak=peak.times(point.ranks) if peak is not None else None, memory_bytes=int(point.memory_bytes),
        facts={"units": point.units, "nodes": point.nodes, "assumptions": list(study.assumptions)},
    )  # fmt: skip
