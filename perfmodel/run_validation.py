"""Lays predicted steps beside measured ones, phase by phase, and finds the constant behind what is off.

It owns the comparison and the diagnosis, on plain numbers. It does not own reading a run's folder
(``janus/cli/validate_run.py``), predicting (``step_time``) nor the factors of a refit (``corrections``).

Measured phases are means over ranks and step_s is the slowest rank's, as predictions have them; what is in no phase is
"outside". A step's error in a phase is predicted - measured, in seconds; its share is that over the sum of all phases'
absolute errors, so that errors of opposite sign do not hide each other.

Diagnosis: every constant of the machine file is made ``STEP`` more, and the seconds by phase that this changes are held
against the errors by phase of all steps. The one change of one constant that explains most of the squared errors is the
likeliest cause; how large it would have to be is told beside the constant's own quality.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from janus.errors import UserError
from perfmodel.dataset import DataCounts, ElementCounts
from perfmodel.machine import Machine
from perfmodel.step_work import RunSettings

PHASES = ("data", "FE", "FF", "BF_BE", "sync", "optimizer", "outside")
STEP = 0.1
NO_CONSTANTS = ("ranks", "threads", "overlap_efficiency", "loader_hidden", "families")  # of a filling
LARGEST_CHANGE = 3.0  # a constant that had to be off by more than this factor is no explanation


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """One step of a record. phase_s: mean over ranks, "outside" included; step_s: of the slowest rank."""

    step: int
    step_s: float
    phase_s: dict[str, float]

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> MeasuredStep:
        """From a line of steps.jsonl. Raises UserError where it is not one."""
        try:
            ranks = [entry["phase_s"] for entry in line["ranks"]]
            names = list(dict.fromkeys(name for phases in ranks for name in phases))
            means = {name: float(np.mean([phases.get(name, 0.0) for phases in ranks])) for name in names}
            return cls(step=int(line["step"]), step_s=float(line["step_s"]),
                       phase_s=with_outside(float(line["step_s"]), means))  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"a line of steps.jsonl lacks what a step has ({error!r}): is it a run's?") from None


def with_outside(step_s: float, phase_s: Mapping[str, float]) -> dict[str, float]:
    """The phases, and what is in none of them: they then add up to the step."""
    phases = {name: phase_s.get(name, 0.0) for name in PHASES[:-1]}
    return phases | {"outside": step_s - sum(phases.values())}


def settings_of(values: Mapping[str, Any]) -> RunSettings:
    """The settings of steps from those of a run: nested plain values of its config.toml (on CPUs)."""
    run, parallel, optimizer = values["run"], values["parallel"], values["optimizer"]
    transport = parallel.get("transport", "auto")
    return RunSettings(
        dtype=run["dtype"], max_work=values["batch"].get("max_work"), recompute=run["recompute"],
        gathered_blocks=parallel["gathered_blocks"], expert_strategy=parallel["expert_strategy"],
        expert_replication=parallel["expert_replication"], expert_flops_per_byte=parallel["expert_flops_per_byte"],
        expert_compression=parallel["expert_compression"] == "float16", bucket_bytes=parallel["bucket_bytes"],
        clips=optimizer.get("clip_norm") is not None, averages=optimizer["ema_decay"] > 0,
        transport="gloo" if transport == "auto" else transport,
    )  # fmt: skip


def data_counts(store: Any) -> DataCounts:
    """Counts of an opened store (``janus.data.store.StructureStore``), with elements and cells."""
    arrays = store.arrays
    return DataCounts(
        path=str(store.path), fingerprint=str(store.fingerprint), atoms=store.num_atoms, edges=store.num_edges,
        bonds=store.num_bonds, angles=store.num_angles, cell=arrays["cell"], periodic=arrays["pbc"],
        elements=ElementCounts(
            end=arrays["composition_end"], element=arrays["composition_element"], atoms=arrays["composition_atoms"],
            edges=arrays["composition_edges"],
        ),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PhaseError:
    """Medians over the steps [s]. spread_s: half the interquartile range of the measured; error: of the medians of
    step-wise ratios, None where nothing was measured; share: of all phases' absolute errors."""

    phase: str
    predicted_s: float
    measured_s: float
    spread_s: float
    error: float | None
    share: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """errors: predicted / measured - 1 of every step; phases in the order of ``PHASES``."""

    steps: int
    predicted_s: float
    measured_s: float
    spread_s: float
    errors: tuple[float, ...]
    phases: tuple[PhaseError, ...]

    @property
    def error(self) -> float:
        """Median over the steps."""
        return float(np.median(self.errors))

    @property
    def median_error(self) -> float:
        """Median absolute error of a step."""
        return float(np.median(np.abs(self.errors)))

    @property
    def worst_phase(self) -> PhaseError:
        return max(self.phases, key=lambda phase: phase.share)


def compare(predicted: Sequence[Mapping[str, float]], measured: Sequence[MeasuredStep]) -> Comparison:
    """predicted: of each measured step its seconds by phase, which add up to the step."""
    assert len(predicted) == len(measured) > 0, f"{len(predicted)} predictions of {len(measured)} steps"
    table = phase_table(predicted)
    seen = phase_table([step.phase_s for step in measured])
    steps_s = np.array([step.step_s for step in measured])
    off_s = np.abs(np.median(table - seen, axis=0))
    phases = tuple(
        _phase_error(name, table[:, column], seen[:, column], float(off_s[column] / max(off_s.sum(), 1e-12)))
        for column, name in enumerate(PHASES)
    )
    return Comparison(
        steps=len(measured), predicted_s=float(np.median(table.sum(axis=1))), measured_s=float(np.median(steps_s)),
        spread_s=_spread(steps_s), errors=tuple((table.sum(axis=1) / steps_s - 1).tolist()), phases=phases,
    )  # fmt: skip


def phase_table(steps: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Seconds [steps, phases]."""
    return np.array([[phases.get(name, 0.0) for name in PHASES] for phases in steps])


def _phase_error(name: str, predicted: np.ndarray, measured: np.ndarray, share: float) -> PhaseError:
    seen = measured > 1e-6
    error = float(np.median(predicted[seen] / measured[seen] - 1)) if seen.any() else None
    return PhaseError(
        phase=name, predicted_s=float(np.median(predicted)), measured_s=float(np.median(measured)),
        spread_s=_spread(measured), error=error, share=share,
    )  # fmt: skip


def _spread(seconds: np.ndarray) -> float:
    low, high = np.percentile(seconds, [25, 75])
    return float(high - low) / 2


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A constant that may be off. change: what it had to be multiplied by; explained: part of the squared errors by
    phase that this takes away; quality: of the machine file, None where it has none."""

    constant: str
    change: float
    explained: float
    quality: float | None


def constants_of(machine: Machine, ranks_on_node: int) -> dict[str, Callable[[float], Machine]]:
    """Constants that decide a step's time, by their names in the machine file -> the machine with that one multiplied.

    Of the ways of filling a node, that one which such a run uses.
    """
    filling = next((rates for rates in machine.rates if rates.ranks >= ranks_on_node), machine.rates[-1])
    found: dict[str, Callable[[float], Machine]] = {}
    base = f"rates.{filling.label}"
    for name in _numbers(filling):
        found[f"{base}.{name}"] = _rate_changer(machine, filling, partial(_times, filling, name))
    for family, rates in filling.families.items():
        for name in _numbers(rates):
            change = partial(_family_times, filling, family, name)
            found[f"{base}.families.{family}.{name}"] = _rate_changer(machine, filling, change)
    for name in sorted({f"{one.transport}.{one.collective}" for one in machine.collectives}):
        found[f"collectives.{name}"] = _collective_changer(machine, name)
    return found


def _numbers(rates: Any) -> list[str]:
    """Fields of rates that are a number, or a table of numbers by kind and pass."""
    values = {entry.name: getattr(rates, entry.name) for entry in dataclasses.fields(rates)}
    return [
        name for name, value in values.items()
        if name not in NO_CONSTANTS and isinstance(value, int | float | dict) and value
    ]  # fmt: skip


def _times(rates: Any, name: str, factor: float) -> Any:
    """The rates with one constant multiplied, all entries of a table alike."""

    def scaled(value: Any) -> Any:
        return {key: scaled(one) for key, one in value.items()} if isinstance(value, dict) else value * factor

    return dataclasses.replace(rates, **{name: scaled(getattr(rates, name))})


def _family_times(filling: Any, family: str, name: str, factor: float) -> Any:
    """The filling with one constant of a model family multiplied."""
    changed = _times(filling.families[family], name, factor)
    return dataclasses.replace(filling, families=filling.families | {family: changed})


def _rate_changer(machine: Machine, filling: Any, change: Callable[[float], Any]) -> Callable[[float], Machine]:
    def changed(factor: float) -> Machine:
        rates = tuple(change(factor) if one is filling else one for one in machine.rates)
        return dataclasses.replace(machine, rates=rates)

    return changed


def _collective_changer(machine: Machine, name: str) -> Callable[[float], Machine]:
    """Its seconds at every size, in groups of every size."""

    def change(factor: float) -> Machine:
        changed = tuple(
            dataclasses.replace(
                one, latency_s=one.latency_s * factor, bytes_per_s=one.bytes_per_s / factor,
                knots_s=tuple(seconds * factor for seconds in one.knots_s),
            ) if f"{one.transport}.{one.collective}" == name else one
            for one in machine.collectives
        )  # fmt: skip
        return dataclasses.replace(machine, collectives=changed)

    return change


def _quality(machine: Machine, name: str) -> float | None:
    """Of a constant; of a collective the worst of its groups."""
    found = [value for path, value in machine.quality.items() if path == name or path.startswith(f"{name}.")]
    return max(found, default=None)


def suspects(
    measured: Sequence[MeasuredStep],
    predict: Callable[[Machine], Sequence[Mapping[str, float]]],
    machine: Machine,
    ranks_on_node: int,
) -> list[Suspect]:
    """Constants whose change alone would explain most of the errors, the likeliest first.

    predict: seconds by phase of every measured step with a machine's constants.
    """
    base = phase_table(predict(machine))
    error_s = (phase_table([step.phase_s for step in measured]) - base).ravel()
    total = float(error_s @ error_s)
    found = []
    for name, change in constants_of(machine, ranks_on_node).items():
        effect_s = (phase_table(predict(change(1 + STEP))) - base).ravel()
        size = float(effect_s @ effect_s)
        if size <= 0 or total <= 0:
            continue
        amount = float(effect_s @ error_s) / size
        factor = _factor(name, amount)
        explained = 1 - float(((error_s - amount * effect_s) ** 2).sum()) / total
        if factor is not None and explained > 0:
            found.append(Suspect(constant=name, change=factor, explained=explained,
                                 quality=_quality(machine, name)))  # fmt: skip
    return sorted(found, key=lambda one: -one.explained)


def _factor(name: str, amount: float) -> float | None:
    """What a constant must be multiplied by for ``amount`` times the effect of STEP more; None beyond reason.

    Rates enter as their inverse: 1 / (1 + STEP) - 1 is the effect of STEP more of a rate, so seconds decide.
    """
    if name.endswith("per_s"):
        inverse = 1 + amount * (1 / (1 + STEP) - 1)
        factor = 1 / inverse if inverse > 0 else 0.0
    else:
        factor = 1 + amount * STEP
    return factor if 1 / LARGEST_CHANGE <= factor <= LARGEST_CHANGE else None
