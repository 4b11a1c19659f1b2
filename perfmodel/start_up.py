"""Seconds before the first step of a job, and what they make of its sustained rate.

It owns start-up on calibrated hosts (measured) and on machines of the catalogue (assumed), and sustained over peak. It
does not own the step's time (``step_time``) nor I/O, which is handed in.

    sustained = FLOPs of all steps / (start-up + I/O + steps x step)

A calibrated host's file has seconds by number of ranks. Of other machines nobody published a start-up: the paper says
"hundreds of seconds" at full scale (arXiv 2604.15821, second-hand). The assumed form is a fixed part and a part that
grows with the nodes, as where one process answers all others:

    start-up = FIXED_S + nodes x s

s of the paper's two machines is derived from sustained / peak with the fewest steps reported (1,000): it holds start-up
and I/O together, and no more can be told apart. Other machines take the geometric mean of the two.
"""

from __future__ import annotations

import math
from functools import lru_cache

from perfmodel.machine import Machine, load_machine
from perfmodel.paper import GLOBAL, MACHINES, published

FIXED_S = 60.0  # assumed: interpreter, libraries and the data set's index from a parallel file system


def sustained_over_peak(step_s: float, num_steps: float, outside_s: float) -> float:
    """Training loop over wall time: steps x step / (outside + steps x step), where outside is start-up and I/O."""
    loop_s = num_steps * step_s
    return loop_s / (outside_s + loop_s)


def sustained_flops_per_s(step_flops: float, step_s: float, num_steps: float, outside_s: float) -> float:
    """FLOPs of all steps over wall time."""
    return step_flops / step_s * sustained_over_peak(step_s, num_steps, outside_s)


@lru_cache
def published_outside_s(machine: str) -> float:
    """Start-up and I/O of the paper's run on one of its machines, from sustained / peak, its step time of L and the
    fewest steps reported: (peak / sustained - 1) x steps x step. More steps would make it longer in proportion."""
    rows = published(machine)
    share = rows["sustained_percent"].value / rows["peak_percent"].value
    return (1 / share - 1) * GLOBAL["fewest_steps"].value * rows["step_l_s"].value


def _seconds_per_node(machine: Machine) -> tuple[float, str]:
    """s of the assumed form, and what it was taken from."""
    slopes = {name: (published_outside_s(name) - FIXED_S) / load_machine(name).nodes for name in MACHINES}
    if machine.name in slopes:
        return slopes[machine.name], (
            f"assumed: start-up of {FIXED_S:g} s and {slopes[machine.name]:.3f} s per node, fitted to the published "
            f"sustained / peak of {machine.name} at {GLOBAL['fewest_steps'].value:,.0f} steps; it contains I/O"
        )
    mean = math.prod(slopes.values()) ** (1 / len(slopes))
    return mean, (
        f"assumed: start-up of {FIXED_S:g} s and {mean:.3f} s per node, the mean of what {' and '.join(MACHINES)} show "
        "in sustained / peak; it contains I/O"
    )


def _measured(machine: Machine, ranks: int) -> tuple[float | None, list[str]]:
    known = sorted(machine.start_up_s)
    if not known:
        return None, [f"machine {machine.name!r} has no [start_up] table: start-up is n/a"]
    nearest = next((number for number in known if number >= ranks), known[-1])
    notes = [] if nearest == ranks else [f"start-up of {ranks} ranks was not measured: {nearest} ranks stand for it"]
    return machine.start_up_s[nearest], notes


def start_up_seconds(machine: Machine, ranks: int) -> tuple[float | None, list[str]]:
    """Seconds from the start of a job's processes to its first step, and what had to be assumed.

    A calibrated host: measured (None where its file has no [start_up] table). A machine of the catalogue: the assumed
    form of this module, of the nodes that the ranks fill.
    """
    assert ranks >= 1, f"{ranks} ranks"
    if machine.is_calibrated_host or machine.start_up_s:
        return _measured(machine, ranks)
    slope, note = _seconds_per_node(machine)
    return FIXED_S + slope * math.ceil(ranks / machine.devices_per_node), [note]
