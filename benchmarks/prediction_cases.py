"""What the predictor is held against on one host: sets of models and crystals in the layouts of 1, 2 and 4 ranks.

It owns which cases there are, not how they are measured (``prediction_steps.py``) nor judged (``prediction_judge.py``).
None of the models, cells and sizes is one that ``janus calibrate`` measures its constants with. The predictor's
formulas were written in sight of the main set; to the second one nothing was fitted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rank_jobs import make_structures

from janus.config import ExpertConfig, ModelConfig, to_mapping
from janus.data.graph import count_graph
from janus.data.reading import read_entries
from janus.data.store import StructureStore, write_store
from janus.data.structure import Structure

REPOSITORY = Path(__file__).resolve().parents[1]
MAIN_MODELS = {
    "matris": ModelConfig(num_blocks=3, width=64, cutoff_angstrom=4.6, line_cutoff_angstrom=3.2),
    "moe wide": ModelConfig(
        family="matris-moe", num_blocks=2, width=96, num_heads=4, angle_width=32,
        cutoff_angstrom=4.6, line_cutoff_angstrom=3.2,
        experts=ExpertConfig(num_experts=4, top_k=2, message_hidden=256, feature_hidden=128),
    ),
    "matris deep": ModelConfig(num_blocks=5, width=32, cutoff_angstrom=4.6, line_cutoff_angstrom=3.2),
}  # fmt: skip
SECOND_MODELS = {
    "matris 4x48": ModelConfig(num_blocks=4, width=48, cutoff_angstrom=5.0, line_cutoff_angstrom=3.4),
    "moe 3x64": ModelConfig(
        family="matris-moe", num_blocks=3, width=64, num_heads=2, angle_width=16,
        cutoff_angstrom=4.3, line_cutoff_angstrom=3.0,
        experts=ExpertConfig(num_experts=8, top_k=2, message_hidden=128, feature_hidden=64),
    ),
}  # fmt: skip
STORE_CUTOFFS = {"cutoff_angstrom": 4.6, "line_cutoff_angstrom": 3.2}
EQUAL, UNEVEN = "equal cells", "uneven cells"
DATA_SETS = (EQUAL, UNEVEN)
BATCH = 8  # structures of the global batch, over all ranks
NUM_STRUCTURES = 96  # of each data set: twelve batches before one comes again
UNEVEN_WORK = (60, 1800)  # edges + angles of the crystals that are taken
CAP_SHARES = 8  # a work cap: this part of a global batch
REAL_FILE = Path("structures") / "mptrj-random-1k.xyz"
SYNTHETIC_CELLS = ((1, 1, 1), (3, 1, 1), (2, 1, 1), (1, 1, 1), (1, 1, 1), (3, 1, 1), (2, 1, 1), (1, 1, 1))


@dataclass(frozen=True, kw_only=True)
class CaseSet:
    """Models, crystals and seeds that are measured together; every model takes all layouts on both data sets.

    seed: of a run (initial weights, gates of experts, order of the batches). first_salt: number of the first rock salt,
    a multiple of 8 so that the same salts follow. first_crystal: entries of the sample data that are passed over.
    """

    name: str
    models: Mapping[str, ModelConfig]
    seed: int = 0
    first_salt: int = 0
    first_crystal: int = 0

    def cases_of(self, num_ranks: int, model: str) -> list[Case]:
        """The layouts that a model of the set is measured in."""
        return cases_of(num_ranks, with_experts=self.models[model].experts is not None)

    def known_cases(self, num_ranks: int, model: str) -> dict[str, Case]:
        """The same by key."""
        return {case.key: case for case in self.cases_of(num_ranks, model)}

    def fingerprint(self) -> str:
        """Tells measurements of these cases from those of others: twelve digits of a hash."""
        cases = {f"{n} {e}": list(map(asdict, cases_of(n, with_experts=e))) for n in (1, 2, 4) for e in (False, True)}
        numbers = {"seed": self.seed, "first_salt": self.first_salt, "first_crystal": self.first_crystal}
        values = {
            "models": {name: to_mapping(model) for name, model in self.models.items()}, "cases": cases,
            "data": [BATCH, NUM_STRUCTURES, UNEVEN_WORK, CAP_SHARES, STORE_CUTOFFS, uneven_source()],
        } | {name: number for name, number in numbers.items() if number}  # fmt: skip
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


MAIN = CaseSet(name="main", models=MAIN_MODELS)
SECOND = CaseSet(name="second", models=SECOND_MODELS, seed=1, first_salt=1000, first_crystal=500)
SETS = {one.name: one for one in (MAIN, SECOND)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layout over one transport. parallel: settings of ``[parallel]``; capped: micro-batches of at most 1/8 of the
    global batch's work."""

    name: str
    parallel: dict[str, Any] = field(default_factory=dict)
    recompute: bool = False
    capped: bool = False
    transport: str = "gloo"

    @property
    def key(self) -> str:
        """Name and transport, which tell a case from all others of its model, data and ranks."""
        return f"{self.name} ({self.transport})" if self.transport == "mpi" else self.name


def cases_of(num_ranks: int, *, with_experts: bool) -> list[Case]:
    """The layouts of a number of ranks, pure data parallel first; some over MPI too."""
    n = num_ranks
    data = Case(name=f"data {n}")
    found = [data, Case(name=f"data {n}, recomputed", recompute=True), Case(name=f"data {n}, capped", capped=True)]
    if n == 1:
        return [*found, Case(name="data 1, capped, recomputed", capped=True, recompute=True)]
    found += _divided(n) + (_with_experts(n) if with_experts else _without_experts(n))
    names = {f"data {n}", f"shard {n}", f"graph {n}"}
    if with_experts:
        names = {f"data {n}", f"expert {n}, tokens", f"shard, graph, expert {n}"}
    over_mpi = [
        Case(name=case.name, parallel=case.parallel, recompute=case.recompute, capped=case.capped, transport="mpi")
        for case in found if case.name in names
    ]  # fmt: skip
    return found + over_mpi


def _divided(n: int) -> list[Case]:
    found = [
        Case(name=f"shard {n}", parallel={"unit": n, "shard_degree": n}),
        Case(name=f"shard {n}, all kept", parallel={"unit": n, "shard_degree": n, "gathered_blocks": 0}),
        Case(name=f"graph {n}", parallel={"unit": n, "graph_degree": n}),
    ]
    if n == 4:
        found.append(Case(name="shard 2 x 2 replicas", parallel={"unit": 2, "shard_degree": 2}))
    return found


def _without_experts(n: int) -> list[Case]:
    both = {"unit": n, "shard_degree": n, "graph_degree": n}
    found = [
        Case(name=f"shard {n}, recomputed", parallel={"unit": n, "shard_degree": n}, recompute=True),
        Case(name=f"shard {n}, graph {n}", parallel=both),
    ]
    if n == 2:
        return [*found, Case(name="shard 2, graph 2, capped, recomputed", parallel=both, capped=True, recompute=True)]
    return [
        *found,
        Case(name="shard 4, graph 2", parallel=both | {"graph_degree": 2}),
        Case(name="graph 2 x 2 replicas", parallel={"unit": 2, "graph_degree": 2}),
    ]


def _with_experts(n: int) -> list[Case]:
    all_three = {"unit": n, "shard_degree": n, "graph_degree": n, "expert_degree": n}
    found = [
        Case(name=f"expert {n}, tokens", parallel={"unit": n, "expert_degree": n}),
        Case(name=f"expert {n}, weights", parallel={"unit": n, "expert_degree": n, "expert_strategy": "weights"}),
        Case(name=f"shard {n}, expert {n}", parallel={"unit": n, "shard_degree": n, "expert_degree": n}),
        Case(name=f"shard, graph, expert {n}", parallel=all_three),
        Case(name=f"shard, graph, expert {n}, recomputed", parallel=all_three, recompute=True),
    ]
    if n == 4:
        pair = {"unit": 2, "shard_degree": 2, "graph_degree": 2, "expert_degree": 2}
        found.append(Case(name="shard, graph, expert 2 x 2 replicas", parallel=pair))
    return found


def _uneven_structures(folder: Path, chosen: CaseSet) -> Iterable[Structure]:
    """Crystals of MPtrj where the sample data are there, else rock salts of one to three cubes."""
    path = folder / REAL_FILE
    if not path.exists():
        for number in range(NUM_STRUCTURES):
            repeat = SYNTHETIC_CELLS[number % len(SYNTHETIC_CELLS)]
            yield from make_structures(1, repeat, chosen.first_salt + number % 8)
        return
    for entry in itertools.islice(read_entries(path), chosen.first_crystal, None):
        if entry.structure is not None:
            yield entry.structure


def uneven_source() -> str:
    """Where the uneven cells come from, in words."""
    found = (_sample_data() / REAL_FILE).exists()
    return REAL_FILE.name if found else "rock salts of one to three cubes (no sample data)"


def _sample_data() -> Path:
    return Path(os.environ.get("JANUS_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


def make_store(data: str, path: Path, chosen: CaseSet = MAIN) -> StructureStore:
    """Write the structures of a data set; the same ones whenever the same sample data are there."""
    if data == EQUAL:
        return write_store(path, make_structures(NUM_STRUCTURES, (2, 1, 1), chosen.first_salt), **STORE_CUTOFFS)
    of_size = filter(_is_of_size, _uneven_structures(_sample_data(), chosen))
    return write_store(path, itertools.islice(of_size, NUM_STRUCTURES), **STORE_CUTOFFS)


def _is_of_size(structure: Structure) -> bool:
    counts = count_graph(structure, *STORE_CUTOFFS.values())
    work = counts.num_edges + counts.num_angles
    return UNEVEN_WORK[0] <= work <= UNEVEN_WORK[1]
