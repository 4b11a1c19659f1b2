"""Composition root of the command line: finds the command, imports only it, turns user errors into exit code 2."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from janus import DISTRIBUTION, __version__
from janus.errors import UserError


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, raised where the program stands: what cleans up after Ctrl-C cleans up after it."""


COMMANDS = {
    "quickstart": "run the whole idea once: data, plan, training, study, report",
    "data": "make, pack, check and describe structures",
    "model": "list the model presets and their parameter counts",
    "calibrate": "measure this host into a machine file",
    "machines": "list, show, check and draw machines",
    "validate": "hold predictions against recorded runs, collectives, published numbers",
    "plan": "pick a parallel layout before launch",
    "rehearse": "run one rank of a layout without the others, and play it on any machine",
    "check": "prove that a parallel layout equals a single process",
    "train": "train a potential, alone or on many ranks",
    "evaluate": "errors of a checkpoint on labelled structures",
    "export": "write a trained potential as one file",
    "study": "run weak and strong scaling studies",
    "report": "one self-contained HTML page from a study",
}

EXAMPLES = """examples:
  janus quickstart                         see everything work, in a few minutes
  janus data make --out alloys.xyz         structures labelled on the spot
  janus model list                         presets with total and active parameters
  mpiexec -n 2 janus train --data alloys.store --out runs/first
"""


def _package_path() -> Path:
    return Path(__file__).resolve().parent.parent


def _usage_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus",
        description="Train interatomic potentials at scale, and know beforehand how that will go.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {__version__} ({_package_path()})")
    listing = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, summary in COMMANDS.items():
        listing.add_parser(name, help=summary, add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 a check failed, 2 a user's mistake, 130 or 143 ended by
    a signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _usage_parser()
    if not words:
        parser.print_help()
        return 2
    if words[0] not in COMMANDS:
        parser.parse_args(words)  # prints --help, --version or the usage error, and exits
    module = importlib.import_module(f"janus.cli.{words[0]}")
    try:
        return int(module.main(words[1:]))
    except UserError as error:
        print(f"janus {words[0]}: {error}", file=sys.stderr)
        return 2
    except TerminatedError:
        print(f"janus {words[0]}: terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"janus {words[0]}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; there is nobody to tell
        return 1


def _terminate(signal_number: int, frame: object) -> None:
    raise TerminatedError


def entry_point() -> None:
    """The console command. SIGTERM (schedulers, ``timeout``) cleans up like Ctrl-C; ``train`` has its own handler."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
