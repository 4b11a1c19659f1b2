"""What must be known about where a measured result comes from, and what is missing of it.

It owns the required fields and how they are put together from a job's facts and a run's folder; it does not own reading
the host (``janus.host_facts``), the job (``job_facts``) or the code (``code_version``).

A field holds its value, or a text "not applicable: reason" where it cannot exist (the job id of a local run, the GPU
driver of a CPU run). Anything else, "n/a" and "unknown" among it, is missing, and an attempt with a missing field is
INVALID (Hoefler and Belli, SC15, rule 9).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MEANINGS = {
    "code_revision": "git revision that the trainer was started from",
    "code_diff": "hash of the changes since then; the text lies in code/HASH.patch of the study",
    "code_version": "version of the package and digest of the trainer's sources, as the run found them",
    "lock_digest": "hash of the list of installed distributions; the list lies in code/HASH.txt of the study",
    "modules": "environment modules that were loaded",
    "environment": "variables that change a measurement: threads, binding, MPI, NCCL, gloo",
    "host": "host that ran the job's script",
    "node_list": "hosts of the job as the scheduler names them",
    "operating_system": "kernel, distribution, architecture",
    "devices": "what each rank computed on",
    "clocks": "clocks and their governor, host by host",
    "driver": "version of the GPU driver",
    "library_versions": "Python, torch, numpy, MPI, NCCL and what else decides a measurement",
    "placement": "host and cores of each rank, in the order of ranks",
    "resolved_config": "every setting of the run",
    "seeds": "of weights and batches, of the data, of the order of jobs",
    "job_id": "as the scheduler names the job",
    "start": "when the job's script began, UTC",
    "end": "when it ended, UTC",
}
REQUIRED = tuple(MEANINGS)
NOT_KNOWN = ("", "n/a", "unknown", "none")  # words that stand for no value
MAY_BE_EMPTY = ("modules", "environment")  # none loaded, none set: that is known
NOT_LOOKED_INTO = (*MAY_BE_EMPTY, "resolved_config")  # "none" is a value there


def missing(provenance: Mapping[str, Any]) -> list[str]:
    """Names of required fields without a value, a part of a field as FIELD.PART; empty where all are there."""
    return [gap for name in REQUIRED for gap in _gaps(name, provenance.get(name))]


def _gaps(name: str, value: Any) -> Iterator[str]:
    """Where a value, or a part of it, is empty or a word for no value."""
    if isinstance(value, Mapping | list | tuple):
        if not value and name not in MAY_BE_EMPTY:
            yield name
        if name in NOT_LOOKED_INTO:
            return
        for part, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _gaps(f"{name}.{part}", inner)
    elif value is None or (isinstance(value, str) and value.strip().lower() in NOT_KNOWN):
        yield name
