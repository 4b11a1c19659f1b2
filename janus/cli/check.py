"""``janus check``: proofs that a user can make on his own machine and launcher. It owns no comparison, only printing.

Exit codes: 0 exact, 1 above the tolerance, 2 a user's mistake.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from janus.config import apply_overrides
from janus.errors import UserError
from janus.parallel.launcher import find_launcher
from janus.train.config import TrainConfig, load_train_config

if TYPE_CHECKING:
    from janus.data.structure import Structure
    from janus.parallel.communication import Communicator
    from janus.parallel.watchdog import Watchdog

EXAMPLES = """examples:
  mpiexec -n 4 janus check gradients --parallel.unit=4 --parallel.shard_degree=4 --parallel.graph_degree=2
  mpiexec -n 4 janus check gradients --model matris-moe-tiny --parallel.unit=4 --parallel.expert_degree=4 --json
  srun -n 8 janus check gradients --config run.toml --data alloys.store --structures 8
  mpiexec -n 2 janus check gradients --parallel.unit=2 --parallel.shard_degree=2 --parallel.transport=mpi

The layout is given as for 'janus train'; any setting can be given as --SECTION.FIELD=VALUE. run.dtype is float64 here
unless it is set, and hot experts are lent wherever that balances the load. Without --data, structures are made on the
spot.
"""
DEFAULT_STRUCTURES = 5
DEFAULT_MAX_ATOMS = 12
SHOWN_GRADIENTS = 5
LENDS_ALWAYS = 1e-6  # so few structures would seldom be worth lending an expert, and then that would not be checked


class _Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print and exit: with many ranks a mistake is printed once."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Options of ``janus check gradients``."""
    parser = _Parser(
        prog="janus check",
        description="Proofs on this machine and launcher.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    checks = parser.add_subparsers(dest="check", metavar="CHECK", required=True)
    gradients = checks.add_parser(
        "gradients",
        help="hold a parallel layout to a single process",
        description="Run one small batch in the layout and in a single process, and print the largest relative error "
        "of energies, forces, stresses and parameter gradients. Exit code 1 when one is above the tolerance.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    gradients.add_argument("--model", metavar="PRESET", help="a name from 'janus model list'")
    gradients.add_argument("--config", type=Path, metavar="FILE.toml", help="settings, as for 'janus train'")
    gradients.add_argument("--data", type=Path, metavar="PATH", help="a store, or any file that ASE reads")
    gradients.add_argument("--structures", type=int, default=DEFAULT_STRUCTURES, metavar="N",
                           help=f"structures of the batch (default {DEFAULT_STRUCTURES})")  # fmt: skip
    gradients.add_argument("--tolerance", type=float, metavar="X",
                           help="largest relative error (default 1e-10 in float64, 2e-3 in float32)")  # fmt: skip
    gradients.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def read_request(arguments: Sequence[str]) -> tuple[argparse.Namespace, TrainConfig]:
    """Options and resolved settings. Raises UserError. Never imports torch."""
    options, words = build_parser().parse_known_args(list(arguments))
    unknown = [word for word in words if not word.startswith("--") or "=" not in word or "." not in word]
    if unknown:
        raise UserError(f"unknown option {unknown[0]!r}: settings are written --SECTION.FIELD=VALUE")
    if options.structures < 1:
        raise UserError(f"--structures is {options.structures}: it must be at least 1")
    if options.tolerance is not None and not options.tolerance > 0:
        raise UserError(f"--tolerance is {options.tolerance}: it must be above 0")
    overlay: dict[str, Any] = {}
    if options.model is not None:
        overlay["model"] = {"preset": options.model}
    given = apply_overrides({}, words)
    if "dtype" not in given.get("run", {}):
        overlay["run"] = {"dtype": "float64"}
    if "expert_flops_per_byte" not in given.get("parallel", {}):
        overlay["parallel"] = {"expert_flops_per_byte": LENDS_ALWAYS}
    return options, load_train_config(options.config, overlay, overrides=words)


def main(arguments: list[str]) -> int:
    """Check and print. Returns the exit code; with many ranks the process ends in ``run_on_ranks`` instead."""
    mistake: UserError | None = None
    try:
        options, config = read_request(arguments)
    except UserError as error:
        if find_launcher(os.environ) == "single":
            raise
        mistake, options, config = error, argparse.Namespace(), TrainConfig()
    from janus.parallel.job import join_job, run_on_ranks

    communicator = join_job(
        "check", device=config.run.device if mistake is None else "cpu", transport=config.parallel.transport,
        timeout_s=config.run.hang_timeout_s + 60,
    )  # fmt: skip

    def work(watchdog: Watchdog) -> int:
        def require_request() -> None:
            if mistake is not None:
                raise mistake

        communicator.together(require_request)
        document = check_gradients(options, config, communicator)
        if communicator.rank == 0:
            if options.json:
                print(json.dumps(document, indent=1))
            else:
                _print(document)
        return 0 if document["passes"] else 1

    return run_on_ranks("check", communicator, work, hang_timeout_s=config.run.hang_timeout_s)


def check_gradients(options: argparse.Namespace, config: TrainConfig, communicator: Communicator) -> dict[str, Any]:
    """The comparison, the layout and what its collectives sent. All ranks call it."""
    from janus.parallel.fs3d import distribute
    from janus.train.session import set_threads
    from janus.train.verify import compare_with_single_process

    layout = communicator.together(lambda: config.parallel.layout(communicator.world_size))
    set_threads(config.run.threads, communicator.local_size)
    structures = _structures(options, config, communicator)
    distributed = distribute(config, layout, communicator)
    communicator.ledger.clear()
    comparison = compare_with_single_process(distributed, structures, config, communicator, tolerance=options.tolerance)
    sent = communicator.gather_objects(communicator.ledger.rows())
    return {
        "schema": "janus.check/1",
        "layout": layout.to_mapping(),
        "layout_name": layout.describe(),
        "transport": communicator.transport,
        "dtype": config.run.dtype,
        "structures": len(structures),
        "atoms": sum(structure.num_atoms for structure in structures),
        "data": str(options.data) if options.data is not None else "made on the spot (EMT)",
        **comparison.to_mapping(),
        "sent_per_rank": sent,
    }


def _structures(options: argparse.Namespace, config: TrainConfig, communicator: Communicator) -> list[Structure]:
    """The batch of the check, the same on all ranks; labels that are missing are zero: any will do."""
    if options.data is None:
        from janus.data.synthetic import make_structures

        return list(make_structures(options.structures, max_atoms=DEFAULT_MAX_ATOMS))
    from janus.train.dataset import open_on_all_ranks

    store = open_on_all_ranks(options.data, config.model, communicator)
    return [_with_all_labels(store[index]) for index in range(min(options.structures, len(store)))]


def _with_all_labels(structure: Structure) -> Structure:
    return replace(
        structure,
        energy=0.0 if structure.energy is None else structure.energy,
        forces=np.zeros((structure.num_atoms, 3)) if structure.forces is None else structure.forces,
        stress=np.zeros((3, 3)) if structure.stress is None else structure.stress,
    )


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        title=f"{document['layout_name']}, {document['transport']}, {document['dtype']}: "
        f"{document['structures']} structures, {document['atoms']} atoms"
    )
    table.add_column("quantity")
    table.add_column("relative error", justify="right")
    ranked = sorted(document["gradients"], key=lambda row: -(row["relative"] or 0.0))
    for row in [*document["outputs"], *ranked[:SHOWN_GRADIENTS]]:
        kind = "" if row in document["outputs"] else "gradient of "
        error = "n/a (zero)" if row["relative"] is None else f"{row['relative']:.1e}"
        table.add_row(kind + row["name"], error)
    console.print(table)
    verdict = "exact" if document["passes"] else "NOT EXACT"
    console.print(
        f"{verdict}: {len(document['gradients'])} parameter gradients, energies, forces and stresses against a single "
        f"process, tolerance {document['tolerance']:.0e}",
        style=None if document["passes"] else "bold red",
    )
    if document["layout"]["unit"] * document["layout"]["replicas"] == 1:
        console.print("one rank divides nothing: start many to check a layout (mpiexec -n 4 janus check gradients ...)")
