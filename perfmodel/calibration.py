"""Fits a machine's constants from raw timings. Pure functions of numbers; it measures nothing (``janus/calibrate.py``).

Every fit is linear least squares on relative errors with non-negative coefficients, because each constant is a cost:
t = sum_i c_i x_i with c_i >= 0, minimising sum ((t_pred - t) / t)^2. ``quality`` is the median of |t_pred - t| / t
over the timings fitted. Of repeated timings the lower quartile is taken: other work on the host only ever adds
time, and with a median a burst of it that lasts for half of the repeats would become a constant of the machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus.config import ModelConfig, from_mapping
from perfmodel.host import Host
from perfmodel.machine import RATE_NAMES, SCHEMA, Rates
from perfmodel.operators import FUSED_KINDS, PASS_NAMES
from perfmodel.step_time import COMPUTE_PHASES as STEP_PHASES
from perfmodel.step_time import compute_seconds, fresh_memory_bytes
from perfmodel.workload import ITEM_BYTES, Counts, PhaseWork, phase_work

Numbers = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Fit:
    """coefficients [k] >= 0 of the columns, and quality: median relative residual of the fitted timings."""

    coefficients: np.ndarray
    quality: float


def fit_costs(columns: Numbers, seconds: Numbers) -> Fit:
    """Non-negative c minimising the relative residuals of columns [n,k] @ c against seconds [n] (> 0).

    The best of all subsets of columns whose plain least-squares solution is positive: exact for the few columns here.
    """
    columns, seconds = np.asarray(columns, dtype=float), np.asarray(seconds, dtype=float)
    assert columns.ndim == 2, f"columns of shape {columns.shape}"
    assert len(columns) == len(seconds), f"{len(columns)} rows of columns, {len(seconds)} timings"
    assert (seconds > 0).all(), f"timings must be above 0, smallest {seconds.min()}"
    target = np.ones(len(seconds))
    weighted = columns / seconds[:, None]
    scale = np.maximum(np.abs(weighted).max(axis=0), np.finfo(float).tiny)
    weighted = weighted / scale
    num_columns = columns.shape[1]
    best, best_residual = np.zeros(num_columns), float((target**2).sum())
    for size in range(1, num_columns + 1):
        for chosen in itertools.combinations(range(num_columns), size):
            part = weighted[:, chosen]
            solution = np.linalg.lstsq(part, target, rcond=None)[0]
            residual = float(((part @ solution - target) ** 2).sum())
            if (solution >= 0).all() and residual < best_residual * (1 - 1e-12):
                best = np.zeros(num_columns)
                best[list(chosen)], best_residual = solution, residual
    quality = float(np.median(np.abs(weighted @ best - target)))
    return Fit(coefficients=best / scale, quality=quality)


def typical_s(sample: Mapping[str, Any]) -> float:
    """Lower quartile of a sample's repeated timings, seconds."""
    return quiet_s(sample["seconds"])


def quiet_s(seconds: Sequence[float]) -> float:
    """Lower quartile of repeated timings: the time without most of other work's disturbance."""
    return float(np.percentile(seconds, 25))


def spread(seconds: Sequence[float]) -> float:
    """Half the interquartile range over the median: the noise of repeated timings."""
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return float((high - low) / 2 / middle)


def _rate(seconds_per_item: float) -> float:
    """Items per second of a fitted cost; a cost that the timings do not show is practically free."""
    return 1.0 / max(float(seconds_per_item), 1e-18)


def fit_matmul(samples: Sequence[Mapping[str, Any]], item_bytes: int) -> tuple[float, float, float, float]:
    """(flops_per_s, bytes_per_s, op_s, quality) of t = op_s + 2Rnm/F + item (Rn + Rm + nm)/B.

    samples: {"rows", "inputs", "outputs", "seconds": [...]}.
    """
    columns, seconds = [], []
    for sample in samples:
        rows, inputs, outputs = sample["rows"], sample["inputs"], sample["outputs"]
        moved = item_bytes * (rows * inputs + rows * outputs + inputs * outputs)
        columns.append([2.0 * rows * inputs * outputs, moved, 1.0])
        seconds.append(typical_s(sample))
    fit = fit_costs(np.array(columns), np.array(seconds))
    flop_s, byte_s, op_s = fit.coefficients
    return _rate(flop_s), _rate(byte_s), float(op_s), fit.quality


def square_peak(samples: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """(FLOP/s, spread) of the fastest product among the samples: the measured peak of the host."""
    best = max(samples, key=lambda s: 2.0 * s["rows"] * s["inputs"] * s["outputs"] / typical_s(s))
    return 2.0 * best["rows"] * best["inputs"] * best["outputs"] / typical_s(best), spread(best["seconds"])


def fit_ring(samples: Sequence[Mapping[str, Any]], num_ranks: int) -> tuple[float, float, float]:
    """(latency_s, bytes_per_s, quality) of an all-reduce t = 2(n-1) latency + 2(n-1)/n bytes / B.

    samples: {"bytes", "seconds": [...]}; whatever algorithm the library uses, in the ring's terms.
    """
    assert num_ranks > 1, f"an all-reduce of {num_ranks} rank has no cost to fit"
    rounds = 2.0 * (num_ranks - 1)
    columns = np.array([[rounds, rounds / num_ranks * sample["bytes"]] for sample in samples])
    fit = fit_costs(columns, np.array([typical_s(sample) for sample in samples]))
    return float(fit.coefficients[0]), _rate(fit.coefficients[1]), fit.quality


def fit_linear(columns: Numbers, seconds: Numbers) -> tuple[list[float], float]:
    """Plain costs per column with their quality."""
    fit = fit_costs(columns, seconds)
    return [float(value) for value in fit.coefficients], fit.quality


@dataclass(frozen=True, kw_only=True)
class StepSample:
    """One measured training step of a known model on known counts: seconds per phase."""

    model: ModelConfig
    counts: Counts
    recompute: bool
    phase_s: dict[str, float]
    held_out: bool = False


def fit_fused(samples: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Seconds per element by kind and pass, and the quality by "kind.pass".

    samples: {"kind", "pass", "elements", "seconds": [...]} of fused operators timed alone.
    """
    rates: dict[str, dict[str, float]] = {kind: {} for kind in FUSED_KINDS}
    quality = {}
    for kind in FUSED_KINDS:
        for name in PASS_NAMES:
            chosen = [sample for sample in samples if sample["kind"] == kind and sample["pass"] == name]
            assert chosen, f"no timing of {kind} {name}"
            columns = np.array([[sample["elements"], 1.0] for sample in chosen])
            fit = fit_costs(columns, np.array([typical_s(sample) for sample in chosen]))
            rates[kind][name] = float(fit.coefficients[0])  # the fixed cost per call is part of op_s
            quality[f"{kind}.{name}"] = fit.quality
    return rates, quality


def known_s(work: PhaseWork, rates: Mapping[str, Any]) -> float:
    """Seconds of the products and fused operators of a phase: what other fits have settled."""
    seconds = work.flops / rates["matmul_flops_per_s"] + work.product_bytes / rates["matmul_bytes_per_s"]
    for kind, passes in work.fused.items():
        seconds += sum(elements * rates["fused_s"][kind][name] for name, elements in passes.items())
    return seconds


def fit_remainder(
    samples: Sequence[StepSample], rates: Mapping[str, Any], dtype: str
) -> tuple[dict[str, float], float]:
    """({"step_stretch", "plain_bytes_per_s", "fresh_bytes_per_s", "op_s", "batch_s"}, quality) from steps of models.

    A phase takes step_stretch x (its products and fused operators as timed alone) + plain bytes / rate +
    fresh bytes / rate + launches x op_s + batch_s. The stretch is what they lose inside a step: cold caches, other
    ranks.
    """
    columns, measured = [], []
    item_bytes = ITEM_BYTES[dtype]
    for sample in samples:
        work = phase_work(sample.model, sample.counts, recompute=sample.recompute, item_bytes=item_bytes)
        fresh_bytes = fresh_memory_bytes(sample.model, sample.counts, recompute=sample.recompute, dtype=dtype)
        for phase, parts in STEP_PHASES.items():
            columns.append([
                sum(known_s(work[part], rates) for part in parts),
                sum(work[part].plain_bytes for part in parts),
                fresh_bytes[phase],
                sum(work[part].launches for part in parts),
                1.0,
            ])  # fmt: skip
            measured.append(sample.phase_s[phase])
    fit = fit_costs(np.array(columns), np.array(measured))
    stretch, byte_s, fresh_s, op_s, batch_s = fit.coefficients
    return {
        "step_stretch": float(stretch),
        "plain_bytes_per_s": _rate(byte_s),
        "fresh_bytes_per_s": _rate(fresh_s),
        "op_s": float(op_s),
        "batch_s": float(batch_s),
    }, fit.quality


def fit_rates(setting: Mapping[str, Any], dtype: str = "float32") -> tuple[Rates, dict[str, float]]:
    """Rates of one way of filling the node, and the quality of each constant by its name in Rates.

    setting: {"ranks", "threads", "matmul": [...], "fused": [...], "all_reduce": [...], "optimizer": [...],
    "data": [...], "steps": [StepSample, ...]} of raw timings; held-out steps are not fitted.
    """
    item_bytes = ITEM_BYTES[dtype]
    flops_per_s, bytes_per_s, _, matmul_quality = fit_matmul(setting["matmul"], item_bytes)
    fused_s, fused_quality = fit_fused(setting["fused"])
    settled = {"matmul_flops_per_s": flops_per_s, "matmul_bytes_per_s": bytes_per_s, "fused_s": fused_s}
    fitted = [sample for sample in setting["steps"] if not sample.held_out]
    remainder, step_quality = fit_remainder(fitted, settled, dtype)
    optimizer, optimizer_quality = fit_linear(
        np.array([[sample["bytes"], sample["tensors"]] for sample in setting["optimizer"]]),
        np.array([typical_s(sample) for sample in setting["optimizer"]]),
    )
    data, data_quality = fit_linear(
        np.array([[sample["structures"], sample["edges"], sample["angles"]] for sample in setting["data"]]),
        np.array([typical_s(sample) for sample in setting["data"]]),
    )
    quality = {
        "matmul_flops_per_s": matmul_quality, "matmul_bytes_per_s": matmul_quality,
        **dict.fromkeys(remainder, step_quality),
        "optimizer_bytes_per_s": optimizer_quality, "optimizer_tensor_s": optimizer_quality,
        **dict.fromkeys(("data_structure_s", "data_edge_s", "data_angle_s"), data_quality),
        **{f"fused_s.{name}": value for name, value in fused_quality.items()},
    }  # fmt: skip
    latency_s = ring_bytes_per_s = None
    if setting["ranks"] > 1:
        latency_s, ring_bytes_per_s, ring_quality = fit_ring(setting["all_reduce"], setting["ranks"])
        quality |= {"all_reduce_latency_s": ring_quality, "all_reduce_bytes_per_s": ring_quality}
    rates = Rates(
        ranks=setting["ranks"], threads=setting["threads"],
        matmul_flops_per_s=flops_per_s, matmul_bytes_per_s=bytes_per_s, fused_s=fused_s, **remainder,
        optimizer_bytes_per_s=_rate(optimizer[0]), optimizer_tensor_s=optimizer[1],
        data_structure_s=data[0], data_edge_s=data[1], data_angle_s=data[2],
        all_reduce_latency_s=latency_s, all_reduce_bytes_per_s=ring_bytes_per_s,
    )  # fmt: skip
    return rates, quality


def step_samples(raw: Mapping[str, Any]) -> list[StepSample]:
    """The steps of one filling's raw timings, as samples."""
    return [
        StepSample(
            model=from_mapping(ModelConfig, step["model"]), counts=Counts(**step["counts"]),
            recompute=step["recompute"], held_out=step["held_out"],
            phase_s={phase: quiet_s(seconds) for phase, seconds in step["seconds"].items()},
        )
        for step in raw["steps"]
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One measured step beside its prediction from the fitted rates. held_out: it took no part in the fit."""

    ranks: int
    model: str
    angles: float
    held_out: bool
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_s / self.measured_s - 1


def judge(rates: Rates, samples: Sequence[StepSample], dtype: str = "float32") -> list[Judgement]:
    """Predict every measured step (FE + FF + BF + BE) with the rates."""
    result = []
    for sample in samples:
        phases, _ = compute_seconds(sample.model, [sample.counts], rates, dtype=dtype, recompute=sample.recompute)
        result.append(Judgement(
            ranks=rates.ranks, model=f"{sample.model.family} {sample.model.num_blocks} x {sample.model.width}",
            angles=sample.counts.angles, held_out=sample.held_out,
            measured_s=sum(sample.phase_s.values()), predicted_s=sum(phases.values()),
        ))  # fmt: skip
    return result


def error_summary(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Median and worst absolute error of fitted and of held-out steps, and the bias (median signed error) of both."""
    summary = {}
    for name, held_out in (("fit", False), ("held_out", True)):
        errors = [judgement.error for judgement in judgements if judgement.held_out == held_out]
        if errors:
            summary[f"{name}_median_abs_error"] = float(np.median(np.abs(errors)))
            summary[f"{name}_worst_abs_error"] = float(np.max(np.abs(errors)))
            summary[f"{name}_bias"] = float(np.median(errors))
    return summary


def _quantity(value: float, source: str, quality: float | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"value": float(value) if not isinstance(value, int) else value, "source": source}
    if quality is not None:
        entry["quality"] = round(float(quality), 4)
    return entry


def _rates_table(rates: Rates, quality: Mapping[str, float]) -> dict[str, Any]:
    source = "fitted to timings of this host"
    table: dict[str, Any] = {
        "ranks": _quantity(rates.ranks, "filling measured"), "threads": _quantity(rates.threads, "filling measured"),
    }  # fmt: skip
    for name in RATE_NAMES:
        table[name] = _quantity(getattr(rates, name), source, quality.get(name))
    for name in ("all_reduce_latency_s", "all_reduce_bytes_per_s"):
        if getattr(rates, name) is not None:
            table[name] = _quantity(getattr(rates, name), source, quality.get(name))
    assert rates.fused_s is not None, "a calibration times the fused operators"
    table["fused_s"] = {
        kind: {name: _quantity(value, source, quality.get(f"fused_s.{kind}.{name}")) for name, value in passes.items()}
        for kind, passes in rates.fused_s.items()
    }
    return table


def machine_values(
    raws: Sequence[Mapping[str, Any]], *, host: Host, memory_bytes: int, date: str
) -> tuple[dict[str, Any], list[Judgement]]:
    """The values of a host's machine file from the raw timings of its fillings, and every step judged.

    raws: one per filling, the single rank first (it has the square products and the uncontended memory traffic).
    """
    alone = next(raw for raw in raws if raw["ranks"] == 1)
    peak, peak_spread = square_peak(alone["square"])
    triad = next(sample for sample in alone["traffic"] if sample["name"] == "triad")
    rates_tables, judgements = {}, []
    for raw in raws:
        samples = step_samples(raw)
        rates, quality = fit_rates({**raw, "steps": samples})
        rates_tables[rates.label] = _rates_table(rates, quality)
        judgements += judge(rates, samples)
    values = {
        "schema": SCHEMA,
        "name": f"host-{host.hostname}",
        "description": f"{host.cores} cores of {host.cpu}, measured by janus calibrate on {date}",
        "device_name": f"one core of {host.cpu}",
        "nodes": _quantity(1, "this host"),
        "devices_per_node": _quantity(host.cores, "cores this process may use"),
        "device": {
            "memory_bytes_per_node": _quantity(memory_bytes, "total memory as the operating system gives it"),
            "memory_bytes_per_s": _quantity(
                triad["bytes"] / typical_s(triad), "measured: triad of one rank", spread(triad["seconds"])
            ),
            "peaks": {"float32": {
                **_quantity(peak, "measured: largest square product, one core, float32, janus calibrate", peak_spread),
                "name": "measured square matrix product, one core",
            }},
        },
        "rates": rates_tables,
        "provenance": {
            "cpu": host.cpu, "cores": host.cores, "hostname": host.hostname, "date": date,
            "torch": str(alone["torch"]), "transport": str(raws[-1]["transport"]), **error_summary(judgements),
        },
    }  # fmt: skip
    return values, judgements
