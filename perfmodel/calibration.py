"""From the raw timings of a host to its machine file. Pure functions of numbers; it measures nothing.

It owns which constant comes from which timings, the fits of kernels alone, the values of the file, and the judgement
of every measured step by the real predictor. Fits of steps are in ``calibration_steps``, of collectives in
``calibration_collectives``, of the noise in ``calibration_noise``; measuring is ``janus/calibrate.py``.

Of the repeats of a kernel or a step the lower quartile is taken: other work on the host only ever adds time, and with a
median a burst of it that lasts for half of the repeats would become a constant of the machine. Of collectives the
median: a run meets the ordinary delays of other ranks too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from janus.layout import Layout
from perfmodel.calibration_collectives import fit_collectives, overlap_efficiency
from perfmodel.calibration_fits import fit_costs, rate_of, spread, typical_s
from perfmodel.calibration_noise import Noise, distrusted, stage_spreads
from perfmodel.calibration_steps import (
    StepSample,
    crowding,
    fit_optimizer,
    fit_outside,
    fit_steps,
    page_seconds,
    step_samples,
)
from perfmodel.collective_rates import CollectiveRates, find_collective
from perfmodel.compute_time import scaled_rates
from perfmodel.host import Host
from perfmodel.machine import OPTIONAL_RATE_NAMES, RATE_NAMES, SCHEMA, Machine, Rates, machine_from_mapping
from perfmodel.operators import FUSED_KINDS, PASS_NAMES
from perfmodel.step_time import predict_step
from perfmodel.workload import ITEM_BYTES

MOST_FELT_SPREAD = 0.5  # of repeats: above it the steps' own noise is what was measured, and the constant is left out
MOST_FELT = 3.0  # more is another process's doing: assumed
NORM_BYTES = 8.0  # of the gradient norm's sum over ranks


@dataclass(frozen=True, kw_only=True)
class ProductFit:
    """t = call_s + 2Rnm / flops_per_s + item (Rn + Rm + nm) / bytes_per_s of one product [R,n] [n,m]."""

    flops_per_s: float
    bytes_per_s: float
    call_s: float
    quality: float


def fit_matmul(samples: Sequence[Mapping[str, Any]], item_bytes: int) -> ProductFit:
    """Of samples {"rows", "inputs", "outputs", "seconds": [...]}."""
    columns, seconds = [], []
    for sample in samples:
        rows, inputs, outputs = sample["rows"], sample["inputs"], sample["outputs"]
        moved = item_bytes * (rows * inputs + rows * outputs + inputs * outputs)
        columns.append([2.0 * rows * inputs * outputs, moved, 1.0])
        seconds.append(typical_s(sample))
    fit = fit_costs(np.array(columns), np.array(seconds))
    flop_s, byte_s, call_s = fit.coefficients
    return ProductFit(
        flops_per_s=rate_of(flop_s), bytes_per_s=rate_of(byte_s), call_s=float(call_s), quality=fit.quality
    )


def fit_grouped(
    samples: Sequence[Mapping[str, Any]], bytes_per_s: float, item_bytes: int
) -> tuple[float, float, float]:
    """(grouped_flops_per_s, grouped_call_s, quality) of a product per expert, beside its traffic at ``bytes_per_s``.

    samples: {"rows" of each expert, "experts", "inputs", "outputs", "seconds": [...]}.
    """
    columns, rest = [], []
    for sample in samples:
        experts, inputs, outputs = sample["experts"], sample["inputs"], sample["outputs"]
        rows, seconds = sample["rows"] * experts, typical_s(sample)
        moved = item_bytes * (rows * (inputs + outputs) + experts * inputs * outputs)
        columns.append([2.0 * rows * inputs * outputs, experts, 1.0])
        rest.append(max(seconds - moved / bytes_per_s, 0.2 * seconds))
    fit = fit_costs(np.array(columns), np.array(rest))
    return rate_of(fit.coefficients[0]), float(fit.coefficients[1]), fit.quality


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
    fit = fit_costs(columns, np.array([float(np.median(sample["seconds"])) for sample in samples]))
    return float(fit.coefficients[0]), rate_of(fit.coefficients[1]), fit.quality


Passes = dict[str, dict[str, float]]


def fit_fused(samples: Sequence[Mapping[str, Any]]) -> tuple[Passes, Passes, dict[str, float]]:
    """Seconds per element and per row by kind and pass, and the quality by "kind.pass".

    samples: {"kind", "pass", "rows", "channels", "seconds": [...]} of fused operators timed alone. What a call costs
    whatever its size is fitted too and left out: inside a step it is part of op_s.
    """
    by_element: Passes = {kind: {} for kind in FUSED_KINDS}
    by_row: Passes = {kind: {} for kind in FUSED_KINDS}
    quality = {}
    for kind in FUSED_KINDS:
        for name in PASS_NAMES:
            chosen = [sample for sample in samples if sample["kind"] == kind and sample["pass"] == name]
            assert chosen, f"no timing of {kind} {name}"
            columns = np.array([[sample["rows"] * sample["channels"], sample["rows"], 1.0] for sample in chosen])
            fit = fit_costs(columns, np.array([typical_s(sample) for sample in chosen]))
            by_element[kind][name], by_row[kind][name] = float(fit.coefficients[0]), float(fit.coefficients[1])
            quality[f"{kind}.{name}"] = fit.quality
    return by_element, by_row, quality


def fit_loading(samples: Sequence[Mapping[str, Any]]) -> tuple[list[float], float]:
    """Seconds per structure, edge and angle, and the quality."""
    columns = np.array([[sample["structures"], sample["edges"], sample["angles"]] for sample in samples])
    fit = fit_costs(columns, np.array([typical_s(sample) for sample in samples]))
    return [float(value) for value in fit.coefficients], fit.quality


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What one filling of the host gave: its rates, its collectives, and the quality of every constant by name."""

    rates: Rates
    collectives: tuple[CollectiveRates, ...]
    quality: dict[str, float]


def fit_filling(raw: Mapping[str, Any], dtype: str = "float32", *, base: Filling | None = None) -> Filling:
    """Constants of one way of filling the node, from its raw timings (``janus.calibrate.measure_filling``).

    base: for ranks that share cores, the fullest filling without: all computing takes a factor longer than there.
    """
    collectives = fit_collectives(raw["collectives"])
    if raw["crowded"]:
        assert base is not None, "a filling whose ranks share cores is judged by one whose ranks do not"
        rates, quality = _crowded(raw, base, dtype)
    else:
        rates, quality = _uncrowded(raw, collectives, dtype)
    if raw["ranks"] > 1:
        rates = _with_communication(rates, raw, quality)
    for sample in raw.get("prefetching", ()):
        felt, felt_spread = loader_felt(sample)
        if felt_spread <= MOST_FELT_SPREAD:
            rates, quality["loader_felt"] = replace(rates, loader_felt=felt), felt_spread
    return Filling(rates=rates, collectives=collectives, quality=quality)


def _crowded(raw: Mapping[str, Any], base: Filling, dtype: str) -> tuple[Rates, dict[str, float]]:
    factor, quality = crowding(step_samples(raw), base.rates, dtype)
    rates = replace(
        scaled_rates(base.rates, factor, raw["ranks"]), threads=raw["threads"],
        all_reduce_latency_s=None, all_reduce_bytes_per_s=None, overlap_efficiency=None, loader_felt=None,
    )  # fmt: skip
    return rates, {name: max(value, quality) for name, value in base.quality.items()}


def _uncrowded(
    raw: Mapping[str, Any], collectives: tuple[CollectiveRates, ...], dtype: str
) -> tuple[Rates, dict[str, float]]:
    kernels, quality = _fit_kernels(raw, ITEM_BYTES[dtype])
    samples = step_samples(raw)
    steps = fit_steps(samples, kernels, page_seconds(raw), dtype)
    bytes_per_s, tensor_s, optimizer_quality = fit_optimizer(samples, _norm_s(collectives, raw["ranks"]), dtype)
    step_s, step_tensor_s, outside_quality = fit_outside(samples)
    quality |= {
        **steps.quality, "optimizer_bytes_per_s": optimizer_quality, "optimizer_tensor_s": optimizer_quality,
        "step_s": outside_quality, "step_tensor_s": outside_quality,
    }  # fmt: skip
    found: dict[str, Any] = {
        **steps.plain, "families": steps.families, "optimizer_bytes_per_s": bytes_per_s,
        "optimizer_tensor_s": tensor_s, "step_s": step_s, "step_tensor_s": step_tensor_s,
    }  # fmt: skip
    return replace(kernels, **found), quality


def _fit_kernels(raw: Mapping[str, Any], item_bytes: int) -> tuple[Rates, dict[str, float]]:
    """Rates with what kernels alone and loading tell; what steps tell is a placeholder yet."""
    products = fit_matmul(raw["matmul"], item_bytes)
    grouped_flops_per_s, grouped_call_s, grouped_quality = fit_grouped(raw["grouped"], products.bytes_per_s, item_bytes)
    fused_s, fused_row_s, fused_quality = fit_fused(raw["fused"])
    data, data_quality = fit_loading(raw["data"])
    rates = Rates(
        ranks=raw["ranks"], threads=raw["threads"], matmul_flops_per_s=products.flops_per_s,
        matmul_bytes_per_s=products.bytes_per_s, grouped_flops_per_s=grouped_flops_per_s,
        grouped_call_s=grouped_call_s, fused_s=fused_s, fused_row_s=fused_row_s,
        data_structure_s=data[0], data_edge_s=data[1], data_angle_s=data[2],
        op_s=products.call_s, step_stretch=1.0, plain_bytes_per_s=products.bytes_per_s,
        fresh_bytes_per_s=products.bytes_per_s, batch_s=0.0, optimizer_bytes_per_s=products.bytes_per_s,
        optimizer_tensor_s=0.0,
    )  # fmt: skip
    quality = {
        "matmul_flops_per_s": products.quality, "matmul_bytes_per_s": products.quality,
        "grouped_flops_per_s": grouped_quality,
        **{f"{table}.{name}": value for name, value in fused_quality.items() for table in ("fused_s", "fused_row_s")},
        **dict.fromkeys(("data_structure_s", "data_edge_s", "data_angle_s"), data_quality),
    }  # fmt: skip
    return rates, quality


def _norm_s(collectives: tuple[CollectiveRates, ...], ranks: int) -> float:
    """Seconds of the sum of the gradient norm, which the trainer counts as optimizer; 0 for one rank."""
    transports = {entry.transport for entry in collectives}
    found = [find_collective(collectives, transport, "all_reduce", ranks) for transport in sorted(transports)]
    return float(found[0].seconds(NORM_BYTES)) if found and found[0] is not None else 0.0


def _with_communication(rates: Rates, raw: Mapping[str, Any], quality: dict[str, float]) -> Rates:
    """Ring constants of the control plane's all-reduce, and the overlap over the default transport."""
    ranks = raw["ranks"]
    first = raw["overlap"][0]["transport"]
    samples = [
        sample for sample in raw["collectives"]
        if (sample["transport"], sample["collective"], sample["ranks"]) == (first, "all_reduce", ranks)
    ]  # fmt: skip
    latency_s, bytes_per_s, ring_quality = fit_ring(samples, ranks)
    efficiency, overlap_spread = overlap_efficiency(raw["overlap"][0])
    quality |= {
        "all_reduce_latency_s": ring_quality, "all_reduce_bytes_per_s": ring_quality,
        "overlap_efficiency": overlap_spread,
    }  # fmt: skip
    return replace(
        rates, all_reduce_latency_s=latency_s, all_reduce_bytes_per_s=bytes_per_s, overlap_efficiency=efficiency
    )


def loader_felt(sample: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """(seconds by which a step grows per second of the loader beside it, spread) of {"load_s", "with_s", "without_s"}.

    Above 1 where the two threads are in each other's way. Pair by pair, because the difference is small.
    """
    load_s = float(np.median(sample["load_s"]))
    differences = (np.asarray(sample["with_s"]) - np.asarray(sample["without_s"])) / load_s
    low, middle, high = np.percentile(differences, [25, 50, 75])
    return float(min(MOST_FELT, max(0.0, middle))), float((high - low) / 2)


def fit_fillings(raws: Sequence[Mapping[str, Any]]) -> list[Filling]:
    """Every filling, those whose ranks have a core each first fitted by themselves; in the order of ``raws``."""
    alone = {raw["ranks"]: fit_filling(raw) for raw in raws if not raw["crowded"]}
    base = alone[max(alone)]
    return [alone.get(raw["ranks"]) or fit_filling(raw, base=base) for raw in raws]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One measured step beside its prediction from the machine file. held_out: it took no part in the fit."""

    ranks: int
    model: str
    angles: float
    held_out: bool
    recompute: bool
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_s / self.measured_s - 1


def judge(machine: Machine, samples: Sequence[StepSample], ranks: int, dtype: str = "float32") -> list[Judgement]:
    """Predict every measured data-parallel step, sums of gradients, optimizer and time outside phases included.

    The loader's part is left out of the predictions: it does not run beside these steps.
    """
    result = []
    for sample in samples:
        if sample.divided:
            continue
        predicted = predict_step(
            sample.model, [sample.counts] * ranks, Layout(replicas=ranks), machine, dtype=dtype,
            recompute=sample.recompute,
        )  # fmt: skip
        result.append(Judgement(
            ranks=ranks, model=f"{sample.model.family} {sample.model.num_blocks} x {sample.model.width}",
            angles=sample.counts.angles, held_out=sample.held_out, recompute=sample.recompute,
            measured_s=sample.step_s, predicted_s=predicted.step_s - predicted.cause_s["loader"],
        ))  # fmt: skip
    return result


def error_summary(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Median, 90th percentile and worst absolute error of fitted and of held-out steps, and the bias (median signed
    error) of both.
    """
    summary = {}
    for name, held_out in (("fit", False), ("held_out", True)):
        errors = [judgement.error for judgement in judgements if judgement.held_out == held_out]
        if errors:
            summary[f"{name}_median_abs_error"] = float(np.median(np.abs(errors)))
            summary[f"{name}_90th_abs_error"] = float(np.percentile(np.abs(errors), 90))
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
    for name in (*RATE_NAMES, *OPTIONAL_RATE_NAMES, "all_reduce_latency_s", "all_reduce_bytes_per_s"):
        if getattr(rates, name) is not None:
            table[name] = _quantity(getattr(rates, name), source, quality.get(name))
    for name in ("fused_s", "fused_row_s"):
        table[name] = {
            kind: {
                each: _quantity(value, source, quality.get(f"{name}.{kind}.{each}")) for each, value in passes.items()
            }
            for kind, passes in getattr(rates, name).items()
        }
    table["families"] = {
        family: {
            name: _quantity(value, "fitted to steps of this family on this host",
                            quality.get(f"families.{family}.{name}"))
            for name, value in vars(own).items()
        }
        for family, own in rates.families.items()
    }  # fmt: skip
    return table


def _collectives_table(entries: Sequence[CollectiveRates]) -> dict[str, Any]:
    source = "timings of this host"
    table: dict[str, Any] = {}
    for entry in entries:
        numbers: dict[str, Any] = {
            "ranks": _quantity(entry.ranks, "group measured"), "groups": _quantity(entry.groups, "at once"),
            "latency_s": _quantity(entry.latency_s, f"line fitted to {source}", entry.quality),
            "bytes_per_s": _quantity(entry.bytes_per_s, f"line fitted to {source}", entry.quality),
        }  # fmt: skip
        if entry.knots_bytes:
            numbers["knots_bytes"] = {"value": list(entry.knots_bytes), "source": "sizes measured"}
            numbers["knots_s"] = {"value": list(entry.knots_s), "source": f"medians of {source}"}
        table.setdefault(entry.transport, {}).setdefault(entry.collective, {})[entry.label] = numbers
    return table


def machine_values(
    raws: Sequence[Mapping[str, Any]], *, host: Host, memory_bytes: int, date: str, noise: Noise | None = None
) -> tuple[dict[str, Any], list[Judgement]]:
    """The values of a host's machine file from the raw timings of its fillings, and every step judged.

    raws: one per filling, the single rank first (it has the square products and the uncontended memory traffic);
    noise: of other work on the host while it was measured, None: not known.
    """
    alone = next(raw for raw in raws if raw["ranks"] == 1)
    peak, peak_spread = square_peak(alone["square"])
    triad = next(sample for sample in alone["traffic"] if sample["name"] == "triad")
    fillings = fit_fillings(raws)
    device = alone["device"]
    is_gpu = device["type"] == "cuda"
    what = device["name"] if is_gpu else "one core"
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "name": f"host-{host.hostname}",
        "description": _description(host, device, date),
        "device_name": device["name"] if is_gpu else f"one core of {host.cpu}",
        "nodes": _quantity(1, "this host"),
        "devices_per_node": _quantity(device["count"] if is_gpu else host.cores,
                                      "GPUs that torch sees" if is_gpu else "cores this process may use"),
        "device": {
            "memory_bytes_per_node": _quantity(
                device["memory_bytes"] * device["count"] if is_gpu else memory_bytes,
                "memory of all GPUs" if is_gpu else "total memory as the operating system gives it",
            ),
            "memory_bytes_per_s": _quantity(
                triad["bytes"] / typical_s(triad), "measured: triad of one rank", spread(triad["seconds"])
            ),
            "peaks": {"float32": {
                **_quantity(peak, f"measured: largest square product, {what}, float32, janus calibrate", peak_spread),
                "name": f"measured square matrix product, {what}",
            }},
        },
        "rates": {filling.rates.label: _rates_table(filling.rates, filling.quality) for filling in fillings},
        "collectives": _collectives_table([entry for filling in fillings for entry in filling.collectives]),
        "start_up": {
            f"ranks_{raw['ranks']}": _quantity(raw["start_up_s"], "one start: processes, libraries, links, first step")
            for raw in raws if raw.get("start_up_s")
        },
        "provenance": {
            "cpu": host.cpu, "cores": host.cores, "hostname": host.hostname, "date": date,
            **({"gpu": device["name"]} if is_gpu else {}),
            "torch": str(alone["torch"]), "transport": str(raws[-1]["transport"]),
        },
    }  # fmt: skip
    machine = machine_from_mapping(values, "this calibration")
    judgements = [
        judgement for raw in raws for judgement in judge(machine, step_samples(raw), raw["ranks"])
    ]  # fmt: skip
    spreads = stage_spreads(raws)
    values["provenance"] |= {
        **error_summary(judgements), **{f"spread_{name}": round(value, 4) for name, value in spreads.items()},
        **(noise.provenance() if noise is not None else {}), "distrusted": distrusted(spreads, noise),
    }  # fmt: skip
    return values, judgements


def _description(host: Host, device: Mapping[str, Any], date: str) -> str:
    if device["type"] == "cuda":
        return f"{device['count']} x {device['name']}, measured by janus calibrate on {date}"
    return f"{host.cores} cores of {host.cpu}, measured by janus calibrate on {date}"
