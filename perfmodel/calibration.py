"""Fits a machine's constants from raw timings. Pure functions of numbers; it measures nothing (``janus/calibrate.py``).

Every fit is linear least squares on relative errors with non-negative coefficients, because each constant is a cost:
t = sum_i c_i x_i with c_i >= 0, minimising sum ((t_pred - t) / t)^2. ``quality`` is the median of |t_pred - t| / t
over the timings fitted. Timings are medians of repeats.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus.config import ModelConfig
from perfmodel.machine import Rates
from perfmodel.operators import FUSED_KINDS, PASS_NAMES
from perfmodel.workload import ITEM_BYTES, Counts, PhaseWork, phase_work

Numbers = np.ndarray
STEP_PHASES = {"FE": ("FE",), "FF": ("FF",), "BF_BE": ("BF", "BE")}  # as the trainer times them


@dataclass(frozen=True, kw_only=True)
class Fit:
    """coefficients [k] >= 0 of the columns, and quality: median relative residual of the fitted timings."""

    coefficients: np.ndarray
    quality: float


def fit_costs(columns: Numbers, seconds: Numbers, offset: Numbers | None = None) -> Fit:
    """Non-negative c minimising the relative residuals of offset + columns [n,k] @ c against seconds [n] (> 0).

    offset [n]: seconds already accounted for. quality is of the whole, offset included.
    The best of all subsets of columns whose plain least-squares solution is positive: exact for the few columns here.
    """
    columns, seconds = np.asarray(columns, dtype=float), np.asarray(seconds, dtype=float)
    assert columns.ndim == 2 and len(columns) == len(seconds), f"{columns.shape} columns, {len(seconds)} timings"
    assert (seconds > 0).all(), f"timings must be above 0, smallest {seconds.min()}"
    target = np.ones(len(seconds)) if offset is None else 1 - np.asarray(offset, dtype=float) / seconds
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


def median_s(sample: Mapping[str, Any]) -> float:
    """Median of a sample's repeated timings."""
    return float(np.median(sample["seconds"]))


def spread(seconds: Sequence[float]) -> float:
    """Half the interquartile range over the median: the noise of repeated timings."""
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return float((high - low) / 2 / middle)


def _rate(seconds_per_item: float) -> float:
    """Items per second of a fitted cost; a cost that the timings do not show is practically free."""
    return 1.0 / max(seconds_per_item, 1e-18)


def fit_matmul(samples: Sequence[Mapping[str, Any]], item_bytes: int) -> tuple[float, float, float, float]:
    """(flops_per_s, bytes_per_s, op_s, quality) of t = op_s + 2Rnm/F + item (Rn + Rm + nm)/B.

    samples: {"rows", "inputs", "outputs", "seconds": [...]}.
    """
    columns, seconds = [], []
    for sample in samples:
        rows, inputs, outputs = sample["rows"], sample["inputs"], sample["outputs"]
        moved = item_bytes * (rows * inputs + rows * outputs + inputs * outputs)
        columns.append([2.0 * rows * inputs * outputs, moved, 1.0])
        seconds.append(median_s(sample))
    fit = fit_costs(np.array(columns), np.array(seconds))
    flop_s, byte_s, op_s = fit.coefficients
    return _rate(flop_s), _rate(byte_s), float(op_s), fit.quality


def square_peak(samples: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """(FLOP/s, spread) of the fastest product among the samples: the measured peak of the host."""
    best = max(samples, key=lambda s: 2.0 * s["rows"] * s["inputs"] * s["outputs"] / median_s(s))
    return 2.0 * best["rows"] * best["inputs"] * best["outputs"] / median_s(best), spread(best["seconds"])


def fit_ring(samples: Sequence[Mapping[str, Any]], num_ranks: int) -> tuple[float, float, float]:
    """(latency_s, bytes_per_s, quality) of an all-reduce t = 2(n-1) latency + 2(n-1)/n bytes / B.

    samples: {"bytes", "seconds": [...]}; whatever algorithm the library uses, in the ring's terms.
    """
    assert num_ranks > 1, f"an all-reduce of {num_ranks} rank has no cost to fit"
    rounds = 2.0 * (num_ranks - 1)
    columns = np.array([[rounds, rounds / num_ranks * sample["bytes"]] for sample in samples])
    fit = fit_costs(columns, np.array([median_s(sample) for sample in samples]))
    return float(fit.coefficients[0]), _rate(fit.coefficients[1]), fit.quality


def fit_linear(columns: Numbers, seconds: Numbers) -> tuple[list[float], float]:
    """Plain costs per column with their quality."""
    fit = fit_costs(columns, seconds)
    return [float(value) for value in fit.coefficients], fit.quality


@dataclass(frozen=True, kw_only=True)
class StepSample:
    """One measured training step of a known model on known counts: median seconds per phase."""

    model: ModelConfig
    counts: Counts
    recompute: bool
    phase_s: dict[str, float]
    held_out: bool = False


def fit_fused(samples: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Seconds per element by kind and pass, and the quality by "kind.pass": half the range of the sizes' rates.

    samples: {"kind", "pass", "elements", "seconds": [...]} of fused operators timed alone.
    """
    rates: dict[str, dict[str, float]] = {kind: {} for kind in FUSED_KINDS}
    quality = {}
    for kind in FUSED_KINDS:
        for name in PASS_NAMES:
            costs = [median_s(s) / s["elements"] for s in samples if s["kind"] == kind and s["pass"] == name]
            assert costs, f"no timing of {kind} {name}"
            rates[kind][name] = float(np.median(costs))
            quality[f"{kind}.{name}"] = float((max(costs) - min(costs)) / 2 / rates[kind][name])
    return rates, quality


def known_s(work: PhaseWork, rates: Mapping[str, Any]) -> float:
    """Seconds of the products and fused operators of a phase: what other fits have settled."""
    seconds = work.flops / rates["matmul_flops_per_s"] + work.product_bytes / rates["matmul_bytes_per_s"]
    for kind, passes in work.fused.items():
        seconds += sum(elements * rates["fused_s"][kind][name] for name, elements in passes.items())
    return seconds


def fit_remainder(
    samples: Sequence[StepSample], rates: Mapping[str, Any], item_bytes: int
) -> tuple[dict[str, float], float]:
    """({"plain_bytes_per_s", "op_s", "batch_s"}, quality) from steps of small models.

    What a phase takes beyond its products and fused operators is plain bytes / rate + launches x op_s, and the force
    pass has a fixed batch_s too. The residual is weighted by the whole phase, so that the fit serves step times.
    """
    columns, known, measured = [], [], []
    for sample in samples:
        work = phase_work(sample.model, sample.counts, recompute=sample.recompute, item_bytes=item_bytes)
        for phase, parts in STEP_PHASES.items():
            columns.append([
                sum(work[part].plain_bytes for part in parts),
                sum(work[part].launches for part in parts),
                1.0,
            ])  # fmt: skip
            known.append(sum(known_s(work[part], rates) for part in parts))
            measured.append(sample.phase_s[phase])
    fit = fit_costs(np.array(columns), np.array(measured), offset=np.array(known))
    byte_s, op_s, batch_s = fit.coefficients
    return {"plain_bytes_per_s": _rate(byte_s), "op_s": float(op_s), "batch_s": float(batch_s)}, fit.quality


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
    remainder, step_quality = fit_remainder(fitted, settled, item_bytes)
    optimizer, optimizer_quality = fit_linear(
        np.array([[sample["bytes"], sample["tensors"]] for sample in setting["optimizer"]]),
        np.array([median_s(sample) for sample in setting["optimizer"]]),
    )
    data, data_quality = fit_linear(
        np.array([[sample["structures"], sample["edges"], sample["angles"]] for sample in setting["data"]]),
        np.array([median_s(sample) for sample in setting["data"]]),
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
