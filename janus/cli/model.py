"""``janus model``: the presets and their parameter counts, built on the meta device (no memory is needed)."""

from __future__ import annotations

import argparse
import json
from typing import Any

EXAMPLES = """examples:
  janus model list                     every preset, total and active parameters
  janus model show matris-10m          one preset by part
  janus model show matris-moe-l --json
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus model",
        description="Model presets and their parameter counts.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show")
    listing = actions.add_parser("list", help="every preset")
    showing = actions.add_parser("show", help="one preset, part by part")
    showing.add_argument("name", metavar="NAME", help="name of a preset, as listed")
    for action in (listing, showing):
        action.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def main(arguments: list[str]) -> int:
    """List the presets, or show one."""
    options = _parser().parse_args(arguments)
    return _list(options.json) if options.action == "list" else _show(options.name, options.json)


def _list(as_json: bool) -> int:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from janus.model.parameters import count_parameters
    from janus.presets import PRESETS

    counts = {name: count_parameters(config) for name, config in PRESETS.items()}
    if as_json:
        print(json.dumps([_entry(name, counts[name]) for name in PRESETS], indent=2))
        return 0
    table = Table(title="Model presets (* the original, to the letter)", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    for heading in ("blocks", "width", "experts", "parameters", "active per token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, config in PRESETS.items():
        experts = f"{config.experts.top_k} of {config.experts.num_experts}" if config.experts else ""
        table.add_row(
            name + (" *" if config.compat else ""), str(config.num_blocks), str(config.width), experts,
            f"{counts[name].total:,}", f"{counts[name].active:,}",
        )  # fmt: skip
    Console().print(table)
    return 0


def _show(name: str, as_json: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from janus.config import to_toml
    from janus.model.parameters import count_parameters
    from janus.presets import preset

    counts = count_parameters(preset(name))
    entry = _entry(name, counts)
    if as_json:
        print(json.dumps(entry, indent=2))
        return 0
    table = Table(title=f"{name}: {counts.total:,} parameters, {counts.active:,} active per token")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for part, count in counts.parts.items():
        table.add_row(part, f"{count:,}")
    console = Console()
    console.print(table)
    console.print(to_toml({"model": entry["config"]}), markup=False, highlight=False)
    return 0


def _entry(name: str, counts: Any) -> dict[str, Any]:
    from janus.config import to_mapping
    from janus.presets import preset

    return {
        "name": name,
        "total_parameters": counts.total,
        "active_parameters": counts.active,
        "parts": counts.parts,
        "config": to_mapping(preset(name)),
    }
