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
PARENTS, CHILDREN = 40, 20  # of a generation of the search: elites, and children of each
GENERATIONS, RESTARTS = 40, 3
FIRST_STEP, LAST_STEP = 0.30, 0.01  # of mutations, in the cube
BACK, ANEW = 0.08, 0.02  # chance of an unknown to go back to its default, or anywhere
INSIDE = 0.8  # of the tolerance: below it errors no longer count, only the way from the defaults
SMALL = 1e-300


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

    def snapped(self, cube: Floats) -> Floats:
        """The cube with choices in the middles of their parts."""
        result = cube.copy()
        for place, unknown in enumerate(self.unknowns):
            if unknown.scale == "choice":
                number = len(unknown.choices)
                result[:, place] = (np.minimum((cube[:, place] * number).astype(np.int64), number - 1) + 0.5) / number
        return result

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

    values, rows: the assignment and its rows; errors: row -> predicted / published - 1; worst: the largest of them in
    size; exists: all within the tolerance and the limits kept; moved: the unknowns that left their defaults, farthest
    first, and how far in the cube; accepted: every assignment within the tolerance that was met [A,U] in the cube;
    tried: how many were priced. stopped_early: by the time limit (the outcome then depends on the machine's speed).
    """

    values: dict[str, float]
    rows: dict[str, float]
    errors: dict[str, float]
    worst: float
    exists: bool
    moved: dict[str, float]
    accepted: Floats
    tried: int
    stopped_early: bool


def search(
    space: Space,
    price: PriceOf,
    targets: Mapping[str, float],
    *,
    limits: Mapping[str, float] | None = None,
    tolerance: float = 0.10,
    generations: int = GENERATIONS,
    restarts: int = RESTARTS,
    seed: int = 0,
    limit_s: float = 60.0,
    advance: Callable[[], None] = lambda: None,
) -> Found:
    """One assignment that reproduces all targets within the tolerance, near the defaults; or the nearest to them.

    Several evolutions, each from its own spread of seeded samples: the best so far are moved by normal steps that
    shrink from generation to generation, some unknowns at a time, now and then back to their defaults. The cost is the
    largest error |log(predicted / published)| beyond the tolerance, then the mean way from the defaults: where many
    assignments would do, the one that needs the fewest changes is the most telling; what can go home does at the end.
    limits: rows that must stay at or below a value. advance: called once a generation. limit_s: of this process's own
    time.
    """
    start = time.process_time()
    job = _Search(space, price, targets, limits or {}, tolerance)
    best: tuple[float, Floats] | None = None
    early = False
    for restart in range(restarts):
        generator = np.random.default_rng([seed, restart, 0x5EA])
        cube = np.concatenate([space.defaults(), space.spread(PARENTS * CHILDREN * 4, generator)])
        cost = job.cost(cube)
        for generation in range(generations):
            keep = np.argsort(cost, kind="stable")[:PARENTS]
            cube, cost = cube[keep], cost[keep]
            advance()
            early = time.process_time() - start > limit_s
            if early:
                break
            step = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** (generation / max(generations - 1, 1))
            children = _children(cube, step, space.defaults()[0], generator)
            cube, cost = np.concatenate([cube, children]), np.concatenate([cost, job.cost(children)])
        place = int(np.argmin(cost))
        if best is None or cost[place] < best[0]:
            best = (float(cost[place]), cube[place])
        if early:
            break
    assert best is not None, f"{restarts} restarts"
    return job.found(job.sent_home(best[1]), early)


class _Search:
    """Targets and what was met on the way."""

    def __init__(
        self, space: Space, price: PriceOf, targets: Mapping[str, float], limits: Mapping[str, float], tolerance: float
    ) -> None:
        self.space, self.price, self.targets, self.limits, self.tolerance = space, price, targets, limits, tolerance
        self.goal = np.log(np.array(list(targets.values())))
        self.home = space.defaults()[0]
        self.tried = 0
        self.accepted: list[Floats] = []

    def errors(self, cube: Floats) -> tuple[Floats, Floats]:
        """predicted / published - 1, [C, rows]; and how far limits are exceeded, as a logarithm [C]."""
        values = self.price(self.space.assignments(cube))
        excess = np.zeros(len(cube))
        for row, limit in self.limits.items():
            excess = np.maximum(excess, np.log(np.maximum(values[row] / limit, 1.0)))
        logs = np.stack([np.log(np.maximum(values[row], SMALL)) for row in self.targets], axis=1) - self.goal
        return np.asarray(np.expm1(np.where(np.isfinite(logs), np.minimum(logs, 50.0), 50.0))), excess

    def cost(self, cube: Floats) -> Floats:
        """[C], and keeps what is within the tolerance."""
        errors, excess = self.errors(cube)
        self.tried += len(cube)
        self.accepted.append(cube[np.all(np.abs(errors) <= self.tolerance, axis=1) & (excess <= 0)])
        logs = np.abs(np.log1p(np.maximum(errors, -1 + SMALL)))
        bound = np.log1p(INSIDE * self.tolerance)
        beyond = np.concatenate([np.maximum(logs - bound, 0.0), excess[:, None]], axis=1)
        far = np.abs(self.space.snapped(cube) - self.home).mean(axis=1)
        return np.asarray(np.where(beyond.max(axis=1) > 0, 10 + beyond.max(axis=1) + 0.2 * beyond.mean(axis=1), far))

    def sent_home(self, place: Floats) -> Floats:
        """The place with every unknown at its default that can be there, the nearest first."""
        place = self.space.snapped(place[None])[0]
        cost = float(self.cost(place[None])[0])
        for number in np.argsort(np.abs(place - self.home), kind="stable"):
            other = place.copy()
            other[number] = self.home[number]
            other_cost = float(self.cost(other[None])[0])
            if other_cost <= cost:
                place, cost = other, other_cost
        return place

    def found(self, place: Floats, early: bool) -> Found:
        chosen = self.space.assignments(place[None])
        rows = {row: float(value[0]) for row, value in self.price(chosen).items()}
        errors = {row: rows[row] / target - 1 for row, target in self.targets.items()}
        worst = max(abs(error) for error in errors.values())
        ways = np.abs(place - self.home)
        order = [number for number in np.argsort(-ways, kind="stable") if ways[number] > 1e-9]
        kept = all(rows[row] <= limit for row, limit in self.limits.items())
        return Found(
            values={key: float(value[0]) for key, value in chosen.items()}, rows=rows, errors=errors, worst=worst,
            exists=kept and worst <= self.tolerance,
            moved={self.space.keys[number]: float(ways[number]) for number in order},
            accepted=np.concatenate(self.accepted), tried=self.tried, stopped_early=early,
        )  # fmt: skip


def _children(parents: Floats, step: float, home: Floats, generator: np.random.Generator) -> Floats:
    """Moved copies of every parent: some unknowns by normal steps, reflected at the ends; some home, some anew."""
    children = np.repeat(parents, CHILDREN, axis=0)
    shape = children.shape
    changed = generator.random(shape) < generator.choice([0.1, 0.3, 1.0], size=(shape[0], 1))
    moved = np.abs(children + step * generator.standard_normal(shape) * changed)
    moved = 1.0 - np.abs(1.0 - moved)
    chance = generator.random(shape)
    moved = np.where(chance < ANEW, generator.random(shape), moved)
    moved = np.where(chance > 1 - BACK, home, moved)
    return np.asarray(np.clip(moved, 0.0, 1.0))


def conflicts(
    space: Space, price: PriceOf, targets: Mapping[str, float], *, limits: Mapping[str, float] | None = None,
    tolerance: float = 0.10, seed: int = 0, limit_s: float = 20.0, advance: Callable[[], None] = lambda: None,
) -> dict[str, float]:  # fmt: skip
    """For every row, the worst error of the others when the search leaves it out: below the tolerance, this row alone
    stands against the others."""
    found = {}
    for row in targets:
        others = {name: value for name, value in targets.items() if name != row}
        found[row] = search(
            space, price, others, limits=limits, tolerance=tolerance, generations=GENERATIONS // 2, restarts=1,
            seed=seed, limit_s=limit_s / len(targets), advance=advance,
        ).worst  # fmt: skip
    return found
