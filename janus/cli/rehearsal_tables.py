"""Tables of ``janus rehearse`` for people. It owns no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from janus.layout import Layout
from perfmodel.rehearsal import Replay

MOST_ROWS = 14


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def print_rehearsal(document: dict[str, Any], out: Path) -> None:
    """What came of a rehearsal, and where it was written."""
    console = Console()
    step, drawn = document["step"], document["drawn_out"]
    rows = sum(row["edges"] for row in document["micro_batches"])
    pieces = len(document["micro_batches"])
    title = (
        f"rank {document['rank']} of {document['layout_name']}: {pieces} micro-batch{'es' if pieces != 1 else ''}, "
        f"{rows:,} edges, {document['num_blocks']} of {document['model']['num_blocks']} blocks"
    )
    console.print(title, highlight=False)
    times = _table("phase", "measured", *(["drawn out"] if drawn else []))
    for phase, seconds in step["phase_s"].items():
        times.add_row(phase, _ms(seconds), *([_ms(drawn["phase_s"][phase])] if drawn else []))
    times.add_row("compute", _ms(step["compute_s"]), *([_ms(drawn["compute_s"])] if drawn else []))
    console.print(times)
    memory = _table("memory", "measured", *(["drawn out"] if drawn else []))
    for name, size in document["memory"].items():
        memory.add_row(name.removesuffix("_bytes").replace("_", " "), _mb(size),
                       *([_mb(drawn["memory"][name])] if drawn else []))  # fmt: skip
    console.print(memory)
    sent = _table("collectives of a step: phase, axis, collective", "calls", "sent")
    for row in step["traffic"][:MOST_ROWS]:
        sent.add_row(f"{row['phase']}, {row['axis']}, {row['collective']}", str(row["calls"]), _mb(row["sent_bytes"]))
    console.print(sent)
    if len(step["traffic"]) > MOST_ROWS:
        console.print(f"and {len(step['traffic']) - MOST_ROWS} more rows in {out}")
    flops = document["flops"]["executed"]
    console.print(f"{flops / 1e9:,.1f} GFLOP by formula, {flops / step['compute_s'] / 1e9:,.1f} GFLOP/s")
    if document["data"]["drawn"] != "as the trainer":
        console.print(f"note: structures drawn {document['data']['drawn']}")
    if not document["with_optimizer"]:
        console.print("note: without the optimizer's update and memory")
    if drawn:
        console.print(f"note: {drawn['kind']}")
    if not document["is_finite"]:
        console.print("note: numbers did not stay finite; seconds and bytes do not depend on them")
    console.print(f"rehearsal: {out}   play it: janus rehearse replay {out} --machine lineshine", highlight=False)


def print_replay(found: Replay, layout: Layout) -> None:
    """The step on a machine."""
    console = Console()
    label = "compute measured, communication predicted" if found.compute == "measured" else "predicted"
    console.print(f"replay on {found.machine}, {layout.describe()}: {label}", highlight=False)
    table = _table("what", "ms", "share")
    rows = {"compute": found.compute_s}
    rows |= {f"exposed {axis}": seconds for axis, seconds in sorted(found.exposed_s.items(), key=lambda one: -one[1])}
    rows |= {"slower ranks at the end": found.rest_s, "step": found.step_s}
    for name, seconds in rows.items():
        table.add_row(name, f"{1e3 * seconds:.2f}", f"{100 * seconds / max(found.step_s, 1e-12):.1f} %")
    console.print(table)
    sums = _table("collectives of axis", "ms in all", "ms exposed")
    for axis, seconds in sorted(found.transfer_s.items()):
        sums.add_row(axis, f"{1e3 * seconds:.2f}", f"{1e3 * found.exposed_s.get(axis, 0.0):.2f}")
    console.print(sums)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False)


def _ms(seconds: float | None) -> str:
    return "n/a" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def _mb(size: float | None) -> str:
    return "n/a" if size is None else f"{size / 1e6:,.1f} MB"
