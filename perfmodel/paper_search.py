"""Bands, deciding unknowns and assignments of a model with many unknowns: seeded, vectorised, without any physics.

It owns sampling, corners, swings, rank correlations and the search. It does not own what the unknowns are
(``paper_unknowns``) nor what an assignment costs: callers hand in ``price``, which maps arrays of every unknown [C] to
arrays of every row [C].

Legend: C assignments at once, U unknowns, cube [C,U] in [0,1]: each unknown's place in its range.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Assignments = dict[str, Floats]
PriceOf = Callable[[Assignments], Mapping[str, Floats]]
Scale = Literal["linear", "log", "choice"]

SWING_POINTS = 9
PARENTS, CHILDREN = 48, 20  # of a generation of the search: elites, and children of each
FIRST_STEP, LAST_STEP = 0.30, 0.004  # of mutations, in the cube


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """What nobody published: a number between low and high, or one of choices. reason: why this range.

    value: the default. decides: rows it is expected to act on, in words.
    """

    key: str
    label: str
    unit: str
    value: float
    low: float
    high: float
    scale: Scale
    reason: str
    choices: tuple[float, ...] = ()
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scale == "choice":
            assert self.value in self.choices, f"{self.key}: {self.value} is none of {self.choices}"
            assert len(self.words) in (0, len(self.choices)), f"{self.key}: {self.words} for {self.choices}"
        else:
            assert self.low <= self.value <= self.high, f"{self.key}: {self.low} <= {self.value} <= {self.high}"
            assert self.scale == "linear" or self.low > 0, f"{self.key}: {self.low} on a logarithmic scale"

    def at(self, place: Floats) -> Floats:
        """Values at places in [0,1]."""
        if self.scale == "choice":
            index = np.minimum((np.asarray(place) * len(self.choices)).astype(np.int64), len(self.choices) - 1)
            return np.asarray(self.choices, dtype=np.float64)[index]
        if self.scale == "log":
            return np.asarray(self.low * (self.high / self.low) ** place)
        return np.asarray(self.low + (self.high - self.low) * place)

    def place(self, value: float) -> float:
        """Place in [0,1] of a value."""
        if self.scale == "choice":
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.low == self.high:
            return 0.5
        if self.scale == "log":
            return float(np.log(value / self.low) / np.log(self.high / self.low))
        return (value - self.low) / (self.high - self.low)

    def places(self, number: int) -> Floats:
        """Places that cover the range: every choice, or ``number`` of them evenly from low to high."""
        if self.scale == "choice":
            return (np.arange(len(self.choices)) + 0.5) / len(self.choices)
        return np.linspace(0.0, 1.0, number)

    def say(self, value: float) -> str:
        """A value in words."""
        if self.words:
            return self.words[self.choices.index(value)]
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Space:
    """The unknowns of a model, in order."""

    def __init__(self, unknowns: Sequence[Unknown]) -> None:
        self.unknowns = tuple(unknowns)
        self.keys = tuple(unknown.key for unknown in unknowns)
        assert len(set(self.keys)) == len(self.keys), f"unknown twice in {self.keys}"

    def __len__(self) -> int:
        return len(self.unknowns)

    def assignments(self, cube: Floats) -> Assignments:
        """Values of every unknown of cube [C,U]."""
        return {unknown.key: unknown.at(cube[:, place]) for place, unknown in enumerate(self.unknowns)}

    def defaults(self) -> Floats:
        """The cube [1,U] of the default values."""
        return np.array([[unknown.place(unknown.value) for unknown in self.unknowns]])

    def cube_of(self, values: Mapping[str, float]) -> Floats:
        """The cube [1,U] of one assignment."""
        return np.array([[unknown.place(values[unknown.key]) for unknown in self.unknowns]])

    def spread(self, number: int, generator: np.random.Generator) -> Floats:
        """A Latin hypercube [number,U]: every unknown's range is met evenly."""
        columns = [
            (generator.permutation(number) + generator.random(number)) / number for _ in range(len(self.unknowns))
        ]
        return np.stack(columns, axis=1)


@dataclass(frozen=True, kw_only=True)
class Band:
    """Of one row: at the defaults, smallest and largest that the unknowns allow (samples and corners), and the middle
    nine tenths of the samples."""

    default: float
    low: float
    high: float
    low_5: float
    high_95: float


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """What one unknown does to one row. swing: (largest - smallest) / default value over its range, all else at the
    defaults; correlation: Spearman's, over the samples (choices by their order)."""

    row: str
    key: str
    swing: float
    correlation: float


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Bands by row, and what every unknown does to every row, the largest swing first."""

    bands: dict[str, Band]
    deciding: tuple[Deciding, ...]
    num_samples: int

    def of_row(self, row: str, number: int) -> list[Deciding]:
        """The unknowns that decide a row."""
        return [one for one in self.deciding if one.row == row][:number]


def survey(space: Space, price: PriceOf, rows: Sequence[str], *, num_samples: int = 4000, seed: int = 0) -> Survey:
    """Bands and deciding unknowns. Samples: a Latin hypercube; corners: for every row the ends of all ranges that
    lower it, and those that raise it, one at a time."""
    generator = np.random.default_rng([seed, 0x5E7])
    cube = space.spread(num_samples, generator)
    sampled = price(space.assignments(cube))
    default = price(space.assignments(space.defaults()))
    moved, swings = _one_at_a_time(space, price, rows)
    corners = _corners(space, rows, moved)
    cornered = price(space.assignments(corners))
    bands = {}
    for row in rows:
        seen = np.concatenate([sampled[row], cornered[row], default[row], *(values[row] for _, _, values in moved)])
        low_5, high_95 = np.quantile(sampled[row], [0.05, 0.95])
        bands[row] = Band(default=float(default[row][0]), low=float(seen.min()), high=float(seen.max()),
                          low_5=float(low_5), high_95=float(high_95))  # fmt: skip
    ranks = np.argsort(np.argsort(cube, axis=0, kind="stable"), axis=0, kind="stable")
    found = []
    for row in rows:
        row_ranks = np.argsort(np.argsort(sampled[row], kind="stable"), kind="stable")
        for place, key in enumerate(space.keys):
            correlation = float(np.corrcoef(ranks[:, place], row_ranks)[0, 1]) if np.ptp(sampled[row]) > 0 else 0.0
            found.append(Deciding(row=row, key=key, swing=swings[row][place], correlation=correlation))
    found.sort(key=lambda one: (rows.index(one.row), -one.swing, one.key))
    return Survey(bands=bands, deciding=tuple(found), num_samples=num_samples)


_Moved = list[tuple[int, Floats, Mapping[str, Floats]]]  # unknown, its places, rows there


def _one_at_a_time(space: Space, price: PriceOf, rows: Sequence[str]) -> tuple[_Moved, dict[str, list[float]]]:
    """Every unknown moved over its range, all else at the defaults; and the swings of the rows, by unknown."""
    moved: _Moved = []
    swings: dict[str, list[float]] = {row: [] for row in rows}
    default = price(space.assignments(space.defaults()))
    for place, unknown in enumerate(space.unknowns):
        places = unknown.places(SWING_POINTS)
        cube = np.repeat(space.defaults(), len(places), axis=0)
        cube[:, place] = places
        values = price(space.assignments(cube))
        moved.append((place, places, values))
        for row in rows:
            swings[row].append(float(np.ptp(values[row]) / default[row][0]))
    return moved, swings


def _corners(space: Space, rows: Sequence[str], moved: _Moved) -> Floats:
    """Two corners for each row [2 rows,U]: each unknown where it alone makes the row smallest, or largest."""
    corners = []
    for row in rows:
        low, high = space.defaults()[0], space.defaults()[0]
        for place, places, values in moved:
            if np.ptp(values[row]) > 0:
                low[place], high[place] = places[np.argmin(values[row])], places[np.argmax(values[row])]
        corners += [low, high]
    return np.array(corners)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best assignment of a search.

    errors: row -> predicted / published - 1; worst: the largest of them in size; exists: all within the tolerance;
    accepted: every assignment within the tolerance that was met [A,U] in the cube; tried: assignments priced.
    stopped_early: by the time limit (the outcome then depends on the machine's speed).
    """

    values: dict[str, float]
    rows: dict[str, float]
    errors: dict[str, float]
    worst: float
    exists: bool
    accepted: Floats
    tried: int
    stopped_early: bool


def search(
    space: Space,
    price: PriceOf,
    targets: Mapping[str, float],
    *,
    tolerance: float = 0.10,
    generations: int = 60,
    seed: int = 0,
    limit_s: float = 60.0,
    advance: Callable[[], None] = lambda: None,
    first: Sequence[Mapping[str, float]] = (),
) -> Found:
    """One assignment of the unknowns that reproduces all targets within the tolerance, or the nearest.

    A spread of seeded samples, then an evolution: the best so far are moved by normal steps that shrink from
    generation to generation (some unknowns at a time). The cost is the largest error |log(predicted / published)|, and
    a small part of their mean square so that the others matter too. first: assignments to start from, too.
    """
    start = time.monotonic()
    generator = np.random.default_rng([seed, 0x5EA])
    rows = list(targets)
    goal = np.log(np.array([targets[row] for row in rows]))
    bound = np.log1p(tolerance)
    cube = np.concatenate([space.defaults(), *(space.cube_of(one) for one in first),
                           space.spread(PARENTS * CHILDREN * 4, generator)])  # fmt: skip

    def errors_of(block: Floats) -> Floats:
        values = price(space.assignments(block))
        logs = np.stack([np.log(np.maximum(values[row], 1e-300)) for row in rows], axis=1)
        return np.where(np.isfinite(logs), logs - goal, 1e3)

    errors = errors_of(cube)
    tried, accepted, early = len(cube), [cube[_within(errors, tolerance)]], False
    cost = _cost(errors)
    for generation in range(generations):
        best = np.argsort(cost, kind="stable")[:PARENTS]
        cube, errors, cost = cube[best], errors[best], cost[best]
        advance()
        if time.monotonic() - start > limit_s:
            early = True
            break
        step = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** (generation / max(generations - 1, 1))
        children = _children(cube, step, generator)
        child_errors = errors_of(children)
        tried += len(children)
        accepted.append(children[_within(child_errors, tolerance)])
        cube, errors = np.concatenate([cube, children]), np.concatenate([errors, child_errors])
        cost = np.concatenate([cost, _cost(child_errors)])
    winner = int(np.argmin(cost))
    chosen = space.assignments(cube[winner : winner + 1])
    predicted = price(chosen)
    relative = {row: float(predicted[row][0]) / targets[row] - 1 for row in rows}
    worst = max((abs(error) for error in relative.values()), default=0.0)
    return Found(
        values={key: float(value[0]) for key, value in chosen.items()},
        rows={row: float(value[0]) for row, value in predicted.items()}, errors=relative, worst=worst,
        exists=worst <= tolerance and bound > 0, accepted=np.concatenate(accepted), tried=tried, stopped_early=early,
    )  # fmt: skip


def _within(errors: Floats, tolerance: float) -> NDArray[np.bool_]:
    return np.asarray(np.all(np.abs(np.expm1(errors)) <= tolerance, axis=1))


def _cost(errors: Floats) -> Floats:
    return np.asarray(np.abs(errors).max(axis=1) + 0.1 * np.sqrt((errors**2).mean(axis=1)))


def _children(parents: Floats, step: float, generator: np.random.Generator) -> Floats:
    """Moved copies of every parent: some unknowns by normal steps, reflected at the ends; now and then anew."""
    children = np.repeat(parents, CHILDREN, axis=0)
    shape = children.shape
    changed = generator.random(shape) < generator.choice([0.1, 0.3, 1.0], size=(shape[0], 1))
    moved = children + step * generator.standard_normal(shape) * changed
    moved = np.abs(moved)
    moved = 1.0 - np.abs(1.0 - moved)
    anew = generator.random(shape) < 0.02
    return np.asarray(np.clip(np.where(anew, generator.random(shape), moved), 0.0, 1.0))


def conflicts(
    space: Space, price: PriceOf, targets: Mapping[str, float], *, tolerance: float = 0.10, generations: int = 25,
    seed: int = 0, limit_s: float = 20.0, advance: Callable[[], None] = lambda: None,
) -> dict[str, float]:  # fmt: skip
    """For every row, the worst error of the others when the search leaves it out: below the tolerance, this row alone
    stands against the others."""
    found = {}
    for row in targets:
        others = {name: value for name, value in targets.items() if name != row}
        found[row] = search(space, price, others, tolerance=tolerance, generations=generations, seed=seed,
                            limit_s=limit_s / len(targets), advance=advance).worst  # fmt: skip
    return found
