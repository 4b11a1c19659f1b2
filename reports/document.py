"""What a report is made of: sections of text, lists, tables and figures. It owns these nouns, not their printing.

Sections build a document once; page (``html``), PDF (``pdf``), CSV files and summary print the same one.
Tones mark where a value comes from, everywhere: measured, predicted, published, assumed ("" where it does not matter).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure

Tone = Literal["", "measured", "predicted", "published", "assumed", "good", "bad"]


@dataclass(frozen=True, kw_only=True)
class Value:
    """One cell of a table. number: what it sorts by and what the CSV holds, in SI units, None for plain text.

    high: of an interval, whose lower end is ``number``: the upper end, in the CSV a column of its own.
    """

    text: str
    number: float | None = None
    high: float | None = None
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """name: with its unit where cells are bare numbers. csv_name: of the CSV's column, with the SI unit (step_s).

    csv_high: of intervals, name of the CSV's column for the upper end.
    """

    name: str
    numeric: bool = False
    tone: Tone = ""
    csv_name: str = ""
    csv_high: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """name: unique in the document, of the CSV file. folded: long, shown on demand on screen, whole in print.

    groups: indices of rows before which a thicker line is drawn.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value | str, ...], ...]
    caption: str = ""
    note: str = ""
    folded: bool = False
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"table {self.name}: {len(row)} cells for {len(self.columns)} columns"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure. name: unique in the document; description: for who cannot see it; data: every number drawn (CSV)."""

    name: str
    figure: Figure
    caption: str
    description: str
    data: Table
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph. style: plain, lead, note (small), question (the study's), warning (must be seen)."""

    text: str
    style: Literal["plain", "lead", "note", "question", "warning"] = "plain"


@dataclass(frozen=True, kw_only=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading inside a section."""

    text: str


Block = Text | Bullets | Heading | Table | Picture


@dataclass(frozen=True, kw_only=True)
class Section:
    """id: letters, digits and "-", for links; short: in the list of sections; tag: like "predicted, not measured"."""

    id: str
    title: str
    short: str
    blocks: tuple[Block, ...]
    tag: str = ""
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report. headline: (value, what it is) pairs for its head; banner: above all, like "Predicted only".

    kicker: the line above the title.
    """

    title: str
    lead: tuple[str, ...]
    headline: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    written_at: str
    banner: str = ""
    kicker: str = "Janus · measured beside predicted"

    def tables(self) -> list[Table]:
        """Every table, those of pictures included, in order."""
        blocks = [block for section in self.sections for block in section.blocks]
        tables = [block.data if isinstance(block, Picture) else block for block in blocks]
        return [table for table in tables if isinstance(table, Table)]

    def pictures(self) -> list[Picture]:
        """Every picture, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Picture)]

    def labels(self) -> dict[str, str]:
        """Name of a picture or of a table with a caption -> "Figure 1", "Table 1", numbered in order."""
        blocks = [block for section in self.sections for block in section.blocks]
        pictures = [block.name for block in blocks if isinstance(block, Picture)]
        tables = [block.name for block in blocks if isinstance(block, Table) and block.caption]
        numbered = [(name, f"Figure {number}") for number, name in enumerate(pictures, 1)]
        return dict(numbered + [(name, f"Table {number}") for number, name in enumerate(tables, 1)])
