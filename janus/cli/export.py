"""``janus export``: a trained potential as one file. It owns the command line, not the format (``train/export.py``)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from janus.errors import UserError

SUFFIX = ".safetensors"
EXAMPLES = """examples:
  janus export runs/first --out copper.safetensors
  janus export runs/first/checkpoints/best --out copper.safetensors --force
  janus export runs/first/checkpoints/step_00000200 --out raw.safetensors --raw-weights --json
then:
  janus evaluate copper.safetensors test.xyz
  atoms.calc = JanusCalculator("copper.safetensors")     (Python, from janus.calculator import JanusCalculator)
"""


def build_parser() -> argparse.ArgumentParser:
    """Options of ``janus export``."""
    parser = argparse.ArgumentParser(
        prog="janus export",
        description="Write the weights of a run or checkpoint as one safetensors file with the model's settings and "
        "its provenance in the header: averaged weights (EMA) where the checkpoint has them. `janus evaluate` and "
        "JanusCalculator accept the file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="the file to write")
    parser.add_argument("--raw-weights", action="store_true", help="the last step's weights, not their average")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists, once the new is complete")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def main(arguments: list[str]) -> int:
    """Export and print. Returns the exit code."""
    options = build_parser().parse_args(arguments)
    _require_place(options.out, force=options.force)
    from janus.train.export import export_checkpoint
    from janus.train.inference import open_checkpoint

    checkpoint = open_checkpoint(options.checkpoint, lambda text: print(f"janus export: {text}", file=sys.stderr))
    try:
        header = export_checkpoint(checkpoint, options.out, raw=options.raw_weights)
    except OSError as error:
        print(f"janus export: {options.out} could not be written ({error.strerror or error})", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"out": str(options.out), "checkpoint": str(checkpoint.path), **header}, indent=1))
    else:
        print(
            f"{options.out}: {header['weights']} weights after {header['step']} steps, {header['dtype']}, "
            f"{header['bytes'] / 1e6:.1f} MB, SHA-256 {header['sha256'][:16]}"
        )
    return 0


def _require_place(out: Path, *, force: bool) -> None:
    """Raise UserError where the file cannot be written as asked, before anything is read."""
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out} does not end in {SUFFIX}: name such a file")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")
    if out.exists() and not force:
        raise UserError(f"--out {out} exists: replace it with --force, or name another file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}: make it first")
    if not os.access(out.absolute().parent, os.W_OK):
        raise UserError(f"--out {out} cannot be written: {out.absolute().parent} does not allow it")
