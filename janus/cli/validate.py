"""``janus validate``: predictions beside what was measured or published. It finds the action and imports only it."""

from __future__ import annotations

import argparse
import importlib

ACTIONS = {
    "run": "a training run beside its plan, or beside what a machine file predicts of it",
    "collectives": "the network model beside collectives measured on real machines",
    "paper": "step times, EFLOPS and scaling beside those published of full machines",
}
EXAMPLES = """examples:
  janus validate run runs/first --machine host.toml       predicted beside recorded, by phase; which constant is off
  janus validate run runs/first --plan plan.json          what the plan said beside what happened
  janus validate collectives                              times of collectives on real machines
  janus validate paper                                    the published full-machine numbers

each action has its own options: janus validate ACTION --help
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus validate", description="Hold predictions against what was measured or published.",
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
    module = importlib.import_module(f"janus.cli.validate_{arguments[0]}")
    return int(module.main(arguments[1:]))
