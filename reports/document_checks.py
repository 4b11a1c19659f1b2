"""What a finished document says against the rules: looked up in its text, tables and figures, whoever made them.

It owns reading a document back; it does not own the rules (``rules``) nor making the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.category import UnitData
from matplotlib.lines import Line2D

from reports.document import Bullets, Document, Picture, Section, Table, Text, Value
from scaling_studies.records import Record

BASE_TABLE, EXCLUSION_TABLE = "base-points", "exclusions"
RULES_SECTION = "rules"  # quotes the rules and what breaks them, so it is not read
COMPARING = re.compile(
    r"\b(faster|slower|quicker|speedier|outperform\w*|significant(?:ly)?|superior|better than|worse than)\b",
    re.IGNORECASE,
)
NORMAL_THEORY = re.compile(r"±|\bstandard error\b|\bstandard deviations? of the mean\b", re.IGNORECASE)


def _cell_text(cell: Value | str) -> str:
    return cell if isinstance(cell, str) else cell.text


def _own_words(section: Section) -> Iterator[str]:
    """What the report itself says in a section: no cells of tables and no study's question, which users wrote."""
    yield section.title
    for block in section.blocks:
        if isinstance(block, Text) and block.style != "question":
            yield block.text
        elif isinstance(block, Bullets):
            yield from block.items
        elif isinstance(block, Picture):
            yield from (block.caption, block.description)
        elif isinstance(block, Table):
            yield from (block.caption, block.note, *(column.name for column in block.columns))


def _sentences(document: Document) -> Iterator[tuple[str, str]]:
    """(where, text) of everything the report itself says."""
    yield from (("the head of the report", text) for text in (*document.lead, document.banner))
    yield from (("the head of the report", text) for pair in document.headline for text in pair)
    for section in document.sections:
        if section.id != RULES_SECTION:
            yield from ((f"section {section.title!r}", text) for text in _own_words(section))


def comparing_words(document: Document) -> list[tuple[str, str]]:
    """(where, word) for words of comparison, which need a rank test and a threshold and are then others."""
    return [(where, found[0]) for where, text in _sentences(document) for found in COMPARING.finditer(text)]


def normal_theory(document: Document) -> list[str]:
    """Where the report gives a spread that means something for a normal distribution only."""
    cells = [
        (f"table {table.name}", _cell_text(cell)) for table in document.tables() for row in table.rows for cell in row
    ]
    found = [where for where, text in (*_sentences(document), *cells) if NORMAL_THEORY.search(text)]
    return list(dict.fromkeys(found))


def _cells_of(document: Document, name: str) -> set[str]:
    return {_cell_text(cell) for table in document.tables() if table.name == name for row in table.rows for cell in row}


def studies_without_base_time(document: Document, studies: Sequence[str]) -> list[str]:
    """Of some studies, those that the table of base points lacks."""
    present = _cells_of(document, BASE_TABLE)
    return [name for name in studies if name not in present]


def unlisted_attempts(document: Document, records: Sequence[Record]) -> list[str]:
    """Tags of the records that the table of exclusions lacks."""
    present = _cells_of(document, EXCLUSION_TABLE)
    return [record.tag for record in records if record.tag not in present]


def picture_faults(document: Document) -> list[str]:
    """Figures without their numbers, and lines that connect what has no order."""
    faults = []
    for picture in document.pictures():
        numbers = [cell.number for row in picture.data.rows for cell in row if isinstance(cell, Value)]
        if not any(number is not None for number in numbers):
            faults.append(f"figure {picture.name} comes without its numbers")
        for axes in picture.figure.axes:
            faults += [f"figure {picture.name}: {fault}" for fault in _line_faults(axes)]
    return faults


def _line_faults(axes: Axes) -> list[str]:
    """A line may connect values only along a numeric axis, and then in order (a vertical line is an interval)."""
    drawn = [line for line in axes.lines if _connects(line)]
    categories = [isinstance(axis.get_units(), UnitData) for axis in (axes.xaxis, axes.yaxis)]
    if drawn and any(categories):
        return ["a line connects categories, which have no order"]
    return ["a line runs back and forth along its axis" for line in drawn if not _is_ordered(line)][:1]


def _connects(line: Line2D) -> bool:
    """Whether a line is drawn between values of the data."""
    return line.get_linestyle() not in ("None", "none", " ", "") and len(np.asarray(line.get_xdata())) > 1


def _is_ordered(line: Line2D) -> bool:
    """Whether one of its coordinates never falls, or never rises."""
    for values in (np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)):
        steps = np.diff(values)
        if bool((steps >= 0).all() or (steps <= 0).all()):
            return True
    return False
