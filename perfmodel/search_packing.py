"""What exchanges add to the ranks' own work, for many candidates at once: coefficients of ``exchange_arithmetic``.

It owns which parts of a layout add what; the numbers are ``exchange_work``'s, taken off unit inputs: it is affine in
the rows, in the rows that move and in the weights that arrive, and divided graphs, spread experts and shards add up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.layout import Layout
from perfmodel.compute_time import ROWS, feature_costs, features_of
from perfmodel.exchange_arithmetic import exchange_work
from perfmodel.machine import Rates
from perfmodel.model_rates import rates_of_model
from perfmodel.products import PHASES, Counts
from perfmodel.workload import ITEM_BYTES

Floats = NDArray[np.float64]

_NOTHING = Counts(structures=0, atoms=0, edges=0, bonds=0, angles=0)
_COUNTED = tuple(name for name in ROWS if hasattr(_NOTHING, name) and getattr(_NOTHING, name) is not None)


@dataclass(eq=False)
class ExchangeFeatures:
    """Features (``compute_time.FEATURES``) of what a layout adds, each worked out once, [4,F] apiece."""

    model: ModelConfig
    dtype: str
    known: dict[tuple[object, ...], Floats] = field(default_factory=dict)

    def divided(self, recompute: bool) -> tuple[Floats, Floats]:
        """Of a divided graph: per micro-batch [4,F], and per row of every kind [R,4,F]."""
        layout = Layout(unit=2, graph_degree=2)
        fixed = self._of(("graph", recompute), layout, _NOTHING, recompute)
        rows = np.zeros((len(ROWS), *fixed.shape))
        for name in _COUNTED:
            counts = Counts(**{**_NOTHING.__dict__, name: 1.0})
            rows[ROWS.index(name)] = self._of(("row", name, recompute), layout, counts, recompute) - fixed
        return fixed, rows

    def spread(self, expert: int, recompute: bool, compressed: bool) -> tuple[Floats, Floats, Floats]:
        """Of spread experts: per micro-batch, per row that moves, per number of weights that arrives."""
        layout, key = Layout(unit=expert, expert_degree=expert), ("expert", expert, recompute, compressed)
        fixed = self._of(key, layout, _NOTHING, recompute, compressed=compressed)
        row = self._of((*key, "row"), layout, _NOTHING, recompute, compressed=compressed, moved_rows=(1.0, 0.0))
        weight = self._of((*key, "weight"), layout, _NOTHING, recompute, compressed=compressed, moved_weights=1.0)
        return fixed, row - fixed, weight - fixed

    def sharded(self, spread: bool, recompute: bool) -> Floats:
        """Of sharded parameters, per micro-batch."""
        expert = 2 if spread else 1
        layout = Layout(unit=2, shard_degree=2, expert_degree=expert)
        whole = self._of(("shard", spread, recompute), layout, _NOTHING, recompute)
        return whole - self.spread(2, recompute, False)[0] if spread else whole

    def costs(self, rates: Rates) -> Floats:
        """Seconds per feature [F]."""
        return np.asarray(feature_costs(rates_of_model(rates, self.model), ITEM_BYTES[self.dtype]).sum(axis=1))

    def _of(
        self, key: tuple[object, ...], layout: Layout, counts: Counts, recompute: bool, **moved: object
    ) -> Floats:  # fmt: skip
        if key not in self.known:
            work = exchange_work(
                self.model, layout, counts, recompute=recompute, item_bytes=ITEM_BYTES[self.dtype],
                **moved,  # type: ignore[arg-type]
            )  # fmt: skip
            self.known[key] = np.stack([features_of(work[phase]) for phase in PHASES])
        return self.known[key]
