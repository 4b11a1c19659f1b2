"""Starts the ranks of the benchmarks that compare layouts, and what they share: batch, models, one step, provenance.

It does not own what is measured (``layouts.py``, ``compression.py``).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import torch
from ase.build import bulk

import janus
from janus.config import ExpertConfig, ModelConfig
from janus.data.structure import Structure
from janus.parallel.communication import Communicator
from janus.parallel.fs3d import Axes, DistributedModel, distribute
from janus.train.config import BatchConfig, ParallelConfig, RunConfig, TrainConfig
from janus.train.loader import BatchLoader, MicroBatch
from janus.train.loss import Denominators, denominators_of_labels
from janus.train.optimizer import build_optimizer
from janus.train.sampler import share_in_lockstep
from janus.train.step import accumulate_gradients, update
from janus.train.timing import PhaseTimer
from janus.train.verify import work_of

# eight rock salts of sixteen elements, all with one lattice constant: equal work for every rank, diverse experts
SALTS = ("LiF", "NaCl", "KBr", "MgO", "CaS", "MnSe", "NiTe", "RbI")
LATTICE_ANGSTROM = 5.0
RATTLE_ANGSTROM = 0.05
CUTOFFS = {"cutoff_angstrom": 4.2, "line_cutoff_angstrom": 3.0}
MODELS = {
    "moe": ModelConfig(
        family="matris-moe", num_blocks=6, width=192, num_heads=4, angle_width=32, **CUTOFFS,
        experts=ExpertConfig(num_experts=16, top_k=2, message_hidden=256, feature_hidden=128),
    ),
    "matris": ModelConfig(num_blocks=6, width=128, **CUTOFFS),
    "moe-small": ModelConfig(
        family="matris-moe", num_blocks=3, width=32, num_heads=2, angle_width=16, **CUTOFFS,
        experts=ExpertConfig(num_experts=8, top_k=2, message_hidden=64, feature_hidden=32),
    ),
    "matris-small": ModelConfig(num_blocks=3, width=32, **CUTOFFS),
}  # fmt: skip


def make_structures(num_structures: int, repeat: tuple[int, int, int], first: int = 0) -> list[Structure]:
    """Rattled rock salts of 8 atoms per cube, with labels of about the right size (random: only costs are measured).
    first: number of the first one, which salt and rattling follow from."""
    structures = []
    for number in range(first, first + num_structures):
        atoms = bulk(SALTS[number % len(SALTS)], "rocksalt", a=LATTICE_ANGSTROM, cubic=True).repeat(repeat)
        generator = np.random.default_rng(number)
        atoms.positions += generator.normal(0.0, RATTLE_ANGSTROM, atoms.positions.shape)
        stress = generator.normal(0.0, 0.01, (3, 3))
        structures.append(structure_of(
            atoms, energy=float(generator.normal()), forces=generator.normal(0.0, 0.5, atoms.positions.shape),
            stress=(stress + stress.T) / 2,
        ))  # fmt: skip
    return structures


def structure_of(atoms: ase.Atoms, **labels: Any) -> Structure:
    return Structure(
        numbers=atoms.numbers.astype(np.int32), positions=atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc,
        **labels,
    )  # fmt: skip


@dataclass(kw_only=True)
class Workload:
    """A model and the global batch of every step, divided by the ranks of the layout: strong scaling."""

    model: ModelConfig
    structures: list[Structure]
    work: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.work = work_of(self.structures, TrainConfig(model=self.model))

    def config(self, parallel: Mapping[str, Any], *, recompute: bool = False, dtype: str = "float32") -> TrainConfig:
        return TrainConfig(
            model=self.model, batch=BatchConfig(structures=len(self.structures), max_work=None),
            run=RunConfig(dtype=dtype, seed=0, recompute=recompute), parallel=ParallelConfig(**parallel),
        )  # fmt: skip

    def load(self, config: TrainConfig, axes: Axes, communicator: Communicator) -> list[MicroBatch]:
        """This rank's micro-batches, at most one."""
        layout = config.parallel.layout(communicator.world_size)
        shares = share_in_lockstep(self.work, range(len(self.structures)), layout, communicator.rank, None)
        return self._loader(config, axes).load(shares)

    def denominators(self, config: TrainConfig) -> Denominators:
        everything = self._loader(config, None).load_micro_batch(list(range(len(self.structures))))
        return denominators_of_labels(everything.labels)

    def _loader(self, config: TrainConfig, axes: Axes | None) -> BatchLoader:
        return BatchLoader(
            self.structures, cutoff_angstrom=self.model.cutoff_angstrom,
            line_cutoff_angstrom=self.model.line_cutoff_angstrom, dtype=getattr(torch, config.run.dtype),
            device=torch.device("cpu"), graph=axes.graph if axes is not None else None,
        )  # fmt: skip


class Stepper:
    """The trainer's step on a fixed batch: gradients, their sums, the update."""

    def __init__(self, workload: Workload, config: TrainConfig, communicator: Communicator, axes: Axes) -> None:
        self.config = config
        self.micro_batches = workload.load(config, axes, communicator)
        self.denominators = workload.denominators(config)
        layout = config.parallel.layout(communicator.world_size)
        self.distributed: DistributedModel = distribute(config, layout, communicator, axes=axes)
        sums = self.distributed.sums
        self.optimizer = build_optimizer(self.distributed.pieces, config.optimizer, sums.stages)

    def step(self, timer: PhaseTimer | None = None) -> float:
        """One step; this rank's part of the loss."""
        timer = timer if timer is not None else PhaseTimer(torch.device("cpu"))
        self.optimizer.zero_grad(set_to_none=True)
        totals, _ = accumulate_gradients(
            self.distributed, self.micro_batches, self.denominators, self.config.loss, timer
        )
        update(self.distributed, self.optimizer, self.config.optimizer.clip_norm, timer)
        return float(totals[0])


def run_ranks(num_ranks: int, words: Sequence[str], timeout_s: float) -> str:
    """Run a Python command on some ranks of this host, one thread each; what it printed."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    launcher = [str(mpiexec) if mpiexec.exists() else "mpiexec", "-n", str(num_ranks)] if num_ranks > 1 else []
    done = subprocess.run(
        [*launcher, sys.executable, *words], stdout=subprocess.PIPE, text=True, timeout=timeout_s,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{num_ranks} ranks ended with exit code {done.returncode}")
    return done.stdout


def launch(script: str, num_ranks: int, job: Mapping[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """Run ``script --on-ranks JOB`` on some ranks; the JSON lines that rank 0 printed."""
    printed = run_ranks(num_ranks, [script, "--on-ranks", json.dumps(job)], timeout_s)
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def progress(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def provenance(benchmark: str) -> dict[str, Any]:
    """What a result needs to be judged by: command, versions, cores, load."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "benchmark": benchmark,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"janus": janus.__version__, "python": platform.python_version(), "torch": torch.__version__}
        | {name: metadata.version(name) for name in ("numpy", "mpi4py")},
        "mpi": _mpi_version(), "cores": cores, "processor": platform.machine(), "threads_per_rank": 1,
        "load_at_start": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def _mpi_version() -> str:
    """Name and version of the MPI library, asked of another process: this one starts ranks."""
    program = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    words = done.stdout.split()
    return " ".join(words[:3]) if words else "n/a"
