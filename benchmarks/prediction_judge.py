"""Predicts what was measured and says how wrong it is: by layout, group of layouts, phase, and choice.

It owns the statistics and which cases corrections are fitted to. It does not own measuring (``prediction_steps.py``),
asking the predictor (``prediction_predict.py``) nor how the report is shown (``prediction_tables.py``, ``_figure.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, median
from typing import Any

import numpy as np
from prediction_cases import EQUAL, Case, CaseSet, uneven_source

from janus.config import ModelConfig
from perfmodel.corrections import Corrections, Pair, fit_corrections
from perfmodel.run_validation import PHASES, with_outside
from scaling_studies.statistics import median_interval_ranks

KNOWLEDGE = ("exact", "planned")
REFIT = "refit"
AIMS = {"median": 0.05, "p90": 0.15, "regret": 0.03, "rank_correlation": 0.9}
FIT_RANKS, FIT_DATA = 1, EQUAL  # what --refit fits corrections to

Step = Mapping[str, Any]  # one measured step of a raw line
Predict = Callable[["Measured", str], Sequence[Any]]  # a case and a knowledge -> a prediction of each of its steps


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One layout of one model and data set: its steps in the order they were taken."""

    ranks: int
    model: str
    data: str
    case: Case
    steps: tuple[Step, ...]

    @property
    def group(self) -> tuple[int, str, str]:
        return self.ranks, self.model, self.data

    @property
    def is_fitted(self) -> bool:
        """Whether ``--refit`` fits corrections to it."""
        return (self.ranks, self.data) == (FIT_RANKS, FIT_DATA)


def measured_cases(
    lines: Iterable[Mapping[str, Any]], known: Callable[[int, str], Mapping[str, Case]]
) -> list[Measured]:
    """The finished rounds of a raw file, by layout. known: ranks and model -> the cases by key."""
    steps: dict[tuple[int, str, str, str], list[Step]] = {}
    for line in sorted((line for line in lines if line["kind"] == "round"), key=lambda line: line["round"]):
        for key, taken in line["cases"].items():
            steps.setdefault((line["ranks"], line["model"], line["data"], key), []).extend(taken)
    return [
        Measured(ranks=ranks, model=model, data=data, case=known(ranks, model)[key], steps=tuple(taken))
        for (ranks, model, data, key), taken in steps.items()
    ]


def phases_of(step: Step) -> dict[str, float]:
    """Mean over ranks of each phase, and what is outside of all."""
    return with_outside(step["step_s"], {name: mean(seconds) for name, seconds in step["phase_s"].items()})


@dataclass(kw_only=True)
class Judged:
    """A measured case beside its predictions by knowledge ("exact", "planned", "refit"): seconds of every step."""

    measured: Measured
    step_s: list[float]
    phase_s: list[dict[str, float]]
    predicted_s: dict[str, list[float]] = field(default_factory=dict)
    predicted_phase_s: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def add(self, knowledge: str, predictions: Sequence[Any]) -> None:
        self.predicted_s[knowledge] = [one.step_s for one in predictions]
        self.predicted_phase_s[knowledge] = [with_outside(one.step_s, one.phase_s) for one in predictions]

    def error(self, knowledge: str) -> float:
        """Median over the steps of predicted / measured - 1."""
        pairs = zip(self.predicted_s[knowledge], self.step_s, strict=True)
        return median(predicted / measured - 1 for predicted, measured in pairs)

    def to_mapping(self) -> dict[str, Any]:
        one = self.measured
        return {
            "ranks": one.ranks, "model": one.model, "data": one.data, "layout": one.case.key,
            "fitted_by_refit": one.is_fitted, "measured_s": self.step_s,
            "predicted_s": {name: [round(x, 6) for x in seconds] for name, seconds in self.predicted_s.items()},
            "error": {name: self.error(name) for name in self.predicted_s},
            "phases": {
                name: {"measured_s": median(step[name] for step in self.phase_s)}
                | {known: median(step[name] for step in steps) for known, steps in self.predicted_phase_s.items()}
                for name in PHASES
            },
            "notes": list(self.notes),
        }  # fmt: skip


def judge(cases: Sequence[Measured], predict: Predict, knowledge: Sequence[str] = KNOWLEDGE) -> list[Judged]:
    """Every case with its predictions."""
    found = []
    for case in cases:
        judged = Judged(measured=case, step_s=[step["step_s"] for step in case.steps],
                        phase_s=[phases_of(step) for step in case.steps])  # fmt: skip
        for name in knowledge:
            predictions = predict(case, name)
            judged.add(name, predictions)
            judged.notes = tuple(dict.fromkeys(note for one in predictions for note in one.notes))
        found.append(judged)
    return found


def errors_of(judged: Sequence[Judged], knowledge: str) -> dict[str, Any]:
    """Median, 90th percentile and largest absolute error, and the bias: the median with its sign."""
    errors = [one.error(knowledge) for one in judged]
    worst = max(judged, key=lambda one: abs(one.error(knowledge)))
    sizes = np.abs(errors)
    return {
        "layouts": len(errors), "median": float(np.median(sizes)), "p90": float(np.percentile(sizes, 90)),
        "worst": worst.error(knowledge), "bias": float(np.median(errors)),
        "worst_case": f"{worst.measured.model}, {worst.measured.data}, {worst.measured.case.key}",
    }  # fmt: skip


def words_of(case: Measured) -> list[str]:
    """Groups of layouts that a case belongs to."""
    parallel = case.case.parallel
    words = [name for name in ("shard", "graph", "expert") if parallel.get(f"{name}_degree", 1) > 1]
    words += ["recomputed"] if case.case.recompute else []
    words += ["capped"] if case.case.capped else []
    return (words or ["data alone"]) + ([case.case.transport] if case.ranks > 1 else [])


def grouped(judged: Sequence[Judged], keys: Callable[[Measured], Iterable[str]]) -> dict[str, list[Judged]]:
    """Cases by the keys that each has."""
    found: dict[str, list[Judged]] = {}
    for one in judged:
        for key in keys(one.measured):
            found.setdefault(key, []).append(one)
    return found


def phase_errors(judged: Sequence[Judged], knowledge: str) -> dict[str, dict[str, float]]:
    """Phase -> medians over cases: predicted - measured as a part of the measured step, and the part itself."""
    found = {}
    for name in PHASES:
        off, part = [], []
        for one in judged:
            step_s = median(one.step_s)
            pairs = zip(one.predicted_phase_s[knowledge], one.phase_s, strict=True)
            off.append(median(predicted[name] - measured[name] for predicted, measured in pairs) / step_s)
            part.append(median(step[name] for step in one.phase_s) / step_s)
        found[name] = {"error_of_step": median(off), "spread_of_step": float(np.percentile(np.abs(off), 90)),
                       "part_of_step": median(part)}  # fmt: skip
    return found


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's: of the orders of two lists of distinct numbers; None for fewer than three."""
    if len(first) < 3:
        return None
    orders = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*orders)[0, 1])


def costs_of(judged: Sequence[Judged]) -> list[float]:
    """What each layout costs beside the others: median over the steps of its time over that of the middle layout on the
    same batch, so that batches of different sizes do not decide."""
    steps = np.array([one.step_s for one in judged])
    return np.median(steps / np.median(steps, axis=0), axis=1).tolist()


def choice(judged: Sequence[Judged], knowledge: str) -> dict[str, Any]:
    """The layout that a planner would choose among some, and what that costs over the measured best.

    low, high: 95 % interval of the median of the steps' regrets by order statistics, None below six steps. inside:
    whether 0 lies in it, so that the noise does not tell the two apart.
    """
    cost = costs_of(judged)
    best = judged[int(np.argmin(cost))]
    chosen = min(judged, key=lambda one: mean(one.predicted_s[knowledge]))
    regrets = sorted(mine / other - 1 for mine, other in zip(chosen.step_s, best.step_s, strict=True))
    ranks = median_interval_ranks(len(regrets))
    low, high = (regrets[ranks[0] - 1], regrets[ranks[1] - 1]) if ranks else (None, None)
    measured, model, data = best.measured.group
    return {
        "ranks": measured, "model": model, "data": data, "layouts": len(judged),
        "chosen": chosen.measured.case.key, "best": best.measured.case.key,
        "chosen_s": median(chosen.step_s), "best_s": median(best.step_s), "regret": median(regrets),
        "low": low, "high": high, "inside": low is not None and low <= 0,
        "rank_correlation": rank_correlation([mean(one.predicted_s[knowledge]) for one in judged], cost),
    }  # fmt: skip


def noise_of(one: Judged) -> float | None:
    """Half the width of the 95 % interval of a layout's median step, relative; each step over its prediction, so that
    batches of different sizes are no noise."""
    ordered = sorted(step / predicted for step, predicted in zip(one.step_s, one.predicted_s["exact"], strict=True))
    ranks = median_interval_ranks(len(ordered))
    return None if ranks is None else (ordered[ranks[1] - 1] - ordered[ranks[0] - 1]) / 2 / median(ordered)


def refit_pairs(judged: Sequence[Judged], models: Mapping[str, ModelConfig]) -> list[Pair]:
    """Phases of the steps that corrections are fitted to, predicted with everything known."""
    return [
        Pair(model=models[one.measured.model], phase=name, predicted_s=predicted[name], measured_s=measured[name])
        for one in judged if one.measured.is_fitted
        for predicted, measured in zip(one.predicted_phase_s["exact"], one.phase_s, strict=True)
        for name in PHASES if name != "outside"
    ]  # fmt: skip


def _over_gloo(judged: Sequence[Judged]) -> list[Judged]:
    """What a run takes unless its transport is chosen by hand."""
    return [one for one in judged if one.measured.case.transport == "gloo"]


def summary_of(judged: Sequence[Judged], knowledge: str) -> dict[str, Any]:
    """Everything said of some cases with one knowledge."""
    groups: dict[tuple, list[Judged]] = {}
    for one in judged:
        groups.setdefault(one.measured.group, []).append(one)
    by_ranks = grouped(judged, lambda case: [str(case.ranks)])
    return {
        "all": errors_of(judged, knowledge),
        "by_ranks": {name: errors_of(ones, knowledge) for name, ones in by_ranks.items()},
        "by_model": {name: errors_of(ones, knowledge)
                     for name, ones in grouped(judged, lambda case: [f"{case.model}, {case.data}"]).items()},
        "by_kind": {name: errors_of(ones, knowledge) for name, ones in grouped(judged, words_of).items()},
        "by_phase": {name: phase_errors(ones, knowledge) for name, ones in by_ranks.items()},
        "choices": [choice(_over_gloo(ones), knowledge) for ones in groups.values()],
        "choices_with_transport": [choice(ones, knowledge) for (ranks, _, _), ones in groups.items() if ranks > 1],
    }  # fmt: skip


def make_report(
    lines: Sequence[Mapping[str, Any]], case_set: CaseSet, machine_file: str, stores: Mapping[str, str], *, refit: bool
) -> dict[str, Any]:
    """Judge a raw file of a set with the constants of a machine file. stores: path of each data set's store."""
    from prediction_predict import Predictor

    from perfmodel.machine import load_machine

    machine = load_machine(machine_file)
    cases = measured_cases(lines, case_set.known_cases)
    predictor = Predictor(machine, stores, models=case_set.models, seed=case_set.seed)
    judged = judge(cases, predictor)
    noises = [noise for one in judged if (noise := noise_of(one)) is not None]
    report: dict[str, Any] = {
        "set": case_set.name,
        "machine": {"name": machine.description, "provenance": public(machine.provenance)},
        "uneven": uneven_source(), "aims": AIMS, "launches": [line for line in lines if line["kind"] == "launch"],
        "noise": median(noises) if noises else None,
        "summaries": {name: summary_of(judged, name) for name in KNOWLEDGE},
    }  # fmt: skip
    if refit:
        corrections = fit_corrections(refit_pairs(judged, case_set.models), sources=[f"{FIT_RANKS} rank, {FIT_DATA}"])
        for one in judged:
            one.add(REFIT, predictor(one.measured, "exact", corrections))
        report |= refit_report(judged, corrections)
    return report | {"cases": [one.to_mapping() for one in judged]}


def refit_report(judged: Sequence[Judged], corrections: Corrections) -> dict[str, Any]:
    """Old and new errors apart, on what was fitted and on all that was not."""
    held = [one for one in judged if not one.measured.is_fitted]
    fitted = [one for one in judged if one.measured.is_fitted]
    factors = {f"{model}, {phase}": asdict(one) for (model, phase), one in corrections.factors.items()}
    return {
        "refit": {
            "fitted_to": list(corrections.sources),
            "factors": factors,
            "fit_cases": {name: errors_of(fitted, name) for name in ("exact", REFIT)} if fitted else {},
            "held_out": {name: summary_of(held, name) for name in ("exact", REFIT)} if held else {},
        }
    }


def public(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What of a machine's provenance may be kept: all but the host's name."""
    return {name: value for name, value in provenance.items() if name != "hostname"}
