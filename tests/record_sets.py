"""Record sets written by hand for the tests of studies and reports: numbers one can check on paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from scaling_studies.records import (
    FAILED,
    MEASURED,
    PREDICTED,
    Ceiling,
    Peak,
    PhaseWorkload,
    RankCounts,
    RankTimes,
    Record,
)

CORE_PEAK = 50e9
CORE_BYTES_PER_S = 10e9
PHASES = {"data": 0.05, "FE": 0.15, "FF": 0.2, "BF_BE": 0.45, "sync": 0.1, "optimizer": 0.04}  # shares of a step
CLOCK = "A step is timed on every rank with its monotonic clock. The time of a step is that of the slowest rank."
COMPUTE_SHARES = {"products": 0.7, "operators": 0.3}  # of the seconds of a phase that computes


def counts(ranks: int, edges: int = 1000, structures: int = 2) -> tuple[RankCounts, ...]:
    """Of ranks with so many structures of 30 atoms each; edges: of two structures."""
    one = RankCounts(structures=structures, atoms=30 * structures, edges=edges * structures // 2,
                     bonds=200 * structures, angles=1500 * structures)  # fmt: skip
    return tuple(one for _ in range(ranks))


def peak(ranks: int) -> Peak:
    return Peak(flops_per_s=CORE_PEAK * min(ranks, 2), name="matrix product, one core", dtype="float32",
                source="measured by janus calibrate")  # fmt: skip


def ceilings(ranks: int) -> tuple[Ceiling, ...]:
    """Of two cores at most: matrix products and memory."""
    cores = min(ranks, 2)
    source = "measured by janus calibrate"
    return (
        Ceiling(value=CORE_PEAK * cores, unit="FLOP/s", name="matrix product", dtype="float32", source=source),
        Ceiling(value=CORE_BYTES_PER_S * cores, unit="byte/s", name="memory, triad", dtype="", source=source),
    )


def workload(flops: float) -> dict[str, PhaseWorkload]:
    """FLOPs of a step spread over the phases that compute, two FLOPs a byte."""
    shares = {"FE": 0.2, "FF": 0.3, "BF_BE": 0.5}
    return {name: PhaseWorkload(flops=share * flops, bytes=share * flops / 2) for name, share in shares.items()}


def rank_times(ranks: int, step_s: float) -> RankTimes:
    """Rank 0 never waits, each further rank waits 2 % of a step more."""
    waits = tuple(0.02 * rank * step_s for rank in range(ranks))
    return RankTimes(step_s=(step_s,) * ranks, busy_s=tuple(step_s - wait for wait in waits), wait_s=waits)


def provenance(ranks: int = 1, **changes: Any) -> dict[str, Any]:
    """All that a record must have, of a local run."""
    values: dict[str, Any] = {
        "code_revision": "abc1234", "code_diff": "not applicable: nothing changed since", "code_version": "0.1.0+12ab",
        "lock_digest": "99aa88bb", "modules": [], "environment": {"OMP_NUM_THREADS": "1"}, "host": "testhost",
        "node_list": ["testhost"], "operating_system": "Linux 6.1, Debian 12, x86_64",
        "devices": ["CPU, one thread"] * ranks, "clocks": {"testhost": {"governor": "performance", "max_mhz": 2400}},
        "driver": "not applicable: no GPU", "library_versions": {"python": "3.11.2", "torch": "2.13.0"},
        "placement": [{"host": "testhost", "cores": [rank % 2]} for rank in range(ranks)],
        "resolved_config": {"run": {"steps": 5}}, "seeds": {"weights": 0, "order": 0},
        "job_id": "not applicable: local run", "start": "2026-11-22T11:00:00+00:00",
        "end": "2026-11-22T11:00:03+00:00",
    }  # fmt: skip
    return {**values, **changes}


def record(**changes: Any) -> Record:
    """A good measured record of 1 rank with three steps of about 0.1 s, with the given fields changed."""
    step_s = changes.get("step_s", (0.1, 0.102, 0.099))
    ranks = changes.get("ranks", 1)
    flops = changes.get("model_flops", 1e9 * ranks)
    tail = "" if changes.get("scale") is None else f"x{changes['scale']:g}"

    def unless_given(name: str, make: Callable[[], Any]) -> Any:
        return changes[name] if name in changes else make()  # lists by rank are long on a full machine

    values: dict[str, Any] = {
        "source": MEASURED, "method": "by hand", "study": "weak", "question": "How does it scale?", "mode": "weak",
        "cell_id": f"{changes.get('study', 'weak')}{ranks:04d}{tail}", "repeats_planned": 2, "ranks": ranks,
        "base_ranks": 1, "model": "matris-tiny", "dtype": "float32", "machine": "testhost",
        "layout": {"unit": 1, "replicas": ranks}, "clock": CLOCK, "executor": "local", "attempt": 1,
        "counts_per_rank": unless_given("counts_per_rank", lambda: counts(ranks)),
        "warm_up_step_s": (0.3, 0.12), "step_s": step_s,
        "phase_s": {name: tuple(share * value for value in step_s) for name, share in PHASES.items()},
        "rank_times": unless_given("rank_times", lambda: rank_times(ranks, step_s[0]) if step_s else None),
        "start_up_s": 1.5, "loop_s": max(1.2, 0.42 + sum(step_s)), "wall_s": max(3.0, 2.0 + sum(step_s)),
        "model_flops": flops,
        "executed_flops": None if flops is None else 1.2 * flops, "workload": workload(flops or 0.0) if flops else {},
        "peak": peak(ranks), "ceilings": ceilings(ranks),
        "memory_bytes": 300 * 2**20, "oversubscribed": ranks > 2,
        "provenance": unless_given("provenance", lambda: provenance(ranks)),
    }  # fmt: skip
    return Record(**{**values, **changes})


def prediction(step_s: float, **changes: Any) -> Record:
    """The predicted record of the same cell: "sync" is half gradient sums, half waiting."""
    phases = {name: (share * step_s,) for name, share in PHASES.items()}
    phases["BF"], phases["BE"] = (0.25 * step_s,), (0.2 * step_s,)
    del phases["BF_BE"]
    causes: dict[str, dict[str, float]] = {
        name: {cause: share * phases[name][0] for cause, share in COMPUTE_SHARES.items()}
        for name in ("FE", "FF", "BF", "BE")
    }
    causes["data"] = {"loader": 0.05 * step_s}
    causes["sync"] = {"gradient sums": 0.05 * step_s, "wait": 0.05 * step_s}
    causes["optimizer"], causes["outside"] = {"optimizer": 0.04 * step_s}, {"outside": 0.01 * step_s}
    fixed = {"source": PREDICTED, "method": "perfmodel, analytic", "attempt": 0, "warm_up_step_s": (),
             "phase_s": phases, "phase_cause_s": causes, "rank_times": None, "oversubscribed": False,
             "memory_parts": {"activations": 200 * 2.0**20, "parameters": 80 * 2.0**20},
             "executor": "", "provenance": {}}  # fmt: skip
    return record(**{**fixed, "step_s": (step_s,), **changes})


def campaign() -> list[Record]:
    """A weak and a strong study over 1, 2 and 4 ranks, two jobs each, 4 ranks oversubscribed, one failure."""
    records = []
    for study, mode, times, guesses in (
        ("weak", "weak", {1: (0.1, 0.104), 2: (0.11, 0.113), 4: (0.23, 0.25)}, {1: 0.095, 2: 0.105, 4: 0.21}),
        ("strong", "strong", {1: (0.4, 0.41), 2: (0.22, 0.21), 4: (0.24, 0.26)}, {1: 0.38, 2: 0.2, 4: 0.22}),
    ):
        for ranks, jobs in times.items():
            flops = 4e9 if mode == "strong" else 1e9 * ranks
            shared = {"study": study, "mode": mode, "ranks": ranks, "model_flops": flops,
                      "counts_per_rank": counts(ranks, structures=8 // ranks if mode == "strong" else 2)}  # fmt: skip
            records.append(prediction(guesses[ranks], **shared))
            for number, step_s in enumerate(jobs):
                steps = (step_s, 1.01 * step_s, 0.98 * step_s)
                records.append(record(step_s=steps, attempt=number + 1, repeat=number, **shared))
    records.append(record(state=FAILED, reason="exit code 1: rank 1 ran out of <memory>", step_s=(), phase_s={},
                          ranks=2, attempt=3))  # fmt: skip
    return records


def continuation() -> list[Record]:
    """A predicted weak study of the large model up to a full machine."""
    return [
        prediction(
            8.0 * (1 + 0.012 * power), study="full-machine", question="How far does it go?", ranks=8 * 4**power,
            base_ranks=8, model="matris-moe-l", machine="lineshine", model_flops=1.6e15 * 4**power * 8 / 8,
            peak=Peak(flops_per_s=15.1e12 * 8 * 4**power, name="NUMA domain FP32", dtype="float32", source="a table"),
            facts={"units": 4**power, "assumptions": ["assumed: full bisection"]}, nodes=max(1, 4**power // 2),
            repeats_planned=0, counts_per_rank=(), ceilings=(), clock="",
            layout={"unit": 8, "replicas": 4**power, "shard_degree": 8, "graph_degree": 8, "expert_degree": 8},
        )
        for power in range(8)
    ]  # fmt: skip


def jobs(base_s: float, number: int, **changes: Any) -> list[Record]:
    """Good jobs of one point whose medians are base_s and 0.5 % more each time; points take turns on one node."""
    made = []
    for repeat in range(number):
        time_s, place = base_s * (1 + 0.005 * repeat), int(changes.get("scale") or changes.get("ranks", 1))
        fixed = {"attempt": repeat + 1, "repeat": repeat, "repeats_planned": number, "nodes": 1,
                 "submitted_at": "2026-11-22T10:00:00+00:00",
                 "started_at": f"2026-11-22T11:{repeat:02d}:{place:02d}+00:00",
                 "ended_at": f"2026-11-22T11:{repeat:02d}:{place + 3:02d}+00:00"}  # fmt: skip
        made.append(record(step_s=(time_s, 1.01 * time_s, 0.99 * time_s), **{**fixed, **changes}))
    return made


def six_jobs() -> list[Record]:
    """A weak and a strong study over 1, 2 and 4 ranks, six jobs each, so that intervals exist; none oversubscribed."""
    records = []
    for mode, times in (("weak", {1: 0.1, 2: 0.11, 4: 0.13}), ("strong", {1: 0.4, 2: 0.22, 4: 0.13})):
        for ranks, base_s in times.items():
            shared = {"study": mode, "mode": mode, "ranks": ranks, "oversubscribed": False,
                      "model_flops": 4e9 if mode == "strong" else 1e9 * ranks,
                      "counts_per_rank": counts(ranks, structures=8 // ranks if mode == "strong" else 2)}  # fmt: skip
            records += [prediction(0.95 * base_s, repeats_planned=6, **shared), *jobs(base_s, 6, **shared)]
    return records


def longer_sync(extra_s: float = 0.02) -> list[Record]:
    """``six_jobs`` later: at 4 ranks of the weak study each step is so much longer in "sync", all else as it was."""
    changed = []
    for one in six_jobs():
        if (one.study, one.ranks, one.source) == ("weak", 4, MEASURED):
            phases = {**one.phase_s, "sync": tuple(value + extra_s for value in one.phase_s["sync"])}
            one = dataclasses.replace(one, step_s=tuple(value + extra_s for value in one.step_s), phase_s=phases)
        changed.append(one)
    return changed


def throughput(number: int = 6) -> list[Record]:
    """Structures per second on two ranks with 1, 2, 4 and 8 structures each: larger batches take less per structure."""
    records = []
    for structures in (1, 2, 4, 8):
        base_s = 0.04 + 0.03 * structures
        shared = {"study": "batch", "mode": "throughput", "question": "How many structures should a rank hold?",
                  "ranks": 2, "base_ranks": 2, "scaled": "structures_per_rank", "scale": float(structures),
                  "base_scale": 1.0, "counts_per_rank": counts(2, structures=structures),
                  "model_flops": 1e9 * structures}  # fmt: skip
        records += [prediction(0.97 * base_s, repeats_planned=number, **shared), *jobs(base_s, number, **shared)]
    return records
