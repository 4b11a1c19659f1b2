"""The rates of a machine as one model meets them: at its widths, and as its family's operators are written.

It owns two corrections. A fused operator costs something per row beside its elements (a norm sums over each row), which
for narrow models is most of it: seconds per element become s + s_row / channels. And the constants that were fitted to
steps of the model's family take the place of the plain ones. It does not own the constants (``machine``) nor what they
are multiplied with (``compute_time``).
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache

from janus.config import ModelConfig
from perfmodel.machine import FamilyRates, Rates
from perfmodel.operators import FUSED_KINDS
from perfmodel.products import Counts
from perfmodel.workload import operators_of

# Rows that the operators of one kind are weighed by where their widths differ (angle_width and width of MatRIS-MoE):
# a close-packed metal at cutoffs of 5 and 3.5 angstrom; crystals of any other kind change the result by a few per cent
TYPICAL = Counts(structures=0.05, atoms=1, edges=42, bonds=12, angles=132)


@lru_cache(maxsize=256)
def fused_channels(model: ModelConfig) -> dict[str, float]:
    """Mean width of the rows of each fused operator kind in a model, by elements over rows; 1 where it has none."""
    found: dict[str, float] = {}
    for kind in FUSED_KINDS:
        chosen = [operator for operator in operators_of(model) if operator.kind == kind]
        rows = sum(replace(operator, channels=1).elements(TYPICAL) for operator in chosen)
        found[kind] = sum(operator.elements(TYPICAL) for operator in chosen) / rows if rows else 1.0
    return found


def rates_of_model(rates: Rates, model: ModelConfig) -> Rates:
    """The same rates with what depends on the model put in: no fused_row_s, no families, a step_stretch of its own."""
    fused_s = rates.fused_s
    if fused_s is not None and rates.fused_row_s is not None:
        row_s, channels = rates.fused_row_s, fused_channels(model)
        fused_s = {
            kind: {name: seconds + row_s[kind][name] / channels[kind] for name, seconds in passes.items()}
            for kind, passes in fused_s.items()
        }
    plain = replace(rates, fused_s=fused_s, fused_row_s=None, families={})
    own = rates.families.get(model.family)
    if own is None:
        return plain
    if fused_s is not None:
        fused_s = {
            kind: {name: seconds * own.operator_stretch for name, seconds in passes.items()}
            for kind, passes in fused_s.items()
        }
    grouped_flops_per_s = rates.grouped_flops_per_s or rates.matmul_flops_per_s
    return replace(
        plain, fused_s=fused_s, step_stretch=1.0,
        matmul_flops_per_s=rates.matmul_flops_per_s / own.product_stretch,
        matmul_bytes_per_s=rates.matmul_bytes_per_s / own.product_stretch,
        grouped_flops_per_s=grouped_flops_per_s / own.product_stretch, grouped_call_s=own.grouped_call_s,
        plain_bytes_per_s=own.plain_bytes_per_s, fresh_bytes_per_s=own.fresh_bytes_per_s,
        op_s=own.op_s, batch_s=own.batch_s,
    )  # fmt: skip


def scaled(value: object, name: str, factor: float) -> object:
    """A rate by its name when everything takes factor times as long: seconds grow, rates per second shrink, tables of
    them too; everything else stays.
    """
    if isinstance(value, dict):
        return {key: scaled(entry, key if name == "families" else name, factor) for key, entry in value.items()}
    if isinstance(value, FamilyRates):
        return replace(value, **{
            entry.name: scaled(getattr(value, entry.name), entry.name, factor) for entry in fields(value)
        })  # type: ignore[arg-type]  # fmt: skip
    if isinstance(value, int | float) and name.endswith("_per_s"):
        return value / factor
    if isinstance(value, int | float) and name.endswith("_s"):
        return value * factor
    return value
