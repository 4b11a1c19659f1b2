"""What a study is: the question, what is constant, what is scaled. It does not own how its cells are run.

A campaign file is TOML with one ``[[study]]`` table per study; the resolved declaration is kept beside the results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from janus.config import ModelConfig, from_mapping, read_toml, require_positive, to_mapping, to_toml
from janus.errors import UserError
from janus.presets import preset
from scaling_studies.atomic import write_atomically

CAMPAIGN_FILE = "campaign.toml"


@dataclass(frozen=True, kw_only=True)
class Study:
    """One scaling study.

    name: letters, digits, "-" and "_"; question: one sentence that the study answers.
    mode weak: ``structures_per_rank`` is constant; mode strong: ``structures_total`` is constant.
    ranks: the points; base_ranks: the point that efficiencies refer to (default: the smallest).
    repeats: good attempts wanted per point, each a job of its own; seed: of their random order.
    warm_up_steps: first steps of a job, recorded but not used; steps: those after them.
    max_work: cap on edges + angles of one micro-batch, 0 for no cap; recompute: second-order checkpointing.
    work_tolerance: largest relative difference of a rank's work between declaration and record.
    """

    name: str
    question: str
    mode: Literal["weak", "strong"]
    ranks: tuple[int, ...]
    base_ranks: int | None = None
    structures_per_rank: int | None = None
    structures_total: int | None = None
    repeats: int = 6
    warm_up_steps: int = 2
    steps: int = 8
    model: str = "matris-tiny"
    dtype: Literal["float32", "float64"] = "float32"
    recompute: bool = False
    max_work: int = 100_000
    seed: int = 0
    time_out_s: float = 600.0
    work_tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise UserError(f"study name {self.name!r} is not made of letters, digits, '-' and '_' alone: rename it")
        if not self.question.strip():
            raise UserError(f"study {self.name} has no question: say in one sentence what it shall answer")
        if self.mode not in ("weak", "strong"):
            raise UserError(f"study {self.name} has mode {self.mode!r}: use 'weak' or 'strong'")
        require_positive(self, "repeats", "steps", "time_out_s")
        if min(self.warm_up_steps, self.max_work) < 0 or not 0 <= self.work_tolerance < 1:
            raise UserError(
                f"study {self.name} has warm_up_steps {self.warm_up_steps}, max_work {self.max_work}, work_tolerance "
                f"{self.work_tolerance}: use 0 or more for the first two and a fraction in [0, 1) for the third"
            )
        self._check_points()
        self._check_constant()
        preset(self.model)

    def _check_points(self) -> None:
        if not self.ranks or any(ranks < 1 for ranks in self.ranks) or len(set(self.ranks)) != len(self.ranks):
            raise UserError(f"study {self.name} has ranks {list(self.ranks)}: list each point once, 1 or more")
        if self.base_ranks is not None and self.base_ranks not in self.ranks:
            raise UserError(f"study {self.name} has base_ranks {self.base_ranks}: choose one of {list(self.ranks)}")

    def _check_constant(self) -> None:
        wanted, foreign = ("structures_per_rank", "structures_total")[:: 1 if self.mode == "weak" else -1]
        if getattr(self, foreign) is not None:
            raise UserError(
                f"study {self.name} is {self.mode} but sets {foreign}: a {self.mode} study holds {wanted} constant, "
                "so remove it"
            )
        if getattr(self, wanted) is None:
            raise UserError(f"study {self.name} is {self.mode} and does not set {wanted}: it is what stays constant")
        require_positive(self, wanted)
        if self.mode == "strong" and self.structures_total is not None and self.structures_total < max(self.ranks):
            raise UserError(
                f"study {self.name} has {self.structures_total} structures in total for {max(self.ranks)} ranks: "
                "a rank would idle, so raise structures_total or leave the point out"
            )

    @property
    def base(self) -> int:
        """Ranks of the base point."""
        return self.base_ranks if self.base_ranks is not None else min(self.ranks)

    @property
    def distinct_structures(self) -> int:
        """Different structures the study takes from its data: one rank's share (weak) or the whole batch (strong)."""
        return self.structures_per_rank or self.structures_total or 0

    @property
    def model_config(self) -> ModelConfig:
        return preset(self.model)

    def copies(self, ranks: int) -> int:
        """How many times the distinct structures enter one global batch: once per rank (weak) or once (strong)."""
        return ranks if self.mode == "weak" else 1


def read_campaign(path: Path) -> tuple[Study, ...]:
    """Studies of a TOML campaign file. Raises UserError naming the file, the study and the rule."""
    values = read_toml(path)
    tables = values.get("study")
    if not isinstance(tables, list) or not tables or set(values) != {"study"}:
        raise UserError(f"{path} must hold [[study]] tables and nothing else: see 'janus study run --help'")
    try:
        return check_campaign(tuple(_study(table) for table in tables))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _study(table: Mapping[str, Any]) -> Study:
    try:
        return from_mapping(Study, table)
    except TypeError as error:
        raise UserError(f"study {table.get('name', '(no name)')!r} is incomplete: {error}") from None


def check_campaign(studies: tuple[Study, ...]) -> tuple[Study, ...]:
    """The studies, once their names are known to be distinct."""
    names = [study.name for study in studies]
    if len(set(names)) != len(names):
        raise UserError(f"study names are {', '.join(names)}: each must be used once")
    return studies


def write_campaign(folder: Path, studies: tuple[Study, ...]) -> None:
    """Keep the resolved declaration beside the results."""
    tables = ["[[study]]\n" + to_toml(to_mapping(study)) for study in studies]
    write_atomically(folder / CAMPAIGN_FILE, "\n".join(tables))


def quick_studies(num_cores: int, *, model: str = "matris-tiny") -> tuple[Study, ...]:
    """A weak and a strong study over 1, 2 and 4 ranks, as many as twice the cores allow; for a first look."""
    ranks = tuple(count for count in (1, 2, 4) if count <= 2 * num_cores)
    shared: dict[str, Any] = {"ranks": ranks, "repeats": 2, "warm_up_steps": 2, "steps": 5, "model": model}
    weak = Study(
        name="weak", mode="weak", structures_per_rank=2,
        question="How much longer does a step take when ranks are added and each keeps the same work?", **shared,
    )  # fmt: skip
    strong = Study(
        name="strong", mode="strong", structures_total=4,
        question="How much shorter does a step get when more ranks share the same work?", **shared,
    )  # fmt: skip
    return weak, strong
