"""A report written by hand: every kind of block, long and wide tables, strings that try to break out."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure

from reports.document import Bullets, Column, Document, Heading, Picture, Section, Table, Text, Value
from reports.figures import STYLE

HOSTILE = r'</td><script>alert(1)</script> & "quoted" #import $x$ _under_ *star* \relax {x} % ~ ^ @y <label> `raw`'
WIDE_COLUMNS = 13


def drawing(size: tuple[float, float] = (5.6, 3.7)) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.plot([1, 2, 4, 8], [1.0, 0.97, 0.93, 0.9], marker="o", color="#0072B2")
        axes.set_xlabel("ranks")
        axes.set_ylabel("efficiency − of the base point")
        return figure


def picture(name: str, *, wide: bool = False, num_rows: int = 4) -> Picture:
    columns = (Column(name="ranks", numeric=True), Column(name="efficiency", numeric=True, csv_name="efficiency"))
    rows = tuple((Value(text=f"{2**n:,}", number=2**n), Value(text="97 %", number=0.97)) for n in range(num_rows))
    return Picture(
        name=name, figure=drawing((9.0, 3.7) if wide else (5.6, 3.7)), wide=wide, description="efficiency by ranks",
        caption="Efficiency against the 1-rank point, T(1) = 102 ms. Hollow: oversubscribed.",
        data=Table(name=f"{name}-data", columns=columns, rows=rows),
    )  # fmt: skip


def points_table() -> Table:
    """Sorting by number differs from sorting by text; one value is not known."""
    columns = (
        Column(name="study"), Column(name="ranks", numeric=True),
        Column(name="step time", numeric=True, tone="measured", csv_name="step_s"),
        Column(name="predicted", numeric=True, tone="predicted", csv_name="predicted_s"), Column(name="95 % interval"),
    )  # fmt: skip
    rows = (
        ("weak", Value(text="1", number=1), Value(text="102 ms", number=0.102), Value(text="95 ms", number=0.095),
         "no CI (n=2)"),
        ("weak", Value(text="2", number=2), Value(text="1.12 s", number=1.12), Value(text="0.9 s", number=0.9),
         "1.1 to 1.2 (96.9 % CI, n=6)"),
        ("strong", Value(text="10", number=10), Value(text="20 ms", number=0.02), Value(text="1 ms", number=0.001), ""),
        ("strong", Value(text="128", number=128), "n/a", Value(text="3 ms", number=0.003), HOSTILE),
    )  # fmt: skip
    return Table(name="points", columns=columns, rows=rows, caption="Every point, measured beside predicted.",
                 note="Error is (predicted − measured) / measured.", groups=(2,))  # fmt: skip


def wide_table() -> Table:
    columns = (
        Column(name="ranks", numeric=True),
        *(Column(name=f"quantity number {number}", numeric=number % 3 > 0) for number in range(1, WIDE_COLUMNS)),
    )
    row = tuple(
        Value(text=f"{1234.5 * n:,.1f} ms", number=1.2345 * n) if n % 3 else f"some words that go on for a while, {n}"
        for n in range(1, WIDE_COLUMNS)
    )
    return Table(name="wide", columns=columns, rows=tuple((Value(text=str(n), number=n), *row) for n in (1, 2, 4)),
                 caption="More columns than a page has room for.")  # fmt: skip


def long_table(num_rows: int = 150) -> Table:
    columns = (Column(name="attempt"), Column(name="state"), Column(name="reason"))
    reason = "exit code 1: rank 1 ran out of memory while it was allocating the activations of the third layer"
    rows = tuple((f"weak-ranks00002-3f0c2d4e5a6b-attempt{n:03d}", "FAILED", f"{reason} ({n})") for n in range(num_rows))
    return Table(name="attempts-left-out", columns=columns, rows=rows, caption="What does not count.", folded=True)


def provenance_table() -> Table:
    rows = (
        ("command", "/opt/site/very/long/path/to/python -m torch.distributed.run --nproc-per-node=4 -m janus train "
         "--config=/scratch/project_4711/campaigns/first/attempts/weak-ranks00004-3f0c2d4e5a6b-attempt01/config.toml"),
        ("lock file", "sha256:3f0c2d4e5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f9a0b1c2d"),
        ("source", "peak as in https://example.org/specs/accelerator_x.html (read 2026-11-22)"),
    )  # fmt: skip
    return Table(name="provenance", columns=(Column(name="field"), Column(name="value")), rows=rows)


def made_document(**changes: object) -> Document:
    verdict = Section(
        id="verdict", title="Verdict", short="Verdict", tag="measured", tone="measured",
        blocks=(
            Text(text="A step takes 12 % longer on 8 ranks than on one.", style="lead"),
            Text(text=HOSTILE), Text(text="One number is withheld: 120 % of peak.", style="warning"),
            Bullets(items=("First, of 3 ranks.", HOSTILE)), points_table(),
        ),
    )  # fmt: skip
    weak = Section(
        id="weak", title="Weak scaling", short="Weak", tag="predicted, not measured", tone="predicted",
        blocks=(
            Text(text="How much longer does a step take?", style="question"), picture("weak-efficiency"),
            picture("weak-time", num_rows=5), Heading(text="Where the time goes"), picture("weak-phases", wide=True),
            wide_table(),
        ),
    )  # fmt: skip
    rest = Section(
        id="exclusions",
        title="Failures and what was left out",
        short="Left out",
        blocks=(Text(text="Of 160 attempts, 150 do not count.", style="note"), long_table(), provenance_table()),
    )
    values = {
        "title": "Scaling of Ours & <Theirs>", "lead": ("Janus trained a model.", "It was predicted before."),
        "headline": (("12", "training runs counted"), ("7 %", "median error of the predicted step time")),
        "sections": (verdict, weak, rest), "written_at": "2026-11-23 10:00 UTC",
    }  # fmt: skip
    return Document(**(values | changes))
