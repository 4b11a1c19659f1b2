"""``janus evaluate``: errors of a checkpoint on labelled structures. It owns the printing, not the sums."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from janus.parallel.communication import Communicator
    from janus.parallel.watchdog import Watchdog

EXAMPLES = """examples:
  janus evaluate runs/first test.xyz
  janus evaluate runs/first/checkpoints/step_00000200 alloys.store --json
  mpiexec -n 4 janus evaluate runs/first large.store --max-work 500000
"""


def build_parser() -> argparse.ArgumentParser:
    """Options of ``janus evaluate``."""
    parser = argparse.ArgumentParser(
        prog="janus evaluate",
        description="Mean absolute and root mean square errors of energy per atom, forces and stress, in total and "
        "per element. Uses the averaged weights (EMA) where the checkpoint has them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="a run's folder, one of its checkpoints, or an exported file")
    parser.add_argument("data", type=Path, help="a store, or any file that ASE reads")
    parser.add_argument("--raw-weights", action="store_true", help="use the last step's weights, not their average")
    parser.add_argument("--max-work", type=int, default=400_000, metavar="N",
                        help="edges + angles evaluated together (default 400000)")  # fmt: skip
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def main(arguments: list[str]) -> int:
    """Evaluate and print. Returns the exit code; with many ranks the process ends in ``run_on_ranks`` instead."""
    options = build_parser().parse_args(arguments)
    from janus.parallel.job import join_job, run_on_ranks

    communicator = join_job("evaluate", device=options.device)

    def work(watchdog: Watchdog) -> int:
        document = _evaluate(options, communicator)
        if communicator.rank == 0:
            if options.json:
                print(json.dumps(document, indent=1))
            else:
                _print_tables(document)
        return 0

    return run_on_ranks("evaluate", communicator, work)


def _evaluate(options: argparse.Namespace, communicator: Communicator) -> dict[str, Any]:
    from functools import partial

    import numpy as np
    import torch

    from janus.layout import Layout
    from janus.model.potential import evaluate_potential
    from janus.train.dataset import open_on_all_ranks
    from janus.train.evaluate import evaluate_structures
    from janus.train.inference import build_from_checkpoint, open_checkpoint
    from janus.train.loader import BatchLoader
    from janus.train.progress import ProgressLine

    if options.max_work < 1:
        raise UserError(f"--max-work is {options.max_work}: it must be at least 1")
    tell = (lambda sentence: print(f"janus evaluate: {sentence}", file=sys.stderr)) if communicator.rank == 0 else _mute
    checkpoint = communicator.together(lambda: open_checkpoint(options.checkpoint, tell))
    config = checkpoint.config
    store = open_on_all_ranks(options.data, config.model, communicator)
    communicator.together(lambda: _require_some_label(store, options.data))
    model = communicator.together(
        lambda: build_from_checkpoint(checkpoint, device=communicator.device, raw_weights=options.raw_weights)
    )
    loader = BatchLoader(
        store, cutoff_angstrom=config.model.cutoff_angstrom, line_cutoff_angstrom=config.model.line_cutoff_angstrom,
        dtype=getattr(torch, config.run.dtype), device=communicator.device,
    )  # fmt: skip
    indices = np.arange(len(store)).tolist()
    with ProgressLine("evaluating", len(indices), visible=communicator.rank == 0) as progress:
        totals = evaluate_structures(
            partial(evaluate_potential, model, create_graph=False), store, indices, loader, communicator,
            Layout(replicas=communicator.world_size), max_work=options.max_work, progress=progress,
        )  # fmt: skip
    averaged = "average" in checkpoint.tensors and not options.raw_weights
    return {
        "schema": "janus.evaluation/1",
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "weights": "average" if averaged else "raw",
        "data": str(options.data),
        "data_fingerprint": store.fingerprint,
        "num_structures": len(store),
        "num_atoms": int(store.num_atoms.sum()),
        "dtype": config.run.dtype,
        **totals.document(),
    }


def _mute(sentence: str) -> None:
    """Ranks other than 0 say nothing."""


def _require_some_label(store: Any, path: Path) -> None:
    if not (store.has_energy.any() or store.has_forces.any() or store.has_stress.any()):
        raise UserError(f"{path} has no energy, forces or stress labels: there is nothing to compare with")


def _print_tables(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{document['num_structures']} structures, {document['num_atoms']} atoms, "
                  f"step {document['step']}, {document['weights']} weights")  # fmt: skip
    for name in ("quantity", "element", "unit", "MAE", "RMSE", "count"):
        table.add_column(name, justify="right" if name in ("MAE", "RMSE", "count") else "left")
    for name in ("energy", "forces", "stress"):
        row = document[name]
        for element, numbers in {"all": row, **row.get("by_element", {})}.items():
            if numbers["count"]:
                table.add_row(name, element, row["unit"], f"{numbers['mae']:.5g}", f"{numbers['rmse']:.5g}",
                              str(numbers["count"]))  # fmt: skip
        table.add_section()
    console.print(table)
