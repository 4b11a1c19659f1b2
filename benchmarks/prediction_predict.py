"""Asks the predictor for the measured steps: with what only the run knows, or with what is known before launch.

"exact": the parts of divided graphs and the experts that the gates choose are handed in, from the trainer's own code.
"planned": estimated from the store's counts and drawn at random, as a planner has to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prediction_judge import Measured
from prediction_steps import config_of, open_data
from prediction_truth import RealDivisions, real_experts

from janus.config import ModelConfig, to_mapping
from janus.data.store import StructureStore
from janus.train.sampler import Sampler
from perfmodel.corrections import Corrections
from perfmodel.dataset import DataCounts
from perfmodel.machine import Machine
from perfmodel.prices import Prices
from perfmodel.run_validation import data_counts, settings_of
from perfmodel.step_time import StepPrediction, predict
from perfmodel.step_work import StepWork, step_work


class Predictor:
    """Predictions with one machine's constants; the work of each step is kept, so that asking again is cheap.

    models: by name. seed: of the measured runs. prices: of collectives, None for the machine's own.
    """

    def __init__(
        self,
        machine: Machine,
        stores: Mapping[str, str],
        *,
        models: Mapping[str, ModelConfig],
        seed: int = 0,
        prices: Prices | None = None,
    ) -> None:
        self._machine, self._paths, self._prices = machine, stores, prices
        self._models, self._seed = models, seed
        self._data: dict[tuple[str, str], tuple[StructureStore, DataCounts]] = {}
        self._divisions: dict[tuple[str, str, int], RealDivisions] = {}
        self._experts: dict[str, Any] = {}
        self._works: dict[tuple, StepWork] = {}

    def __call__(self, case: Measured, knowledge: str, corrections: Corrections | None = None) -> list[StepPrediction]:
        """One of each measured step."""
        works = (self.work(case, step["step"], knowledge) for step in case.steps)
        return [predict(work, self._machine, prices=self._prices, corrections=corrections) for work in works]

    def work(self, case: Measured, step: int, knowledge: str) -> StepWork:
        """What the ranks do in one step."""
        key = (*case.group, case.case.key, step, knowledge)
        if key not in self._works:
            model = self._models[case.model]
            store, counts = self._store(case.data, case.model)
            config = config_of(case.case, model, store, self._seed)
            sampler = Sampler(store.work, range(len(store)), config.batch.structures, config.run.seed)
            layout = config.parallel.layout(case.ranks)
            known = {}
            if knowledge == "exact":
                known = {"experts": self._experts_of(case.model)}
                if layout.graph_degree > 1:
                    known["divisions"] = self._divisions_of(case, layout.graph_degree)
            settings = settings_of(to_mapping(config))
            self._works[key] = step_work(model, counts, sampler.batch(step), layout, settings, **known)
        return self._works[key]

    def _store(self, data: str, model: str) -> tuple[StructureStore, DataCounts]:
        if (data, model) not in self._data:
            store = open_data(Path(self._paths[data]), self._models[model])
            self._data[data, model] = store, data_counts(store)
        return self._data[data, model]

    def _experts_of(self, model: str) -> Any:
        if model not in self._experts:
            self._experts[model] = real_experts(self._models[model], self._seed)
        return self._experts[model]

    def _divisions_of(self, case: Measured, degree: int) -> RealDivisions:
        key = (case.data, case.model, degree)
        if key not in self._divisions:
            self._divisions[key] = RealDivisions(
                self._store(case.data, case.model)[0], self._models[case.model], degree
            )
        return self._divisions[key]
