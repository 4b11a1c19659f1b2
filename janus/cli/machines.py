"""``janus machines``: the catalogue of machines, every number with its source; checks a user's file; draws fabrics."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from janus.errors import UserError

EXAMPLES = """examples:
  janus machines list                                  every machine of the catalogue
  janus machines show lineshine                        its numbers with source and date, assumed ones apart
  janus machines show machine.toml --json              a file of your own, or of janus calibrate
  janus machines check cluster.toml                    everything wrong or missing in a file, and what looks odd
  janus machines draw lineshine --nodes 16 --out lineshine.svg
  janus machines draw frontier --nodes 32 --out frontier.svg \\
      --set groups=4 --set switches_per_group=4 --set ports_per_switch=8      a small model of it

a file of your own: docs/machines.md has one to start from
"""
DRAWN_SUFFIXES = (".svg", ".png", ".pdf")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus machines", description="Machines as data: devices, links, fabrics, every number with its source.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|check|draw")
    listing = actions.add_parser("list", help="every machine of the catalogue")
    showing = actions.add_parser("show", help="one machine, number by number")
    checking = actions.add_parser("check", help="everything wrong or missing in a machine file")
    drawing = actions.add_parser("draw", help="the fabric of a small job as a picture")
    showing.add_argument("name", metavar="NAME", help="name in the catalogue, or a path ending in .toml")
    checking.add_argument("file", type=Path, metavar="FILE.toml", help="machine file to check")
    drawing.add_argument("name", metavar="NAME", help="name in the catalogue, or a path ending in .toml")
    drawing.add_argument("--nodes", type=int, default=16, metavar="N", help="nodes of the job (default: 16)")
    drawing.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                         help="a number of the fabric to replace, for a small model of a large machine")  # fmt: skip
    drawing.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help="picture: .svg, .png or .pdf")
    for action in (listing, showing, checking):
        action.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def main(arguments: list[str]) -> int:
    """List, show, check or draw. Returns 0, or 2 when a checked file is wrong. Raises UserError."""
    options = _parser().parse_args(arguments)
    if options.action == "list":
        return _list(options.json)
    if options.action == "show":
        return _show(options.name, options.json)
    if options.action == "check":
        return _check(options.file, options.json)
    return _draw(options.name, options.nodes, options.out, options.overrides)


def _list(as_json: bool) -> int:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from perfmodel.machine import catalogue_names, load_machine

    machines = [load_machine(name) for name in catalogue_names()]
    if as_json:
        print(json.dumps([_summary(machine) for machine in machines], indent=2))
        return 0
    table = Table(title="Machines", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("nodes x devices", justify="right", no_wrap=True)
    table.add_column("fabric", no_wrap=True)
    for heading in ("peak of a device", "injection per node", "assumed"):
        table.add_column(heading, justify="right", no_wrap=heading != "assumed")
    for machine in machines:
        table.add_row(*_row(_summary(machine)))
    console = Console()
    console.print(table)
    console.print("assumed: numbers that nobody published; 'janus machines show NAME' lists them apart")
    console.print("this host: janus calibrate --out host.toml, then janus machines show host.toml", highlight=False)
    return 0


def _summary(machine: Any) -> dict[str, Any]:
    from perfmodel.network.catalogue import injection_bytes_per_s, listed_peak

    peak = listed_peak(machine)
    return {
        "name": machine.name, "description": machine.description, "nodes": machine.nodes,
        "devices_per_node": machine.devices_per_node, "device_name": machine.device_name,
        "fabric": None if machine.fabric is None else machine.fabric.family,
        "peak_flops_per_s": None if peak is None else peak.flops_per_s,
        "peak_dtype": None if peak is None else peak.dtype,
        "injection_bytes_per_s_per_node": injection_bytes_per_s(machine),
        "num_numbers": len(machine.sources), "num_assumed": len(machine.assumptions()),
        "has_compute_rates": bool(machine.rates), "is_calibrated_host": machine.is_calibrated_host,
    }  # fmt: skip


def _row(summary: dict[str, Any]) -> tuple[str, ...]:
    return (
        summary["name"], f"{summary['nodes']:,} x {summary['devices_per_node']}", summary["fabric"] or "n/a",
        _or_na(summary["peak_flops_per_s"], "FLOP/s", f" {summary['peak_dtype']}"),
        _or_na(summary["injection_bytes_per_s_per_node"], "B/s"),
        f"{summary['num_assumed']} of {summary['num_numbers']}",
    )  # fmt: skip


def _or_na(value: float | None, unit: str, suffix: str = "") -> str:
    from perfmodel.network.catalogue import with_unit

    return "n/a" if value is None else with_unit(value, unit) + suffix


def _show(name: str, as_json: bool) -> int:
    from janus.config import read_toml
    from perfmodel.machine import machine_from_mapping, machine_path
    from perfmodel.network.catalogue import derive, quantities

    path = machine_path(name)
    values = read_toml(path)
    machine = machine_from_mapping(values, str(path))
    numbers, derived = quantities(machine, values), derive(machine)
    if as_json:
        print(json.dumps({
            **_summary(machine),
            "derived": {
                "devices": derived.devices, "total_flops_per_s": derived.total_flops_per_s,
                "bisection_bytes_per_s": derived.bisection_bytes_per_s, "bisection_note": derived.bisection_note,
            },
            "peak_names": {dtype: peak.name for dtype, peak in machine.peaks.items()},
            "quantities": [_quantity_entry(number) for number in numbers], "provenance": machine.provenance,
        }, indent=2))  # fmt: skip
        return 0
    _print_machine(machine, numbers, derived)
    return 0


def _quantity_entry(number: Any) -> dict[str, Any]:
    infinite = isinstance(number.value, float) and math.isinf(number.value)
    entry = {"name": number.name, "value": "inf" if infinite else number.value, "unit": number.unit,
             "source": number.source, "date": number.date or None, "assumed": number.assumed}  # fmt: skip
    return entry if number.quality is None else {**entry, "quality": number.quality}


def _print_machine(machine: Any, numbers: list[Any], derived: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"[bold]{machine.name}[/bold]: {machine.description}")
    console.print(f"device: {machine.device_name}; {machine.nodes:,} nodes x {machine.devices_per_node} = "
                  f"{derived.devices:,} devices")  # fmt: skip
    if derived.peak is not None:
        console.print(f"peak of all devices: {_or_na(derived.total_flops_per_s, 'FLOP/s')} ({derived.peak.name})")
    console.print(f"injection per node: {_or_na(derived.injection_bytes_per_s, 'B/s')} per direction")
    note = f" ({derived.bisection_note})" if derived.bisection_note else " per direction, all nodes"
    console.print(f"bisection bandwidth: {_or_na(derived.bisection_bytes_per_s, 'B/s')}{note}", markup=False)
    if machine.fabric is not None:
        console.print(f"fabric: {machine.fabric.family}")
    if not machine.rates:
        console.print("compute rates: n/a (known from publications only; janus plan needs rates)")
    published = [number for number in numbers if not number.assumed]
    assumed = [number for number in numbers if number.assumed]
    console.print(_table(f"{len(published)} numbers with a source", published))
    if assumed:
        console.print(_table(f"{len(assumed)} ASSUMED: nobody published these", assumed))
    for name, value in machine.provenance.items():
        console.print(f"{name}: {value}", markup=False)


def _table(title: str, numbers: list[Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("number", overflow="fold", ratio=3)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("date", no_wrap=True)
    table.add_column("source", overflow="fold", ratio=5)
    for number in numbers:
        spread = "" if number.quality is None else f" (±{100 * number.quality:.3g} %)"
        table.add_row(Text(number.name), Text(number.text + spread), Text(number.date or "n/a"), Text(number.source))
    return table


def _check(path: Path, as_json: bool) -> int:
    from janus.config import read_toml
    from perfmodel.machine import read_machine
    from perfmodel.network.catalogue import bisection
    from perfmodel.plausibility import warnings

    values = read_toml(path)
    verdict = read_machine(values)
    problems, odd = list(verdict.problems), []
    if verdict.machine is not None:
        odd = warnings(verdict.machine, values)
        if verdict.machine.fabric is not None:
            _, note = bisection(verdict.machine)
            problems += [note] if note else []
    if as_json:
        print(json.dumps({"file": str(path), "ok": not problems, "problems": problems, "warnings": odd}, indent=2))
        return 2 if problems else 0
    for problem in problems:
        print(f"wrong: {problem}")
    for warning in odd:
        print(f"warning: {warning}")
    if problems:
        print(f"{path}: {len(problems)} wrong or missing")
        return 2
    machine = verdict.machine
    assert machine is not None, "a file without problems is a machine"
    print(f"{path}: sound, {len(machine.sources)} numbers, {len(machine.assumptions())} of them assumed, "
          f"{len(odd)} warnings")  # fmt: skip
    return 0


def _draw(name: str, num_nodes: int, out: Path, words: list[str]) -> int:
    from janus.config import apply_overrides
    from perfmodel.machine import load_machine

    if out.suffix not in DRAWN_SUFFIXES:
        raise UserError(f"--out is {out}: a picture's name ends in {', '.join(DRAWN_SUFFIXES)}")
    if num_nodes < 1:
        raise UserError(f"--nodes is {num_nodes}: it must be above 0")
    from perfmodel.network.draw import draw_machine

    switches, lines = draw_machine(load_machine(name), num_nodes, out, apply_overrides({}, words))
    print(f"{name}, {num_nodes} nodes, {switches} switches, {lines} lines: {out}")
    return 0
