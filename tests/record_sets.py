"""Record sets written by hand for the tests of studies and reports: numbers one can check on paper."""

from __future__ import annotations

from typing import Any

from scaling_studies.records import FAILED, MEASURED, PREDICTED, Peak, RankCounts, Record

CORE_PEAK = 50e9
PHASES = {"data": 0.05, "FE": 0.15, "FF": 0.2, "BF_BE": 0.45, "sync": 0.1, "optimizer": 0.04}  # shares of a step


def counts(ranks: int, edges: int = 1000) -> tuple[RankCounts, ...]:
    return tuple(RankCounts(structures=2, atoms=60, edges=edges, bonds=400, angles=3000) for _ in range(ranks))


def record(**changes: Any) -> Record:
    """A good measured record of 1 rank with three steps of about 0.1 s, with the given fields changed."""
    step_s = changes.get("step_s", (0.1, 0.102, 0.099))
    ranks = changes.get("ranks", 1)
    values: dict[str, Any] = {
        "source": MEASURED, "method": "by hand", "study": "weak", "question": "How does it scale?", "mode": "weak",
        "cell_id": f"{changes.get('study', 'weak')}{ranks:04d}", "repeats_planned": 2, "ranks": ranks, "base_ranks": 1,
        "model": "matris-tiny", "dtype": "float32", "machine": "testhost", "layout": {"unit": 1, "replicas": ranks},
        "attempt": 1, "counts_per_rank": counts(ranks), "warm_up_step_s": (0.3, 0.12), "step_s": step_s,
        "phase_s": {name: tuple(share * value for value in step_s) for name, share in PHASES.items()},
        "start_up_s": 1.5, "wall_s": 3.0, "model_flops": 1e9 * ranks, "executed_flops": 1.2e9 * ranks,
        "peak": Peak(flops_per_s=CORE_PEAK * min(ranks, 2), name="matrix product, one core", dtype="float32",
                     source="measured by janus calibrate"),
        "memory_bytes": 300 * 2**20, "oversubscribed": ranks > 2,
        "provenance": {"git_revision": "abc1234", "host": "testhost", "versions": {"torch": "2.13.0"}},
    }  # fmt: skip
    return Record(**{**values, **changes})


def prediction(step_s: float, **changes: Any) -> Record:
    """The predicted record of the same cell."""
    phases = {name: (share * step_s,) for name, share in PHASES.items()}
    phases["BF"], phases["BE"] = (0.25 * step_s,), (0.2 * step_s,)
    del phases["BF_BE"]
    fixed = {"source": PREDICTED, "method": "perfmodel, analytic", "attempt": 0, "warm_up_step_s": (),
             "phase_s": phases, "oversubscribed": False, "provenance": {}}  # fmt: skip
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
            shared = {"study": study, "mode": mode, "ranks": ranks, "model_flops": flops}
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
            facts={"nodes": max(1, 4**power // 2), "assumptions": ["assumed: full bisection"]},
            repeats_planned=0, counts_per_rank=(),
        )
        for power in range(8)
    ]  # fmt: skip
