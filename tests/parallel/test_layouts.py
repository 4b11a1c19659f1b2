"""The correctness matrix: layouts of 1 to 8 ranks over both transports equal one process, to the double backward.

One launch per number of ranks, which loops over its cells. float64: a layout sums in another order, so errors are a few
1e-15 per operation; 1e-10 leaves room for cancellation in small gradients. float32: 1e-3, where second derivatives
cancel; its weights are not compared, for AdamW turns the rounding of a vanishing gradient into a full step.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.parallel.layout_cells import WORLD_SIZES, Cell, all_cells, cells_to_cover, default_cells
from tests.train_runs import launch

SCRIPT = Path(__file__).parent / "layouts_on_ranks.py"
GRADIENT_TOLERANCE, WEIGHT_TOLERANCE, ZERO_TOLERANCE = 1e-10, 1e-9, 1e-12
SINGLE_TOLERANCE, SINGLE_ZERO_TOLERANCE = 1e-3, 1e-6


def run_cells(world_size: int, cells: list[Cell], timeout_s: float) -> list[dict]:
    done = launch(world_size, str(SCRIPT), json.dumps([asdict(cell) for cell in cells]), timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr[:6000]  # the rank that failed first speaks first
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["cell"] for row in found] == [cell.name for cell in cells]
    return found


def failures(rows: list[dict], tolerance: float, zero_tolerance: float = ZERO_TOLERANCE) -> list[tuple]:
    """Tensors that are off. A NaN is off."""
    off = []
    for row in rows:
        limit = max(tolerance * row["reference"], zero_tolerance if row["reference"] < zero_tolerance else 0.0)
        if not row["difference"] <= limit:
            off.append((row["name"], row["difference"], row["reference"]))
    return off


def check(found: list[dict]) -> None:
    problems = {}
    for row in found:
        assert len(row["outputs"]) == 3
        assert len(row["gradients"]) == len(row["weights"]) > 50
        assert sum(error["reference"] > 0 for error in row["gradients"]) > 40
        if "dtype=float32" in row["cell"]:
            off = failures([*row["outputs"], *row["gradients"]], SINGLE_TOLERANCE, SINGLE_ZERO_TOLERANCE)
        else:
            off = [
                *failures([*row["outputs"], *row["gradients"]], GRADIENT_TOLERANCE),
                *failures(row["weights"], WEIGHT_TOLERANCE),
            ]
        if off:
            problems[row["cell"]] = off[:4]
        if "gathered_blocks=2" in row["cell"]:
            assert row["peak_blocks"] <= 2, row["cell"]
        if "lends=False" in row["cell"]:
            assert row["lent"] == 0, row["cell"]
    lenders = [row["lent"] for row in found if "lends=True" in row["cell"]]
    assert not lenders or max(lenders) > 0
    assert problems == {}


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.timeout(1200)
def test_layouts_equal_one_process(world_size: int) -> None:
    cells = [cell for cell in default_cells() if cell.world_size == world_size]
    assert cells
    check(run_cells(world_size, cells, timeout_s=1190))


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["gloo", "mpi"])
@pytest.mark.parametrize("family", ["matris", "matris-moe"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.timeout(3600)
def test_every_layout_equals_one_process(world_size: int, family: str, transport: str) -> None:
    """Every layout, each in one variant, another for the next."""
    cells, variants = [], {}
    for cell in all_cells():
        if (cell.world_size, cell.family, cell.transport) == (world_size, family, transport):
            key = (cell.unit, cell.shard_degree, cell.graph_degree, cell.expert_degree)
            variants.setdefault(key, []).append(cell)
    for number, options in enumerate(variants.values()):
        cells.append(options[(7 * number) % len(options)])
    if cells:
        check(run_cells(world_size, cells, timeout_s=3500))


def test_the_default_cells_cover_every_pair() -> None:
    cells = default_cells()
    wanted = set().union(*(cell.pairs() for cell in cells_to_cover()))
    assert wanted <= set().union(*(cell.pairs() for cell in cells))
    eights = [cell for cell in cells if cell.world_size == 8]
    assert {cell.transport for cell in eights} == {"gloo", "mpi"}
    assert {cell.family for cell in eights} == {"matris", "matris-moe"}
    assert max(cell.shard_degree * cell.graph_degree * cell.expert_degree for cell in eights) >= 16
    assert 30 <= len(cells) <= 60
