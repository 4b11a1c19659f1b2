"""Settings of one training run. It owns names, defaults and their rules, not how they are used. Never imports torch.

Energies eV, lengths angstrom; work = directed edges + angles of a structure. Table of all settings: docs/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from janus.config import ModelConfig, apply_overrides, from_mapping, read_toml, require_positive, to_mapping
from janus.errors import UserError
from janus.layout import Layout
from janus.presets import preset

DEFAULT_MODEL = "matris-tiny"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the structures come from.

    path: a store, or any file that ASE reads (packed once into a store).
    validation_path: labelled structures kept apart; or validation_fraction of ``path``, drawn by ``seed``.
    """

    path: Path | None = None
    validation_path: Path | None = None
    validation_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction is {self.validation_fraction}: it must be in [0, 1), for instance 0.1"
            )
        if self.validation_path is not None and self.validation_fraction > 0:
            raise UserError("data.validation_path and data.validation_fraction are both set: keep one of them")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What one optimizer step sees.

    structures: structures of the global batch, over all ranks.
    max_work: cap on edges + angles of one micro-batch; micro-batches accumulate gradients exactly. None: no cap.
    A structure above the cap is a micro-batch of its own.
    """

    structures: int = 8
    max_work: int | None = 100_000

    def __post_init__(self) -> None:
        if self.structures < 1:
            raise UserError(f"batch.structures is {self.structures}: a batch needs at least 1 structure")
        if self.max_work is not None and self.max_work < 1:
            raise UserError(f"batch.max_work is {self.max_work}: it must be at least 1 (edges + angles)")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the three terms; a weight of 0 drops the term. A sum over the global batch, divided by its counts.

    energy: of energy per atom (eV/atom); forces: of components (eV/angstrom); stress: of components (eV/angstrom^3).
    kind: l1, l2 or huber (quadratic below huber_delta, in the unit of the term).
    """

    kind: Literal["l1", "l2", "huber"] = "huber"
    energy: float = 1.0
    forces: float = 1.0
    stress: float = 10.0
    huber_delta: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, "huber_delta")
        for name in ("energy", "forces", "stress"):
            if not getattr(self, name) >= 0:
                raise UserError(f"loss.{name} is {getattr(self, name)}: a weight must be 0 or more")
        if self.energy == self.forces == self.stress == 0:
            raise UserError("loss.energy, loss.forces and loss.stress are all 0: give at least one a weight above 0")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101). clip_norm: cap on the global gradient norm, None: none. ema_decay 0: no average."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip_norm: float | None = 10.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "epsilon")
        if self.weight_decay < 0:
            raise UserError(f"optimizer.weight_decay is {self.weight_decay}: it must be 0 or more")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas is {list(self.betas)}: it must be two numbers in [0, 1)")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"optimizer.clip_norm is {self.clip_norm}: it must be above 0")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"optimizer.ema_decay is {self.ema_decay}: it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the run: linear warm-up, then cosine down to ``final_fraction``, or constant."""

    kind: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 10
    final_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps is {self.warmup_steps}: it must be 0 or more")
        if not 0 <= self.final_fraction <= 1:
            raise UserError(f"schedule.final_fraction is {self.final_fraction}: it must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long and how. steps or epochs: one of them (neither: 100 steps).

    device auto: a GPU per rank where there are GPUs. threads: per rank; 0: the host's cores shared among its ranks.
    hang_timeout_s: longest wait in one collective before the ranks that did not come are named and the run stops.
    recompute: second-order activation checkpointing. verify: before step 0, hold the layout to a single process on a
    small batch (as 'janus check gradients' does) and refuse to train if they differ.
    compile: energies and forces as one compiled graph (minutes at the first step); matris models that are not divided.
    tf32: TF32 matrix products on GPUs that have them. checkpoint_every, validate_every: in steps; 0: never
    (a checkpoint is still written at the end). keep: newest checkpoints kept, beside the best one.
    """

    steps: int | None = None
    epochs: int | None = None
    dtype: Literal["float32", "float64"] = "float32"
    tf32: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    hang_timeout_s: float = 1800.0
    recompute: bool = False
    compile: bool = False
    verify: bool = False
    checkpoint_every: int = 100
    validate_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        require_positive(self, "keep", "hang_timeout_s")
        if self.steps is not None and self.epochs is not None:
            raise UserError(f"run.steps {self.steps} and run.epochs {self.epochs} are both set: keep one of them")
        for name in ("steps", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"run.{name} is {value}: it must be at least 1")
        for name in ("threads", "checkpoint_every", "validate_every"):
            if getattr(self, name) < 0:
                raise UserError(f"run.{name} is {getattr(self, name)}: it must be 0 or more")

    def num_steps(self, num_structures: int, batch_structures: int) -> int:
        """Optimizer steps of the run; an epoch has floor(structures / batch) of them, at least one."""
        if self.epochs is not None:
            return self.epochs * max(1, num_structures // batch_structures)
        return self.steps if self.steps is not None else 100


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The layout: degrees as in janus.layout.Layout, which checks them. replicas None: whatever fills the ranks.

    transport: what carries the axes' data. auto: NCCL between GPUs, gloo between CPUs; mpi: non-blocking MPI (CPUs).
    gathered_blocks: blocks whose sharded parameters may be gathered at one time (2: the one in use and the next one);
    0 keeps every block gathered until the end of a step, for speed. Experts: "tokens" move to experts, or expert
    "weights" to tokens; expert_replication: hot experts are copied to idle ranks for a step where that pays, by
    expert_flops_per_byte, what a rank computes while its link carries one byte (janus.placement.ReplicationRule);
    expert_compression: what the expert all-to-all carries. bucket_bytes: size of the flattened gradient buckets that
    one all-reduce carries.
    """

    unit: int = 1
    replicas: int | None = None
    shard_degree: int = 1
    graph_degree: int = 1
    expert_degree: int = 1
    placement: Literal["unit_first", "replica_first"] = "unit_first"
    transport: Literal["auto", "gloo", "nccl", "mpi"] = "auto"
    gathered_blocks: int = 2
    expert_strategy: Literal["tokens", "weights"] = "tokens"
    expert_replication: bool = True
    expert_flops_per_byte: float = 200.0
    expert_compression: Literal["none", "float16"] = "none"
    bucket_bytes: int = 25 * 1024 * 1024

    def __post_init__(self) -> None:
        require_positive(self, "bucket_bytes", "expert_flops_per_byte")
        if self.gathered_blocks != 0 and self.gathered_blocks < 2:
            raise UserError(
                f"parallel.gathered_blocks is {self.gathered_blocks}: use 2 (the block in use and the next) or more, "
                "or 0 to keep all"
            )
        self._layout_with(self.replicas or 1)

    def _layout_with(self, replicas: int) -> Layout:
        return Layout(
            unit=self.unit, replicas=replicas, shard_degree=self.shard_degree,
            graph_degree=self.graph_degree, expert_degree=self.expert_degree, placement=self.placement,
        )  # fmt: skip

    def layout(self, world_size: int) -> Layout:
        """The layout of this many ranks. Raises UserError when it does not fill them."""
        layout = self._layout_with(self.replicas if self.replicas is not None else max(1, world_size // self.unit))
        layout.check_world_size(world_size)
        return layout


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run; ``config.toml`` in the run folder holds them resolved."""

    model: ModelConfig = field(default_factory=lambda: preset(DEFAULT_MODEL))
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if self.parallel.expert_degree > 1 and self.model.experts is None:
            raise UserError(
                f"parallel.expert_degree is {self.parallel.expert_degree} but the model has no experts: "
                "set it to 1 or use a matris-moe model"
            )
        if self.parallel.graph_degree > 1 and self.model.compat:
            raise UserError(
                f"parallel.graph_degree is {self.parallel.graph_degree} but the model is compat, whose softmax cannot "
                "be split over ranks: set it to 1 or model.compat to false"
            )
        if self.run.compile:
            self._require_compilable()

    def _require_compilable(self) -> None:
        for name in ("shard_degree", "graph_degree", "expert_degree"):
            degree = getattr(self.parallel, name)
            if degree > 1:
                raise UserError(
                    f"run.compile is true and parallel.{name} is {degree}: a compiled graph cannot hold the exchanges "
                    f"between ranks; set run.compile to false or parallel.{name} to 1"
                )
        if self.run.recompute:
            raise UserError(
                "run.compile and run.recompute are both true: a compiled graph decides itself what it keeps; "
                "set one of them to false"
            )
        if self.model.experts is not None:
            raise UserError(
                f"run.compile is true and model.family is {self.model.family!r}: the number of rows of each expert "
                "depends on the data, which one graph for all batches cannot hold; set run.compile to false"
            )


def _expand_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """``model = "NAME"`` as the table ``{preset = "NAME"}``, so that overlays can add fields to it."""
    result = dict(values)
    if isinstance(result.get("model"), str):
        result["model"] = {"preset": result["model"]}
    return result


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain values of ``above`` laid over ``below``; a preset named above replaces the whole model below."""
    below, above = _expand_model(below), _expand_model(above)
    result = dict(below)
    for name, value in above.items():
        under = result.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping) and "preset" not in value:
            result[name] = merge(under, value)
        else:
            result[name] = value
    return result


def _resolve_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """A model table with its preset, if it names one, filled in."""
    table = dict(values)
    if "preset" not in table:
        return table
    name = table.pop("preset")
    if not isinstance(name, str):
        raise UserError(f"model.preset is {name!r}: it must be a name, see 'janus model list'")
    return merge(to_mapping(preset(name)), table)


def train_config(values: Mapping[str, Any]) -> TrainConfig:
    """TrainConfig of nested plain values (a TOML file, a plan's ``train`` table). Raises UserError."""
    values = _expand_model(values)
    if isinstance(values.get("model"), Mapping):
        values["model"] = _resolve_model(values["model"])
    for name, value in values.items():
        if name in TrainConfig.__dataclass_fields__ and not isinstance(value, Mapping):
            raise UserError(f"setting {name!r} is {value!r}: a section is a table [{name}] or --{name}.FIELD=value")
    return from_mapping(TrainConfig, values)


def load_train_config(
    file: Path | None = None, *overlays: Mapping[str, Any], overrides: Sequence[str] = ()
) -> TrainConfig:
    """Defaults, under the TOML file, under each overlay in turn, under ``--section.field=value`` words."""
    values: dict[str, Any] = {"model": DEFAULT_MODEL}
    for layer in (read_toml(file) if file is not None else {}, *overlays):
        if isinstance(layer.get("model"), Mapping) and "preset" not in layer["model"] and "family" in layer["model"]:
            values.pop("model")  # a full table stands for itself
        values = merge(values, layer)
    return train_config(apply_overrides(values, overrides))
