"""What expert planning does on real compositions: balance of the ranks, bytes of both strategies, time of a plan.

Structures of a file are drawn at random and packed to a given work (edges + angles) per rank; the gate's table is
random, as at the start of training. Each line is a mean over draws. Nothing runs but the planner.

examples:
  python benchmarks/expert_balance.py structures.xyz
  python benchmarks/expert_balance.py structures.xyz --ranks 16 --work 20000 --json
"""

from __future__ import annotations

import argparse
import json
import time

import ase.io
import numpy as np

from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.placement import (
    PHASES,
    ExpertPlan,
    ExpertShape,
    ReplicationRule,
    exchange_traffic,
    home_ranks,
    place_experts,
)
from janus.presets import preset

PRESETS = ("matris-moe-s", "matris-moe-m", "matris-moe-l")
NUM_ELEMENTS = 94


def counted(path: str, most: int) -> list[tuple[np.ndarray, int]]:
    """Edges per centre element [Z] and work of each structure of a file."""
    config, found = preset(PRESETS[0]), []
    for atoms in ase.io.iread(path, index=f":{most}"):
        if len(atoms) == 0 or atoms.numbers.max() > NUM_ELEMENTS:
            continue
        structure = Structure(
            numbers=atoms.numbers.astype(np.int32), positions=atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc
        )
        graph = build_graph(structure, config.cutoff_angstrom, config.line_cutoff_angstrom)
        edges = np.bincount(atoms.numbers[graph.centre] - 1, minlength=NUM_ELEMENTS)
        found.append((edges, graph.num_edges + len(graph.angle_first)))
    return found


def packed(
    structures: list[tuple[np.ndarray, int]], num_ranks: int, work: int, generator: np.random.Generator
) -> np.ndarray:
    """Edges per rank and element [n,Z]."""
    tokens = np.zeros((num_ranks, NUM_ELEMENTS), dtype=np.int64)
    for rank in range(num_ranks):
        done = 0
        while done < work:
            edges, more = structures[generator.integers(len(structures))]
            tokens[rank] += edges
            done += more
    return tokens


def most_sent_gb(plan: ExpertPlan, shape: ExpertShape, restored_in: tuple[str, ...] | None = None) -> float:
    """Of the rank that sends most, one layer and step."""
    totals = [
        sum(sent for _, sent in exchange_traffic(plan, shape, rank, restored_in=restored_in).values())
        for rank in range(plan.num_ranks)
    ]
    return max(totals) / 1e9


def row_per_copy_gb(plan: ExpertPlan, shape: ExpertShape) -> float:
    """What the rank that sends most would send if a token's row went once per expert, not once per rank."""
    rows = np.zeros((plan.num_ranks, plan.num_ranks))
    home = home_ranks(shape.num_experts, plan.num_ranks)
    for source, element in np.argwhere(plan.tokens > 0):
        np.add.at(rows[source], home[plan.experts[element]], plan.tokens[source, element])
    np.fill_diagonal(rows, 0)
    return float((rows.sum(axis=0) + rows.sum(axis=1)).max() * len(PHASES) * shape.width * shape.item_bytes / 1e9)


def draw(
    name: str, structures: list[tuple[np.ndarray, int]], num_ranks: int, work: int, rule: ReplicationRule, seed: int
) -> dict[str, float]:
    """One composition and gate table, planned in every way."""
    config, generator = preset(name), np.random.default_rng(seed)
    assert config.experts is not None
    tokens = packed(structures, num_ranks, work, generator)
    table = generator.standard_normal((NUM_ELEMENTS, config.experts.num_experts))
    experts = np.argsort(-table, axis=1)[:, : config.experts.top_k]
    shape = ExpertShape(
        width=config.width, hidden=config.experts.message_hidden, num_experts=config.experts.num_experts
    )
    home, weights = (place_experts(experts, tokens, shape, strategy) for strategy in ("tokens", "weights"))
    start = time.perf_counter()
    balanced = place_experts(experts, tokens, shape, "tokens", rule)
    plan_ms = 1e3 * (time.perf_counter() - start)

    def imbalance(plan: ExpertPlan) -> float:
        return float(plan.loads.max() / plan.loads.mean())

    return {
        "edges": float(tokens.sum()),
        "load_home": imbalance(home),
        "load_replicated": imbalance(balanced),
        "load_own_tokens": imbalance(weights),
        "experts_lent": float(balanced.borrowed.sum()),
        "rows_gb": most_sent_gb(home, shape),
        "row_per_copy_gb": row_per_copy_gb(home, shape),
        "replicated_gb": most_sent_gb(balanced, shape),
        "weights_kept_gb": most_sent_gb(weights, shape),
        "weights_freed_gb": most_sent_gb(weights, shape, PHASES),
        "plan_ms": plan_ms,
    }


def main() -> None:
    """Print a line per preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", help="any file that ASE reads")
    parser.add_argument("--most", type=int, default=400, help="structures to read")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--work", type=int, default=100_000, help="edges + angles per rank")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--flops-per-byte", type=float, default=ReplicationRule().flops_per_byte)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structures = counted(options.structures, options.most)
    rule = ReplicationRule(flops_per_byte=options.flops_per_byte)
    for name in PRESETS:
        draws = [draw(name, structures, options.ranks, options.work, rule, seed) for seed in range(options.draws)]
        mean = {key: float(np.mean([one[key] for one in draws])) for key in draws[0]}
        if options.json:
            print(json.dumps({"preset": name, **mean}))
        else:
            print(name, *(f"{key} {value:.3g}" for key, value in mean.items()), sep="  ")


if __name__ == "__main__":
    main()
