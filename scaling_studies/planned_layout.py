"""The layout of a point that leaves it to the planner. It owns the question; the search is ``perfmodel.planner``.

Only the layout is searched: cap, recomputation and transport are the study's, everything else is the trainer's default.
"""

from __future__ import annotations

from collections.abc import Sequence

from janus.errors import UserError
from janus.layout import Layout
from perfmodel.dataset import DataCounts
from perfmodel.machine import Machine
from perfmodel.planner import Request, make_plan
from perfmodel.step_work import RunSettings
from scaling_studies.cells import LayoutChoice
from scaling_studies.study import Study


def planner_for(machine: Machine) -> LayoutChoice:
    """Picks the layout with the shortest predicted step on a machine."""
    defaults = RunSettings()

    def choose(study: Study, ranks: int, data: DataCounts, structures: Sequence[int]) -> Layout:
        transport = study.transport
        if transport == "auto" and machine.is_calibrated_host:
            transport = "gloo"
        request = Request(
            model=study.model_config, model_name=study.model, world_size=ranks, global_batch=len(structures),
            dtype=study.dtype, num_batches=1,
            fixed={
                "cap": (study.max_work or None,), "recompute": (study.recompute,), "transport": (transport,),
                "gathered_blocks": (defaults.gathered_blocks,), "expert_strategy": (defaults.expert_strategy,),
                "expert_compression": (defaults.expert_compression,),
            },
        )  # fmt: skip
        try:
            return make_plan(request, machine, data.at(structures)).chosen.layout
        except UserError as error:
            raise UserError(f"study {study.name} has no planned layout at {ranks} ranks: {error}") from None

    return choose
