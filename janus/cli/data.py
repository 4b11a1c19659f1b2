"""``janus data make|pack|stats|check``: arguments, progress bars and printing. It owns no rule and no format."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from janus.config import ModelConfig
from janus.errors import UserError

if TYPE_CHECKING:
    from janus.data.labels import LabelLimits, LabelReport
    from janus.data.reading import Entry, LabelKeys
    from janus.data.store import StructureStore

EXAMPLES = """examples:
  janus data make --out alloys.xyz --count 200          structures labelled with ASE's EMT potential
  janus data pack alloys.xyz                            alloys.store, ready for training
  janus data pack a.xyz b.db --out both.store --skip-bad
  janus data check alloys.xyz                           every problem, exit code 2 if there is one
  janus data check alloys.store                         sizes and hashes of a store
  janus data stats alloys.store --ranks 8 --json        sizes, elements, load balance
"""
NUM_ELEMENTS_SHOWN = 20
NUM_PROBLEMS_SHOWN = 50


def main(arguments: list[str]) -> int:
    """Run one of the data commands; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        return 2
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus data", description="Make, pack, check and describe labelled structures (eV, angstrom).",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    def command(name: str, run: Any, summary: str, examples: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        return added

    make = command("make", _make, "make labelled alloy structures with ASE's EMT potential",
                   "  janus data make --out alloys.xyz --count 200 --seed 1\n"
                   "  janus data make --out alloys.store")  # fmt: skip
    make.add_argument("--out", type=Path, required=True, help="file.xyz (extended XYZ) or NAME.store (packed at once)")
    make.add_argument("--count", type=int, default=200, help="number of structures (default %(default)s)")
    make.add_argument("--seed", type=int, default=0, help="the same seed gives the same structures (default 0)")
    make.add_argument("--max-atoms", type=int, default=108, help="largest cell (default %(default)s atoms)")
    make.add_argument("--force", action="store_true", help="replace the output if it exists")
    _add_cutoffs(make)

    pack = command("pack", _pack, "check files and pack them into one memory-mapped store",
                   "  janus data pack alloys.xyz\n  janus data pack a.xyz b.db --out both.store --skip-bad\n"
                   "  janus data pack dft.xyz --energy-key REF_energy --forces-key REF_forces")  # fmt: skip
    pack.add_argument("files", nargs="+", type=Path, metavar="FILE", help="any file ASE reads")
    pack.add_argument("--out", type=Path, help="NAME.store (default: beside the file, with its name)")
    pack.add_argument(
        "--force", action="store_true", help="replace the store if it exists, once the new one is complete"
    )
    pack.add_argument("--skip-bad", action="store_true", help="leave bad structures out, and list them")
    _add_cutoffs(pack)
    _add_label_options(pack)

    check = command("check", _check, "list every problem of files or stores; exit code 2 if there is one",
                    "  janus data check alloys.xyz --json\n  janus data check alloys.store")  # fmt: skip
    check.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files that ASE reads, or stores")
    _add_label_options(check)

    stats = command("stats", _stats, "describe a store (or a file): sizes, elements, load balance, reference energies",
                    "  janus data stats alloys.store --ranks 8 --per-rank 16")  # fmt: skip
    stats.add_argument("path", type=Path, metavar="PATH", help="a store, or a file that ASE reads")
    stats.add_argument("--ranks", type=int, default=8, help="ranks of the load-balance preview (default %(default)s)")
    stats.add_argument("--per-rank", type=int, default=16, help="structures per rank and step (default %(default)s)")
    stats.add_argument("--cutoff", type=float, help="pair cutoff, angstrom (default: the store's)")
    stats.add_argument("--line-cutoff", type=float, help="cutoff of bonds that form angles (default: the store's)")
    return parser


def _add_cutoffs(parser: argparse.ArgumentParser) -> None:
    model = ModelConfig()
    parser.add_argument("--cutoff", type=float, default=model.cutoff_angstrom,
                        help="pair cutoff for the counts, angstrom (default %(default)s)")  # fmt: skip
    parser.add_argument("--line-cutoff", type=float, default=model.line_cutoff_angstrom,
                        help="cutoff of bonds that form angles, angstrom (default %(default)s)")  # fmt: skip


def _add_label_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("labels")
    for name in ("energy", "forces", "stress"):
        group.add_argument(f"--{name}-key", default=name, metavar="KEY", help=f"name of the {name} (default {name})")
    group.add_argument(
        "--id-key", metavar="KEY", help='key that must be there and unique (default: "id", where present)'
    )
    group.add_argument("--max-force", type=float, metavar="EV_PER_A", help="limit of a force (default 100 eV/A)")
    group.add_argument("--min-distance", type=float, metavar="A", help="limit of a distance (default 0.3 A)")
    group.add_argument(
        "--max-conflict", type=float, metavar="EV",
        help="energy difference allowed between identical structures (default 0.001 eV/atom)",
    )  # fmt: skip


def _keys(options: argparse.Namespace) -> LabelKeys:
    from janus.data.reading import LabelKeys

    return LabelKeys(energy=options.energy_key, forces=options.forces_key, stress=options.stress_key,
                     identity=options.id_key)  # fmt: skip


def _limits(options: argparse.Namespace) -> LabelLimits:
    from janus.data.labels import LabelLimits

    given = {"max_force_ev_per_angstrom": options.max_force, "min_distance_angstrom": options.min_distance,
             "max_conflict_ev_per_atom": options.max_conflict}  # fmt: skip
    return LabelLimits(**{name: value for name, value in given.items() if value is not None})


class _Bar:
    """Progress over structures; the part done is known for a given count and for most files."""

    def __init__(self, progress: Progress, what: str, total: int | None) -> None:
        self._progress, self._count, self._total = progress, 0, total
        self._task = progress.add_task(what, total=1.0, structures=0)

    def entry(self, entry: Entry) -> None:
        self.step(entry.fraction)

    def step(self, fraction: float | None = None) -> None:
        self._count += 1
        if self._total:
            fraction = self._count / self._total
        known: dict[str, Any] = {"total": None} if fraction is None else {"total": 1.0, "completed": fraction}
        self._progress.update(self._task, structures=self._count, **known)


@contextmanager
def _bar(what: str, total: int | None = None) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[structures]} structures"),
               TimeRemainingColumn())  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, what, total)


def _show(document: dict[str, Any]) -> None:
    json.dump(document, sys.stdout, indent=1)
    print()


def _make(options: argparse.Namespace) -> int:
    from janus.data.store import write_store
    from janus.data.synthetic import make_structures
    from janus.data.writing import write_extxyz

    made = make_structures(options.count, seed=options.seed, max_atoms=options.max_atoms)
    if options.out.suffix not in (".xyz", ".extxyz", ".store"):
        raise UserError(f"output {str(options.out)!r} has no known ending: use .xyz, .extxyz or .store")
    with _bar("making", total=options.count) as bar:

        def counted() -> Iterator[Any]:
            for structure in made:
                yield structure
                bar.step()

        if options.out.suffix == ".store":
            write_store(options.out, counted(), cutoff_angstrom=options.cutoff, replace=options.force,
                        line_cutoff_angstrom=options.line_cutoff)  # fmt: skip
        else:
            write_extxyz(options.out, counted(), replace=options.force)
    if options.json:
        _show({"schema": "janus.data-make/1", "path": str(options.out), "num_structures": options.count,
               "seed": options.seed})  # fmt: skip
    else:
        print(f"{options.count} structures, seed {options.seed}: {options.out}")
    return 0


def _pack(options: argparse.Namespace) -> int:
    from janus.data.pack import pack_files

    if options.out is None and len(options.files) > 1:
        raise UserError(f"{len(options.files)} files and no --out: name the store they go into, --out NAME.store")
    target = options.out or options.files[0].with_suffix(".store")
    with _bar("packing") as bar:
        store, report = pack_files(
            options.files, target, cutoff_angstrom=options.cutoff, line_cutoff_angstrom=options.line_cutoff,
            keys=_keys(options), limits=_limits(options), skip_bad=options.skip_bad, replace=options.force,
            on_entry=bar.entry,
        )  # fmt: skip
    if options.json:
        _show({
            "schema": "janus.data-pack/1", "path": str(target), "num_structures": len(store),
            "fingerprint": store.fingerprint, "num_edges": int(store.num_edges.sum()),
            "num_angles": int(store.num_angles.sum()), "reference": store.meta["reference"],
            "skipped": report.to_mapping(),
        })  # fmt: skip
    else:
        _print_pack(target, store, report)
    return 0


def _print_pack(target: Path, store: StructureStore, report: LabelReport) -> None:
    print(f"{len(store)} structures, {int(store.num_atoms.sum())} atoms: {target}")
    print(f"{int(store.num_edges.sum())} directed edges within {store.cutoff_angstrom:g} A, "
          f"{int(store.num_angles.sum())} angles within {store.line_cutoff_angstrom:g} A")  # fmt: skip
    _print_reference(store.meta["reference"])
    if report.num_bad:
        print(f"left out {report.num_bad} of {report.num_entries} structures (listed in {target / 'skipped.json'}):")
    if report.problems:
        _print_problems(report, most=NUM_PROBLEMS_SHOWN)
        if len(report.problems) > NUM_PROBLEMS_SHOWN:
            print(f"  and {len(report.problems) - NUM_PROBLEMS_SHOWN} more, all listed in {target / 'skipped.json'}")


def _print_reference(reference: dict[str, Any]) -> None:
    if not reference["num_structures"]:
        print("reference energies: none, for no structure has an energy")
        return
    print(f"reference energies of {reference['num_elements']} elements (rank {reference['rank']}) leave "
          f"{reference['rmse_ev_per_atom']:.4g} eV/atom RMSE, {reference['mae_ev_per_atom']:.4g} MAE")  # fmt: skip


def _print_problems(report: LabelReport, most: int | None = None) -> None:
    """Count per rule, then the problems (all, or the first ones) with their places."""
    for rule, count in sorted(report.count_of_rule.items()):
        print(f"  {rule}: {count}")
    for problem in report.problems[:most]:
        print(f"  {'' if problem.is_error else 'warning: '}{problem.sentence}")


def _check(options: argparse.Namespace) -> int:
    from janus.data.labels import LabelChecker, LabelReport, check_entries
    from janus.data.problems import DataError
    from janus.data.reading import read_entries

    report, checker = LabelReport(), LabelChecker(_limits(options))
    damaged: list[str] = []
    for path in options.paths:
        if path.suffix == ".store":
            damaged += _damage_of_store(path)
            continue
        try:
            with _bar(f"checking {path.name}") as bar:
                for _ in check_entries(read_entries(path, _keys(options)), checker, report, on_entry=bar.entry):
                    pass
        except DataError as error:
            report.problems.append(error.problem)
    clean = not report.errors and not damaged
    if options.json:
        document = report.to_mapping()
        document["num_bad"] = document.pop("num_skipped")
        document |= {"schema": "janus.data-check/1", "clean": clean, "damaged_stores": damaged}
        _show(document)
    else:
        _print_problems(report)
        for sentence in damaged:
            print(f"  {sentence}")
        verdict = "no problem" if clean else f"{report.num_bad + len(damaged)} with a problem"
        num_stores = sum(path.suffix == ".store" for path in options.paths)
        print(f"checked {report.num_entries} structures in {len(options.paths) - num_stores} files, "
              f"and {num_stores} stores: {verdict}")  # fmt: skip
    return 0 if clean else 2


def _damage_of_store(path: Path) -> list[str]:
    """Sentences on what is wrong with a store."""
    from janus.data.store import StructureStore

    try:
        store = StructureStore.open(path)
        with Console(stderr=True).status(f"hashing {path.name}"):
            return store.verify()
    except UserError as error:
        return [str(error)]


def _stats(options: argparse.Namespace) -> int:
    from janus.data.pack import pack_files
    from janus.data.statistics import describe_store
    from janus.data.store import StructureStore

    model = ModelConfig()
    sizes = {"num_ranks": options.ranks, "structures_per_rank": options.per_rank}
    if options.path.is_dir() or options.path.suffix == ".store":
        store = StructureStore.open(options.path)
        cutoffs = (options.cutoff or store.cutoff_angstrom, options.line_cutoff or store.line_cutoff_angstrom)
        with Console(stderr=True).status("counting"):
            store = store.recount(*cutoffs)
        document = describe_store(store, **sizes)
    else:
        with tempfile.TemporaryDirectory() as folder, _bar("reading") as bar:
            store, _ = pack_files(
                [options.path], Path(folder) / "stats.store", on_entry=bar.entry,
                cutoff_angstrom=options.cutoff or model.cutoff_angstrom,
                line_cutoff_angstrom=options.line_cutoff or model.line_cutoff_angstrom,
            )  # fmt: skip
            document = describe_store(store, **sizes) | {"path": str(options.path)}
    if options.json:
        _show(document)
    else:
        _print_stats(document)
    return 0


def _print_stats(document: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 100)
    print(f"{document['path']}: {document['num_structures']} structures; cutoffs {document['cutoff_angstrom']:g} A "
          f"(edges), {document['line_cutoff_angstrom']:g} A (bonds and angles)")  # fmt: skip
    labelled = ", ".join(f"{name} {count}" for name, count in document["labelled"].items())
    print(f"labelled: {labelled}; left out when packed: {document['num_skipped']}")
    sizes = Table(title="per structure")
    sizes.add_column("")
    columns = list(document["percentiles"]["atoms"])
    for column in [*columns, "total"]:
        sizes.add_column(column, justify="right")
    for name, row in document["percentiles"].items():
        sizes.add_row(name, *(f"{row[column]:.0f}" for column in columns), str(document["totals"][name]))
    console.print(sizes)
    console.print(_element_table(document["elements"]))
    _print_reference(document["reference"])
    balance = document["balance"]
    print(f"load balance over {balance['num_ranks']} ranks, {balance['structures_per_rank']} structures each per step, "
          f"work = edges + angles: {balance['longest_first']:.2%} longest-first, "
          f"{balance['fixed_count']:.2%} with a fixed number of structures")  # fmt: skip


def _element_table(elements: list[dict[str, Any]]) -> Table:
    """The most frequent elements and the sum of the rest."""
    table = Table(title="elements, by atoms")
    table.add_column("element")
    for column in ("atoms", "structures", "edges", "reference eV"):
        table.add_column(column, justify="right")
    ordered = sorted(elements, key=lambda row: (-row["atoms"], row["number"]))
    for row in ordered[:NUM_ELEMENTS_SHOWN]:
        table.add_row(row["symbol"], str(row["atoms"]), str(row["structures"]), str(row["edges"]),
                      f"{row['reference_energy_ev']:.4f}")  # fmt: skip
    rest = ordered[NUM_ELEMENTS_SHOWN:]
    if rest:
        table.add_row(f"{len(rest)} others", str(sum(row["atoms"] for row in rest)), "",
                      str(sum(row["edges"] for row in rest)), "")  # fmt: skip
    return table
