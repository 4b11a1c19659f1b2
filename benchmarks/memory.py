"""Predicted memory of the layouts beside what ``layouts.py`` measured: error of every layout, fit and held out apart.

One number was fitted: what the pool lends beyond what is asked for (``memory.POOL_EXCESS``), to MatRIS in pure data
parallel layouts without recomputation. Two rules were chosen after seeing a MatRIS-MoE's sharded, recomputed layouts
(gloo's copy in a reduce-scatter; a block's own gradients in its second pass); "seen" are those layouts. Resident over
allocated bytes: two ratios, chosen on both models' data-parallel layouts. Bytes are of the step, without the process.

examples:
  python benchmarks/memory.py
  python benchmarks/memory.py benchmarks/results/layouts_moe_memory.json --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rank_jobs import MODELS, make_structures

from janus.config import ModelConfig
from janus.data.graph import build_graph
from janus.layout import Layout
from perfmodel.memory import predict_rank_memory
from perfmodel.products import Counts
from perfmodel.step_work import RunSettings

RESULTS = Path(__file__).parent / "results"
STORED = ("layouts_matris_memory.json", "layouts_moe_memory.json", "layouts_moe_memory_one_cell.json")
DEGREES = ("unit", "shard_degree", "graph_degree", "expert_degree")


def counts_of(model: ModelConfig, num_structures: int, repeat: tuple[int, int, int]) -> Counts:
    """Of the global batch."""
    structures = make_structures(num_structures, repeat)
    graphs = [build_graph(one, model.cutoff_angstrom, model.line_cutoff_angstrom) for one in structures]
    sizes = [(1, g.num_atoms, g.num_edges, g.num_bonds, g.num_angles) for g in graphs]
    return Counts(*(float(sum(column)) for column in zip(*sizes, strict=True)))


def settings_of(given: dict[str, Any]) -> RunSettings:
    return RunSettings(
        recompute=given.get("recompute", False), gathered_blocks=given.get("gathered_blocks", 2),
        expert_strategy=given.get("expert_strategy", "tokens"), averages=False,
    )  # fmt: skip


def role_of(model: str, row: dict[str, Any]) -> str:
    """Whether a layout decided a constant ("fit"), was looked at in choosing a rule ("seen"), or neither."""
    recomputes, sharded = row["settings"].get("recompute"), "shard_degree" in row["settings"]
    if model == "matris" and row["layout"].startswith("data") and not recomputes:
        return "fit"
    return "seen" if model == "moe" and recomputes and sharded else "held out"


def judged(path: Path) -> list[dict[str, Any]]:
    """A row per layout of a result of layouts.py: predicted and measured, and their ratio less 1."""
    document = json.loads(path.read_text(encoding="utf-8"))
    words = document["command"].split()
    name = words[words.index("--model") + 1] if "--model" in words else "moe"
    num_structures = int(words[words.index("--structures") + 1]) if "--structures" in words else 8
    at = words.index("--repeat") + 1 if "--repeat" in words else None
    repeat = (2, 2, 1) if at is None else tuple(int(word) for word in words[at : at + 3])
    model, rows = MODELS[name], []
    whole = counts_of(model, num_structures, repeat)
    for row in document["memory"]:
        given = row["settings"]
        degrees = {key: given[key] for key in DEGREES if key in given}
        layout = Layout(**degrees, replicas=row["ranks"] // given.get("unit", 1))
        parts = layout.graph_degree * min(layout.data_degree, num_structures)
        found = predict_rank_memory(model, [whole.scaled(1 / parts)], layout, settings_of(given), loads=False)
        allocated, resident = found.total_bytes - found.base_bytes, found.resident_bytes - found.base_bytes
        rows.append({
            "file": path.name, "layout": row["layout"], "role": role_of(name, row), "peak": found.peak,
            "cause_bytes": found.cause_bytes,
            "allocated_bytes": allocated, "measured_allocated_bytes": row["peak_allocated_bytes"],
            "allocated_error": allocated / row["peak_allocated_bytes"] - 1,
            "resident_bytes": resident, "measured_resident_bytes": row["peak_bytes"],
            "resident_error": resident / row["peak_bytes"] - 1,
        })  # fmt: skip
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and worst absolute error, and the mean with its sign, by role."""
    result = {}
    for role in sorted({row["role"] for row in rows}):
        for quantity in ("allocated_error", "resident_error"):
            errors = [row[quantity] for row in rows if row["role"] == role]
            sizes = [abs(error) for error in errors]
            result[f"{role}, {quantity}"] = {
                "layouts": len(errors), "median": statistics.median(sizes), "worst": max(sizes),
                "mean": statistics.mean(errors),
            }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="of layouts.py --what memory --json (default: stored)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    options = parser.parse_args()
    paths = options.results or [RESULTS / name for name in STORED]
    rows = [row for path in paths for row in judged(path)]
    if options.json:
        json.dump({"benchmark": "memory", "layouts": rows, "summary": summary(rows)}, sys.stdout, indent=1)
        print()
        return
    print(f"{'layout':<42}{'role':<10}{'allocated MB':>13}{'measured':>10}{'error':>8}"
          f"{'resident MB':>13}{'measured':>10}{'error':>8}  peak")  # fmt: skip
    for row in rows:
        cells = "".join(
            f"{row[f'{kind}_bytes'] / 1e6:>13.0f}{row[f'measured_{kind}_bytes'] / 1e6:>10.0f}"
            f"{100 * row[f'{kind}_error']:>+7.1f}%"
            for kind in ("allocated", "resident")
        )
        print(f"{row['layout']:<42}{row['role']:<10}{cells}  {row['peak']}")
    for name, numbers in summary(rows).items():
        print(f"{name}: {numbers['layouts']} layouts, median {100 * numbers['median']:.1f} %, "
              f"worst {100 * numbers['worst']:.1f} %, mean {100 * numbers['mean']:+.1f} %")  # fmt: skip


if __name__ == "__main__":
    main()
