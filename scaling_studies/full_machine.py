"""The scaling studies continued to full machines, as predicted records: nothing of it is ever run here.

It owns turning ``perfmodel.full_machine`` into records; it does not own the prediction nor what it assumes.
"""

from __future__ import annotations

from janus.config import to_mapping
from perfmodel.full_machine import (
    FullMachinePoint,
    FullMachineStudy,
    predict_strong_scaling,
    predict_weak_scaling,
)
from perfmodel.machine import load_machine
from scaling_studies.predicted import device_peaks
from scaling_studies.records import PREDICTED, Record, cell_hash

STUDY = "full-machine"
MACHINES = ("lineshine", "cnis")
MODEL = "matris-moe-l"
DTYPE = "float32"
QUESTIONS = {
    "weak": "How far would the weak scaling of the largest published model go on the full machine?",
    "strong": "How far would one batch of the largest published model scale, up to the full machine?",
}
METHOD = "perfmodel, analytic FS-3D step, not fitted to published results"


def all_full_machine_records() -> list[Record]:
    """Weak and strong lines of MatRIS-MoE-L on the machines of the paper, LineShine first."""
    lines = [line(load_machine(name)) for name in MACHINES for line in (predict_weak_scaling, predict_strong_scaling)]
    return [record for study in lines for record in full_machine_records(study)]


def full_machine_records(study: FullMachineStudy | None = None) -> list[Record]:
    """One predicted record per point, up to the full machine. study: default weak, MatRIS-MoE-L on LineShine."""
    study = study or predict_weak_scaling()
    base_ranks = study.points[0].ranks
    return [_record(study, point, base_ranks) for point in study.points]


def study_name(study: FullMachineStudy) -> str:
    """``full-machine`` for the weak line of LineShine; others by machine and mode."""
    machine = "" if study.machine.name == MACHINES[0] else f"-{study.machine.name}"
    return f"{STUDY}{machine}{'' if study.mode == 'weak' else f'-{study.mode}'}"


def _record(study: FullMachineStudy, point: FullMachinePoint, base_ranks: int) -> Record:
    peak = device_peaks(study.machine).get(DTYPE)
    resolved = {
        "machine": study.machine.name, "model": to_mapping(study.model), "layout": point.layout.to_mapping(),
        "assumptions": list(study.assumptions),
    }  # fmt: skip
    if study.mode != "weak":
        resolved["mode"] = study.mode
    return Record(
        source=PREDICTED, method=METHOD, study=study_name(study), question=QUESTIONS[study.mode], mode=study.mode,
        cell_id=cell_hash(resolved), repeats_planned=0, ranks=point.ranks, base_ranks=base_ranks, model=MODEL,
        dtype=DTYPE, machine=study.machine.name, layout=dict(point.layout.to_mapping()), step_s=(point.step_s,),
        phase_s={phase: (seconds,) for phase, seconds in point.phase_s.items()}, start_up_s=point.start_up_s,
        model_flops=point.flops_model, executed_flops=point.flops_executed,
        peak=peak.times(point.ranks) if peak is not None else None, memory_bytes=int(point.memory_bytes),
        facts={"units": point.units, "nodes": point.nodes, "assumptions": list(study.assumptions)},
    )  # fmt: skip
