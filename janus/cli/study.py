"""``janus study``: scaling campaigns. It finds the action and imports only it."""

from __future__ import annotations

import argparse
import importlib

ACTIONS = {
    "plan": "points with predicted time, memory and node-hours; refuses what will not fit",
    "run": "submit what lacks enough good attempts, and wait; the same command goes on after any stop",
    "status": "where every point stands: attempts by state, jobs, node-hours",
    "watch": "the same, live, with the report rendered again as it goes",
    "show": "the points of a study, measured beside predicted",
    "compare": "a campaign beside an earlier one: what changed, and in which phase",
    "predict": "a campaign predicted only, up to a full machine of the catalogue",
    "index": "one Parquet table of all attempts, made again at any time",
}
EXAMPLES = """examples:
  janus study plan --config study.toml --data alloys.store \\
      --machine machine.toml
  janus study run --config study.toml --data alloys.store \\
      --machine machine.toml --out studies/first
  janus study run --quick --data alloys.store --machine machine.toml \\
      --out studies/first
  janus study status studies/first
  janus study watch studies/first --page report.html
  janus report studies/first --out report.html

each action has its own options: janus study ACTION --help
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus study", description="Weak, strong and throughput studies, predicted and measured.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    listing = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for name, summary in ACTIONS.items():
        listing.add_parser(name, help=summary, add_help=False)
    return parser


def main(arguments: list[str]) -> int:
    """Run one action and return its exit code."""
    if not arguments or arguments[0] not in ACTIONS:
        _parser().parse_args(arguments)  # prints --help or the usage error, and exits
    module = importlib.import_module(f"janus.cli.study_{arguments[0]}")
    return int(module.main(arguments[1:]))
