"""Fits on synthetic timings with known constants, noise included; the file they make; refusals."""

from dataclasses import replace

import numpy as np
import pytest

from janus.config import to_mapping
from janus.errors import UserError
from janus.presets import preset
from perfmodel.calibration import (
    error_summary,
    fit_costs,
    fit_matmul,
    fit_rates,
    fit_ring,
    machine_values,
    square_peak,
    step_samples,
)
from perfmodel.host import Host, require_calibrated_here, this_host
from perfmodel.machine import load_machine, write_machine
from perfmodel.operators import FUSED_KINDS, PASS_NAMES
from perfmodel.step_time import OPTIMIZER_PASSES, compute_seconds, rates_for
from perfmodel.workload import Counts
from tests.host_machine import write_host

HOST = Host(cpu="Testcore 1", cores=2, hostname="here")
COUNTS = [Counts(1, 4, 240, 96, 1056), Counts(2, 64, 2726, 786, 8888), Counts(2, 216, 9224, 2664, 30258)]


def repeated(seconds: float, random: np.random.Generator, noise: float = 0.02) -> list[float]:
    """Repeats of a timing: a little noise on all, a burst of other work on a third of them."""
    times = seconds * (1 + noise * random.standard_normal(9))
    times[:3] *= 4
    return times.tolist()


def synthetic_raw(machine, ranks: int) -> dict:
    """Raw timings as janus/calibrate.py makes them, of a host that has exactly the machine file's rates."""
    rates, _ = rates_for(machine, ranks)
    fused = {kind: {name: 1e-10 * (1 + place) for place, name in enumerate(PASS_NAMES)} for kind in FUSED_KINDS}
    rates = replace(rates, fused_s=fused, step_stretch=1.5)
    random = np.random.default_rng(ranks)
    matmul = [
        {"rows": rows, "inputs": n, "outputs": m, "seconds": repeated(
            rates.op_s + 2 * rows * n * m / rates.matmul_flops_per_s
            + 4 * (rows * n + rows * m + n * m) / rates.matmul_bytes_per_s, random)}
        for rows in (64, 1024, 8192, 32768) for n, m in ((7, 32), (32, 32), (64, 64), (256, 256))
    ]  # fmt: skip
    steps = []
    for model, held_out in ((preset("matris-tiny"), False), (preset("matris-moe-tiny"), False),
                            (preset("matris-small"), True)):  # fmt: skip
        for counts in COUNTS:
            phases, _ = compute_seconds(model, [counts], rates, dtype="float32", recompute=False)
            steps.append({
                "model": to_mapping(model), "counts": counts.__dict__, "recompute": False, "held_out": held_out,
                "seconds": {phase: repeated(value, random) for phase, value in phases.items()},
            })  # fmt: skip
    return {
        "ranks": ranks, "threads": 1, "torch": "test", "transport": "gloo", "matmul": matmul, "steps": steps,
        "fused": [{"kind": kind, "pass": name, "elements": elements,
                   "seconds": repeated(elements * fused[kind][name] + 1e-5, random)}
                  for kind in FUSED_KINDS for name in PASS_NAMES for elements in (1e5, 1e6)],
        "optimizer": [{"bytes": OPTIMIZER_PASSES * size, "tensors": tensors, "seconds": repeated(
            OPTIMIZER_PASSES * size / rates.optimizer_bytes_per_s + tensors * 2e-5, random)}
            for size, tensors in ((4e5, 90), (4e6, 160), (1e6, 300))],
        "data": [{"structures": s, "edges": e, "angles": a, "seconds": repeated(1e-4 * s + 1e-7 * e + 1e-8 * a, random)}
                 for s, e, a in ((1, 1000, 10000), (4, 1000, 2000), (2, 9000, 3000), (8, 100, 100))],
        "all_reduce": [] if ranks == 1 else [
            {"bytes": size, "seconds": repeated(2 * (ranks - 1) * 1e-4 + 2 * (ranks - 1) / ranks * size / 1e9, random)}
            for size in (32, 65536, 4194304)],
        "square": [{"rows": 1024, "inputs": 1024, "outputs": 1024, "seconds": repeated(2 * 1024**3 / 6e10, random)}],
        "traffic": [{"name": "triad", "bytes": 12e8, "seconds": repeated(0.1, random)}],
    }  # fmt: skip


@pytest.fixture
def machine(tmp_path):
    return load_machine(write_host(tmp_path / "host.toml"))


def test_costs_are_found_and_never_negative():
    random = np.random.default_rng(0)
    columns = random.uniform(1, 10, (20, 3))
    fit = fit_costs(columns, columns @ np.array([2.0, 0.0, 0.5]))
    assert fit.coefficients == pytest.approx([2.0, 0.0, 0.5], abs=1e-9)
    assert fit.quality < 1e-9
    pulled = fit_costs(columns, columns @ np.array([2.0, -0.1, 0.5]))
    assert (pulled.coefficients >= 0).all()


def test_fit_does_not_depend_on_the_unit_of_a_column():
    columns = np.array([[1e9, 1.0], [5e9, 1.0], [2e10, 1.0]])
    fit = fit_costs(columns, columns @ np.array([1e-11, 1e-3]))
    assert fit.coefficients == pytest.approx([1e-11, 1e-3], rel=1e-6)


def test_matmul_and_ring_constants_come_back(machine):
    raw = synthetic_raw(machine, 2)
    flops_per_s, bytes_per_s, op_s, quality = fit_matmul(raw["matmul"], 4)
    assert flops_per_s == pytest.approx(machine.rates[1].matmul_flops_per_s, rel=0.1)
    assert bytes_per_s == pytest.approx(machine.rates[1].matmul_bytes_per_s, rel=0.1)
    assert op_s == pytest.approx(machine.rates[1].op_s, rel=0.2)
    assert 0 < quality < 0.05
    latency_s, ring_bytes_per_s, _ = fit_ring(raw["all_reduce"], 2)
    assert latency_s == pytest.approx(1e-4, rel=0.1)
    assert ring_bytes_per_s == pytest.approx(1e9, rel=0.1)


def test_rates_predict_the_held_out_steps_of_a_noisy_synthetic_host(machine):
    raw = synthetic_raw(machine, 1)
    rates, quality = fit_rates({**raw, "steps": step_samples(raw)})
    assert rates.step_stretch == pytest.approx(1.5, rel=0.1)
    assert rates.plain_bytes_per_s == pytest.approx(machine.rates[0].plain_bytes_per_s, rel=0.25)
    assert rates.data_edge_s == pytest.approx(1e-7, rel=0.2)
    assert all(0 <= value < 0.1 for value in quality.values())
    _, judgements = machine_values([raw], host=HOST, memory_bytes=8 * 10**9, date="2026-01-01")
    held_out = [judgement for judgement in judgements if judgement.held_out]
    assert len(held_out) == len(COUNTS)
    assert max(abs(judgement.error) for judgement in held_out) < 0.08


def test_fit_and_held_out_errors_are_reported_apart(machine):
    _, judgements = machine_values([synthetic_raw(machine, 1)], host=HOST, memory_bytes=10**9, date="2026-01-01")
    summary = error_summary(judgements)
    assert {"fit_median_abs_error", "held_out_median_abs_error", "fit_bias", "held_out_worst_abs_error"} <= set(summary)


def test_machine_file_of_a_calibration_reads_back(machine, tmp_path):
    raws = [synthetic_raw(machine, ranks) for ranks in (1, 2)]
    values, _ = machine_values(raws, host=HOST, memory_bytes=8 * 10**9, date="2026-01-01")
    write_machine(tmp_path / "made.toml", values)
    made = load_machine(tmp_path / "made.toml")
    assert made.is_calibrated_host
    assert [(rates.ranks, rates.threads) for rates in made.rates] == [(1, 1), (2, 1)]
    assert made.rates[1].all_reduce_bytes_per_s == pytest.approx(1e9, rel=0.1)
    assert made.peak("float32").flops_per_s == pytest.approx(square_peak(raws[0]["square"])[0])
    assert made.quality["rates.ranks_1_threads_1.matmul_flops_per_s"] < 0.1
    assert "bfloat16" not in made.peaks


def test_another_processor_or_number_of_cores_is_refused_with_both_names(machine):
    require_calibrated_here(machine, this_host())
    other = Host(cpu="Othercore 9", cores=64, hostname="there")
    with pytest.raises(UserError, match=r"calibrated on .* this host has 64 cores of Othercore 9 \(there\)"):
        require_calibrated_here(machine, other)
    require_calibrated_here(load_machine("lineshine"), other)
