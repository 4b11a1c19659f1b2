"""Fits on synthetic timings with known constants, noise included; the file they make; refusals and doubts."""

from dataclasses import replace

import numpy as np
import pytest

from janus.config import ExpertConfig, ModelConfig, to_mapping
from janus.errors import UserError
from perfmodel.calibration import (
    error_summary,
    fit_fillings,
    fit_fused,
    fit_grouped,
    fit_matmul,
    fit_ring,
    loader_felt,
    machine_values,
    square_peak,
)
from perfmodel.calibration_collectives import fit_collectives, overlap_efficiency
from perfmodel.calibration_fits import fit_costs
from perfmodel.calibration_noise import CONSTANTS, Noise, distrusted, stage_spreads
from perfmodel.calibration_steps import PAGE_BYTES, page_seconds
from perfmodel.compute_time import OPTIMIZER_PASSES, compute_seconds, scaled_rates
from perfmodel.host import Host, require_calibrated_here, this_host
from perfmodel.machine import FamilyRates, load_machine, write_machine
from perfmodel.operators import FUSED_KINDS, PASS_NAMES
from perfmodel.step_time import rates_for
from perfmodel.workload import Counts, parameter_counts, parameter_tensors
from tests.host_machine import write_host

HOST = Host(cpu="Testcore 1", cores=2, hostname="here")
COUNTS = [Counts(1, 8, 270, 48, 240), Counts(3, 28, 1100, 216, 1104), Counts(1, 192, 6100, 1152, 5760)]
PHASES = ("data", "FE", "FF", "BF_BE", "sync", "optimizer")
OUTSIDE_S, OUTSIDE_TENSOR_S = 1e-3, 5e-6
OPTIMIZER_TENSOR_S, OPTIMIZER_BYTES_PER_S = 3e-5, 2e10
EXPERTS = ExpertConfig(num_experts=6, top_k=2, message_hidden=80, feature_hidden=48)
CASES = tuple(
    (model, held_out)
    for width, blocks, held_out in ((16, 2, False), (32, 4, False), (48, 2, False), (96, 3, False), (64, 2, True))
    for model in (
        ModelConfig(num_blocks=blocks, width=width, cutoff_angstrom=4.5, line_cutoff_angstrom=3.1),
        ModelConfig(family="matris-moe", num_blocks=blocks, width=width, num_heads=4, angle_width=32, experts=EXPERTS,
                    cutoff_angstrom=4.5, line_cutoff_angstrom=3.1),
    )
)  # fmt: skip


def repeated(seconds: float, random: np.random.Generator, noise: float = 0.01, count: int = 9) -> list[float]:
    """Repeats of a timing: a little noise on all, a burst of other work on a third of them."""
    times = seconds * (1 + noise * random.standard_normal(count))
    times[: count // 3] *= 4
    return times.tolist()


def true_rates(machine, ranks: int):
    """What the synthetic host has: a cost per row of every fused operator, and constants by family."""
    rates, _ = rates_for(machine, ranks)
    fused = {kind: {name: 1e-10 * (1 + place) for place, name in enumerate(PASS_NAMES)} for kind in FUSED_KINDS}
    rows = {kind: {name: 5e-9 * (1 + place) for place, name in enumerate(PASS_NAMES)} for kind in FUSED_KINDS}
    own = FamilyRates(product_stretch=1.1, operator_stretch=1.3, plain_bytes_per_s=3e10, fresh_bytes_per_s=1e12,
                      op_s=5e-6, grouped_call_s=0.0, batch_s=2e-3)  # fmt: skip
    return replace(
        rates, fused_s=fused, fused_row_s=rows, grouped_flops_per_s=6e10, grouped_call_s=4e-6,
        families={"matris": own, "matris-moe": replace(own, op_s=3e-6, grouped_call_s=8e-6)},
    )  # fmt: skip


def steps(rates, random: np.random.Generator, stretch: float = 1.0) -> list[dict]:
    found = []
    for model, held_out in CASES:
        for counts in COUNTS:
            phases, _ = compute_seconds(model, [counts], rates, dtype="float32", recompute=False)
            numel, tensors = parameter_counts(model).total, parameter_tensors(model)
            optimizer_s = OPTIMIZER_PASSES * 4 * numel / OPTIMIZER_BYTES_PER_S + tensors * OPTIMIZER_TENSOR_S
            seconds = {phase: stretch * phases.get(phase, 0.0) for phase in PHASES} | {"optimizer": optimizer_s}
            repeats = {phase: np.array(repeated(value, random)) for phase, value in seconds.items()}
            outside_s = OUTSIDE_S + tensors * OUTSIDE_TENSOR_S
            found.append({
                "model": to_mapping(model), "counts": counts.__dict__, "recompute": False, "held_out": held_out,
                "parallel": {}, "tensors": tensors, "numel": numel,
                "seconds": {phase: value.tolist() for phase, value in repeats.items()},
                "faults": {phase: [0] * 9 for phase in PHASES},
                "step_seconds": (sum(repeats.values()) + outside_s).tolist(),
                "slowest_seconds": sum(repeats[phase] for phase in ("FE", "FF", "BF_BE")).tolist(),
            })  # fmt: skip
    return found


def collectives(ranks: int, random: np.random.Generator) -> list[dict]:
    return [
        {"transport": "gloo", "collective": name, "ranks": ranks, "groups": 1, "bytes": size,
         "seconds": (2e-4 + size / 1e9) * (1 + 0.01 * random.standard_normal(9))}
        for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all") for size in (64, 65536, 4194304)
    ] if ranks > 1 else []  # fmt: skip


def synthetic_raw(machine, ranks: int, *, crowded: bool = False) -> dict:
    """Raw timings as janus/calibrate.py makes them, of a host that has exactly ``true_rates``."""
    rates, random = true_rates(machine, 1), np.random.default_rng(ranks)
    raw = {
        "ranks": ranks, "threads": 1, "torch": "test", "transport": "gloo", "device": {"type": "cpu"},
        "crowded": crowded, "steps": steps(rates, random, 2.1 if crowded else 1.0), "start_up_s": 2.0 + ranks,
        "collectives": collectives(ranks, random),
        "overlap": [{"transport": "gloo", "alone_s": [0.01] * 5, "compute_s": [0.02] * 5, "both_s": [0.024] * 5}],
        "prefetching": [{"load_s": [0.002] * 5, "with_s": [0.103] * 5, "without_s": [0.1] * 5}],
    }  # fmt: skip
    if crowded:
        return raw
    moved = [(r, n, m, 4 * (r * n + r * m + n * m)) for r in (64, 1024, 8192, 32768)
             for n, m in ((7, 32), (32, 32), (64, 64), (256, 256))]  # fmt: skip
    raw["matmul"] = [
        {"rows": r, "inputs": n, "outputs": m, "seconds": repeated(
            1e-6 + 2 * r * n * m / rates.matmul_flops_per_s + size / rates.matmul_bytes_per_s, random)}
        for r, n, m, size in moved
    ]  # fmt: skip
    raw["grouped"] = [
        {"rows": each, "experts": x, "inputs": n, "outputs": 2 * n, "seconds": repeated(
            1e-6 + 4 * x * each * n * n / 6e10 + x * 4e-6
            + 4 * (3 * x * each * n + 2 * x * n * n) / rates.matmul_bytes_per_s, random)}
        for n in (32, 128) for x, each in ((4, 16), (4, 256), (16, 16), (16, 128))
    ]  # fmt: skip
    raw["fused"] = [
        {"kind": kind, "pass": name, "rows": r, "channels": c, "seconds": repeated(
            r * c * rates.fused_s[kind][name] + r * rates.fused_row_s[kind][name] + 1e-5, random)}
        for kind in FUSED_KINDS for name in PASS_NAMES for r, c in ((10_000, 16), (100_000, 16), (50_000, 128))
    ]  # fmt: skip
    raw["data"] = [
        {"structures": s, "edges": e, "angles": a, "seconds": repeated(1e-4 * s + 1e-7 * e + 1e-8 * a, random)}
        for s, e, a in ((1, 1000, 10000), (4, 1000, 2000), (2, 9000, 3000), (8, 100, 100))
    ]
    raw["square"] = [{"rows": 1024, "inputs": 1024, "outputs": 1024, "seconds": repeated(2 * 1024**3 / 6e10, random)}]
    raw["traffic"] = [{"name": "triad", "bytes": 12e8, "seconds": repeated(0.1, random)},
                      {"name": "pages", "bytes": 1000 * PAGE_BYTES, "seconds": [2e-3] * 5}]  # fmt: skip
    return raw


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return load_machine(write_host(tmp_path_factory.mktemp("host") / "host.toml"))


@pytest.fixture(scope="module")
def raws(machine):
    return [synthetic_raw(machine, 1), synthetic_raw(machine, 2), synthetic_raw(machine, 4, crowded=True)]


@pytest.fixture(scope="module")
def made(raws):
    return machine_values(raws, host=HOST, memory_bytes=8 * 10**9, date="2026-01-01")


def test_costs_are_found_and_never_negative():
    random = np.random.default_rng(0)
    columns = random.uniform(1, 10, (20, 3))
    fit = fit_costs(columns, columns @ np.array([2.0, 0.0, 0.5]))
    assert fit.coefficients == pytest.approx([2.0, 0.0, 0.5], abs=1e-9)
    assert fit.quality < 1e-9
    pulled = fit_costs(columns, columns @ np.array([2.0, -0.1, 0.5]))
    assert (pulled.coefficients >= 0).all()


def test_a_cost_is_never_fitted_below_its_least():
    columns = np.random.default_rng(5).uniform(0.5, 2.0, (30, 3))
    seconds = columns @ np.array([0.1, 1.0, 0.5])
    fit = fit_costs(columns, seconds, least=[0.5, 0.0, 0.0])
    assert fit.coefficients[0] == pytest.approx(0.5)
    assert (fit.coefficients[1:] >= 0).all()
    assert 0 < fit.quality < 0.2
    assert fit_costs(columns, columns @ np.array([0.7, 1.0, 0.5]), [0.5, 0, 0]).coefficients == pytest.approx(
        [0.7, 1, 0.5]
    )


def test_fit_does_not_depend_on_the_unit_of_a_column():
    columns = np.array([[1e9, 1.0], [5e9, 1.0], [2e10, 1.0]])
    fit = fit_costs(columns, columns @ np.array([1e-11, 1e-3]))
    assert fit.coefficients == pytest.approx([1e-11, 1e-3], rel=1e-6)


def test_constants_of_kernels_come_back(machine, raws):
    rates, raw = true_rates(machine, 1), raws[1]
    products = fit_matmul(raw["matmul"], 4)
    assert products.flops_per_s == pytest.approx(rates.matmul_flops_per_s, rel=0.05)
    assert products.bytes_per_s == pytest.approx(rates.matmul_bytes_per_s, rel=0.05)
    assert products.call_s == pytest.approx(1e-6, rel=0.1)
    assert 0 < products.quality < 0.05
    flops_per_s, call_s, _ = fit_grouped(raw["grouped"], products.bytes_per_s, 4)
    assert flops_per_s == pytest.approx(6e10, rel=0.05)
    assert call_s == pytest.approx(4e-6, rel=0.1)
    latency_s, bytes_per_s, _ = fit_ring([c for c in raw["collectives"] if c["collective"] == "all_reduce"], 2)
    assert latency_s == pytest.approx(1e-4, rel=0.05)
    assert bytes_per_s == pytest.approx(1e9, rel=0.05)


def test_what_a_row_costs_is_told_from_what_an_element_costs(machine, raws):
    rates = true_rates(machine, 1)
    by_element, by_row, quality = fit_fused(raws[0]["fused"])
    for name in PASS_NAMES:
        assert by_element["gated_norm"][name] == pytest.approx(rates.fused_s["gated_norm"][name], rel=0.1)
        assert by_row["gated_norm"][name] == pytest.approx(rates.fused_row_s["gated_norm"][name], rel=0.1)
    assert max(quality.values()) < 0.05


def test_constants_of_steps_predict_held_out_models_of_other_widths(machine, raws):
    """Also where a third of the repeats were disturbed: narrow models, whose rows cost most, as well as wide ones."""
    alone, _, crowded = fit_fillings(raws)
    true = true_rates(machine, 1)
    for model, held_out in CASES:
        for counts in COUNTS if held_out else ():
            for fitted, expected in ((alone.rates, true), (crowded.rates, scaled_rates(true, 2.1, 4))):
                found, wanted = (
                    sum(compute_seconds(model, [counts], rates, dtype="float32", recompute=False)[0].values())
                    for rates in (fitted, expected)
                )
                assert found == pytest.approx(wanted, rel=0.04)
    assert alone.rates.step_s == pytest.approx(OUTSIDE_S, rel=0.1)
    assert alone.rates.step_tensor_s == pytest.approx(OUTSIDE_TENSOR_S, rel=0.1)
    assert alone.rates.optimizer_tensor_s == pytest.approx(OPTIMIZER_TENSOR_S, rel=0.1)
    assert alone.rates.optimizer_bytes_per_s == pytest.approx(OPTIMIZER_BYTES_PER_S, rel=0.2)
    assert alone.rates.data_edge_s == pytest.approx(1e-7, rel=0.1)
    assert crowded.rates.op_s / alone.rates.op_s == pytest.approx(2.1, rel=0.03)


def test_pages_cost_what_repeats_that_met_more_of_them_took_longer(raws):
    step = {phase: [0.01, 0.012, 0.02] for phase in ("FE", "FF", "BF_BE")}
    faults = {phase: [0, 2000, 10000] for phase in step}
    raw = raws[0] | {"steps": [{"seconds": step, "faults": faults}]}
    assert page_seconds(raw) == pytest.approx(1e-6)
    assert page_seconds(raw | {"steps": []}) == pytest.approx(2e-6)  # none: the first touch alone
    assert page_seconds(raw | {"traffic": []}) == 0.0


def test_collectives_are_lines_where_lines_fit_and_knots_where_not():
    straight = [{"transport": "mpi", "collective": "all_gather", "ranks": 2, "groups": 2, "bytes": size,
                 "seconds": [1e-5 + size / 1e9] * 3} for size in (64, 4096, 1048576)]  # fmt: skip
    (line,) = fit_collectives(straight)
    assert (line.latency_s, line.bytes_per_s) == (pytest.approx(1e-5), pytest.approx(1e9))
    assert line.knots_bytes == ()
    assert line.ranks_on_host == 4
    bent = [sample | {"seconds": [1e-5 + (sample["bytes"] / 1e6) ** 2] * 3} for sample in straight]
    (kept,) = fit_collectives(bent)
    assert kept.seconds([64, 4096, 1048576]) == pytest.approx([sample["seconds"][0] for sample in bent])
    assert kept.seconds(2 * 1048576) > 1.9 * kept.seconds(1048576)


def test_overlap_is_the_hidden_part_of_the_shorter():
    sample = {"alone_s": [0.010], "compute_s": [0.020], "both_s": [0.024]}
    assert overlap_efficiency(sample)[0] == pytest.approx(0.6)
    assert overlap_efficiency(sample | {"both_s": [0.05]})[0] == 0.0
    assert overlap_efficiency(sample | {"both_s": [0.02]})[0] == pytest.approx(1.0)


def test_loader_is_felt_by_the_step_beside_it():
    felt, _ = loader_felt({"load_s": [0.002], "with_s": [0.103, 0.203], "without_s": [0.1, 0.2]})
    assert felt == pytest.approx(1.5)


def test_fit_and_held_out_errors_are_reported_apart(made):
    values, judgements = made
    summary = error_summary(judgements)
    assert {"fit_median_abs_error", "held_out_90th_abs_error", "fit_bias", "held_out_worst_abs_error"} <= set(summary)
    assert summary["held_out_median_abs_error"] < 0.04
    assert values["provenance"]["held_out_bias"] == summary["held_out_bias"]
    assert {entry.ranks for entry in judgements} == {1, 2, 4}


def test_machine_file_of_a_calibration_reads_back(made, raws, tmp_path):
    write_machine(tmp_path / "made.toml", made[0])
    machine = load_machine(tmp_path / "made.toml")
    assert machine.is_calibrated_host
    assert [(rates.ranks, rates.threads) for rates in machine.rates] == [(1, 1), (2, 1), (4, 1)]
    assert machine.rates[1].all_reduce_bytes_per_s == pytest.approx(1e9, rel=0.1)
    assert machine.rates[1].overlap_efficiency == pytest.approx(0.6)
    assert machine.rates[0].families["matris"].op_s > 0
    assert machine.rates[0].fused_row_s["gated_norm"]["double"] > 0
    assert machine.peak("float32").flops_per_s == pytest.approx(square_peak(raws[0]["square"])[0])
    assert machine.quality["rates.ranks_1_threads_1.families.matris.op_s"] < 0.1
    assert machine.start_up_s == {1: 3.0, 2: 4.0, 4: 6.0}
    assert {(entry.ranks, entry.collective) for entry in machine.collectives if entry.transport == "gloo"} == {
        (ranks, name) for ranks in (2, 4) for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    }
    assert "bfloat16" not in machine.peaks


def test_a_file_without_the_newer_constants_still_reads(machine):
    assert machine.collectives == ()
    assert machine.start_up_s == {}
    assert machine.rates[0].families == {}
    assert machine.rates[0].overlap_efficiency is None
    assert machine.rates[0].step_s is None


def test_a_busy_host_is_named_with_what_it_leaves_in_doubt(raws):
    quiet = stage_spreads([raw | {"steps": [step | {"step_seconds": [1.0] * 9} for step in raw["steps"]]}
                           for raw in raws])  # fmt: skip
    assert distrusted(quiet | {"kernels": 0.01, "loading": 0.01}, Noise(load_before=0.1, other_share=0.01)) == []
    noisy = Noise(load_before=2.0, other_share=0.3)
    assert CONSTANTS["steps"] in distrusted(quiet, noisy)
    assert len(noisy.sentences(cores=2)) == 2
    assert Noise(load_before=0.1).sentences(cores=2) == []
    assert CONSTANTS["loading"] in distrusted(quiet | {"loading": 0.5}, None)


def test_another_processor_or_number_of_cores_is_refused_with_both_names(machine):
    require_calibrated_here(machine, this_host())
    other = Host(cpu="Othercore 9", cores=64, hostname="there")
    with pytest.raises(UserError, match=r"calibrated on .* this host has 64 cores of Othercore 9 \(there\)"):
        require_calibrated_here(machine, other)
    require_calibrated_here(load_machine("lineshine"), other)
    with pytest.raises(UserError, match="calibrated on GPUs Testcard"):
        require_calibrated_here(replace(machine, provenance=machine.provenance | {"gpu": "Testcard"}))
