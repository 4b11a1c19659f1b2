"""What must be known about where a measured result comes from, and what is missing of it.

It owns the required fields and how they are put together from a job's facts and a run's folder; it does not own reading
the host (``janus.host_facts``), the job (``job_facts``) or the code (``code_version``).

A field holds its value, or a text "not applicable: reason" where it cannot exist (the job id of a local run, the GPU
driver of a CPU run). Anything else, "n/a" and "unknown" among it, is missing, and an attempt that ended well with a
missing field is INVALID (Hoefler and Belli, SC15, rule 9). One that failed keeps what is known, the rest is "unknown".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from janus.host_facts import NOT_APPLICABLE, is_not_applicable, not_applicable

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
    "devices": "what the ranks computed on",
    "clocks": "governor, limits and power caps of the clocks; where only they are told, the clocks themselves",
    "driver": "version of the GPU driver",
    "library_versions": "Python, torch, numpy, MPI, NCCL and what else decides a measurement",
    "placement": "host, cores and device of each rank, in the order of ranks",
    "resolved_config": "every setting of the run",
    "seeds": "of weights and batches, of the data, of the order of jobs",
    "job_id": "as the scheduler names the job",
    "start": "when the job's script began, UTC",
    "end": "when it ended, UTC",
}
REQUIRED = tuple(MEANINGS)
UNKNOWN = "unknown"
NOT_KNOWN = ("", "n/a", UNKNOWN, "none", NOT_APPLICABLE.strip())  # words that stand for no value
MAY_BE_EMPTY = ("modules", "environment")  # none loaded, none set: that is known
READINGS = ("scaling_cur_mhz", "pstate", "clocks.sm", "clocks.mem")  # of one moment, when the job began
GPU_IDENTITY = ("index", "uuid")
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


def of_attempt(
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    begin: Mapping[str, Any],
    end: Mapping[str, Any],
    code: Mapping[str, Any],
    *,
    order_seed: int,
) -> dict[str, Any]:
    """The provenance of one attempt; what is not there is None.

    run: run.json; settings: config.toml, nested; begin, end: facts of the job's script, empty where there are none;
    code: revision, diff and distributions of ``job_facts``; order_seed: of the random order of the jobs.
    """
    told = run.get("provenance") or {}
    hosts = told.get("host_facts") or {}
    kinds = sorted({str(device).partition(":")[0] for device in told.get("device_per_rank") or []})
    on_gpu = kinds != ["cpu"] if kinds else None
    return {
        "code_revision": code.get("revision"), "code_diff": code.get("diff"),
        "code_version": told.get("code_version"), "lock_digest": code.get("distributions"),
        "modules": begin.get("modules"), "environment": told.get("settings"),
        "host": begin.get("host"), "node_list": begin.get("node_list"),
        "operating_system": _merged([facts.get("operating_system") for facts in hosts.values()]),
        "devices": {"names": told.get("device_names"), "kinds": kinds},
        "clocks": _clocks(hosts, begin, on_gpu), "driver": _driver(hosts, begin, on_gpu),
        "library_versions": told.get("versions"), "placement": told.get("placement"),
        "resolved_config": dict(settings), "seeds": {**(run.get("seeds") or {}), "order": order_seed},
        "job_id": begin.get("job_id"), "start": begin.get("utc"), "end": end.get("utc"),
        "launcher": told.get("launcher"), "transport": told.get("transport"),
        "threads_per_rank": told.get("threads_per_rank"), "command": told.get("command"),
        "load_average_before": begin.get("load_average"), "clocks_before": begin.get("clocks"),
        "gpus_before": begin.get("gpus"),
    }  # fmt: skip


def of_failure(
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    begin: Mapping[str, Any],
    end: Mapping[str, Any],
    code: Mapping[str, Any],
    submitted: Mapping[str, Any],
) -> dict[str, Any]:
    """What is known of an attempt that did not end well; a required field that nobody knows is "unknown".

    run, settings: what the trainer left, empty where it left nothing; begin, end, code: as ``of_attempt``; submitted:
    fields as runner and scheduler know them (job_id, node_list, code_version ...), for what the job did not tell.
    """
    seeds = submitted.get("seeds") or {}
    told = of_attempt(run, settings, begin, end, code, order_seed=seeds.get("order", UNKNOWN))
    by_script = {
        "code_version": code.get("version"), "environment": begin.get("environment"), "driver": begin.get("driver"),
        "operating_system": begin.get("operating_system"), "clocks": begin.get("clocks"),
    }  # fmt: skip
    found = {}
    for name in dict.fromkeys((*told, *submitted)):
        witnesses = (told.get(name), by_script.get(name), submitted.get(name))
        found[name] = next((value for value in witnesses if _is_known(name, value)), UNKNOWN)
    return found


def _is_known(name: str, value: Any) -> bool:
    """Whether a field, or at least a part of it, has a value."""
    if isinstance(value, Mapping | list | tuple):
        inner = value.values() if isinstance(value, Mapping) else value
        return any(_is_known(name, part) for part in inner) or (not value and name in MAY_BE_EMPTY)
    return value is not None and not (isinstance(value, str) and value.strip().lower() in NOT_KNOWN)


def hosts(provenance: Mapping[str, Any]) -> str:
    """Where an attempt ran: the node list, else the host of its script; "" where neither is known."""
    known = [provenance[name] for name in ("node_list", "host") if _is_known(name, provenance.get(name))]
    return "" if not known else known[0] if isinstance(known[0], str) else ", ".join(map(str, known[0]))


def _clocks(hosts: Mapping[str, Any], begin: Mapping[str, Any], on_gpu: bool | None) -> dict[str, Any]:
    """Limits, governors and power caps, which a machine is set to; readings differ from job to job by their nature."""
    clocks = {"cpu": _without_readings(_merged([facts.get("clocks") for facts in hosts.values()]))}
    if not on_gpu:
        return clocks
    kinds: list[Any] = []
    for gpu in begin.get("gpus") or []:
        kinds += [kind for kind in [_without_readings(gpu)] if kind not in kinds]
    return clocks | {"gpu": kinds or None}


def _without_readings(facts: Any) -> Any:
    if not isinstance(facts, Mapping):
        return facts
    return {name: value for name, value in facts.items() if name not in (*READINGS, *GPU_IDENTITY)}


def _driver(hosts: Mapping[str, Any], begin: Mapping[str, Any], on_gpu: bool | None) -> Any:
    if on_gpu is None:
        return None
    if not on_gpu:
        return not_applicable("no rank computed on a GPU")
    found = {str(facts.get("driver")) for facts in hosts.values()} | {str(begin.get("driver"))}
    versions = sorted(version for version in found if version != "None" and not is_not_applicable(version))
    return ", ".join(versions) or None


def _merged(values: Sequence[Any]) -> Any:
    """The same facts of many hosts as one: what all agree on as it is, numbers as [smallest, largest], else all."""
    if not values or any(value is None for value in values):
        return None
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, Mapping) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _merged([value[name] for value in values if name in value]) for name in names}
    numbers = [number for value in values for number in (value if isinstance(value, list) else [value])]
    if all(isinstance(number, int | float) for number in numbers):
        return [min(numbers), max(numbers)]
    return sorted({str(number) for number in numbers})
