"""Factors by which predicted phases are multiplied, learned from phases that were measured: a prediction refitted.

It owns fitting, keeping and looking up the factors. It does not own what they are applied to (``step_time``) nor where
the pairs come from (``run_validation``, benchmarks/prediction.py).

A factor belongs to a model (by a hash of its configuration) and a phase of the trainer's record, or to any model. It is
the median of measured / predicted over all pairs, and exists only from ``MIN_SAMPLES`` pairs on; its quality is half
the interquartile range of the ratios over their median, as for the constants of a machine file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from janus.config import ModelConfig, to_mapping
from janus.errors import UserError
from perfmodel.machine import write_text_atomically

SCHEMA = "janus.corrections/1"
ANY_MODEL = "any"
MIN_SAMPLES = 5  # below, one disturbed step in three would decide the median
SMALLEST_S = 1e-5  # shorter phases, predicted or measured, say nothing of a rate


def model_key(model: ModelConfig) -> str:
    """Twelve hexadecimal digits that tell one model configuration from another."""
    text = json.dumps(to_mapping(model), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One phase of one step, predicted and measured [s]."""

    model: ModelConfig
    phase: str
    predicted_s: float
    measured_s: float


@dataclass(frozen=True, kw_only=True)
class Correction:
    """factor: predicted seconds are multiplied by it; quality: relative spread of the ratios; samples: pairs fitted."""

    factor: float
    quality: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """Factors by (model's key or "any", phase), the machine they were fitted for and what they were fitted to."""

    factors: Mapping[tuple[str, str], Correction] = field(default_factory=dict)
    machine: str = ""
    sources: tuple[str, ...] = ()
    date: str = ""

    def factor(self, model: ModelConfig, phase: str) -> float:
        """What the model's predicted seconds of a phase are multiplied by; 1 where nothing was fitted."""
        found = self.find(model, phase)
        return found.factor if found is not None else 1.0

    def find(self, model: ModelConfig, phase: str) -> Correction | None:
        """The model's own correction of a phase, else any model's, else None."""
        own = self.factors.get((model_key(model), phase))
        return own if own is not None else self.factors.get((ANY_MODEL, phase))

    def require_machine(self, name: str) -> None:
        """Raise UserError where the factors were fitted to another machine's predictions."""
        if self.machine and self.machine != name:
            raise UserError(
                f"these corrections were fitted for machine {self.machine!r}, the prediction is for {name!r}: "
                "fit them again with 'janus validate run --refit'"
            )


def fit_corrections(
    pairs: Iterable[Pair], *, machine: str = "", sources: Sequence[str] = (), min_samples: int = MIN_SAMPLES
) -> Corrections:
    """Factors from phases predicted without corrections beside the same phases measured.

    Every model with enough pairs of a phase gets its own; all models together give those of any model.
    """
    ratios: dict[tuple[str, str], list[float]] = {}
    for pair in pairs:
        if min(pair.predicted_s, pair.measured_s) >= SMALLEST_S:
            for name in (model_key(pair.model), ANY_MODEL):
                ratios.setdefault((name, pair.phase), []).append(pair.measured_s / pair.predicted_s)
    factors = {key: _correction(values) for key, values in ratios.items() if len(values) >= min_samples}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Corrections(factors=factors, machine=machine, sources=tuple(sources), date=now)


def _correction(ratios: Sequence[float]) -> Correction:
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return Correction(factor=float(middle), quality=float((high - low) / 2 / middle), samples=len(ratios))


def to_json(corrections: Corrections) -> str:
    """The text of a corrections file."""
    entries: dict[str, dict[str, Any]] = {}
    for (model, phase), one in sorted(corrections.factors.items()):
        entries.setdefault(model, {})[phase] = {
            "factor": one.factor, "quality": one.quality, "samples": one.samples,
        }  # fmt: skip
    document = {
        "schema": SCHEMA, "machine": corrections.machine, "date": corrections.date,
        "sources": list(corrections.sources), "factors": entries,
    }  # fmt: skip
    return json.dumps(document, indent=1) + "\n"


def write_corrections(path: Path, corrections: Corrections) -> None:
    """Write the file; a reader never sees half of it."""
    write_text_atomically(path, to_json(corrections))


def read_corrections(path: Path) -> Corrections:
    """The file that ``write_corrections`` wrote. Raises UserError where it is missing or no such file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"corrections {path} cannot be read ({error.strerror}): check the path") from None
    except ValueError as error:
        raise UserError(f"corrections {path} are not valid JSON ({error}): fit them again") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else None
        raise UserError(f"corrections {path} have schema {found!r}, not {SCHEMA!r}: fit them again")
    try:
        factors = {
            (str(model), str(phase)): _read_one(path, entry)
            for model, phases in document["factors"].items()
            for phase, entry in phases.items()
        }
        return Corrections(
            factors=factors, machine=str(document["machine"]), date=str(document["date"]),
            sources=tuple(map(str, document["sources"])),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"corrections {path} lack a field or have a wrong one ({error!r}): fit them again") from None


def _read_one(path: Path, entry: Mapping[str, Any]) -> Correction:
    factor = float(entry["factor"])
    if not 0 < factor < float("inf"):
        raise UserError(f"corrections {path} have a factor of {factor}: it must be above 0; fit them again")
    return Correction(factor=factor, quality=float(entry["quality"]), samples=int(entry["samples"]))
