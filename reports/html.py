"""A document as one HTML page: everything inlined, readable without scripts and without a network.

It owns the page, not its content (``sections``) nor the CSV and SVG inside it (``tables_csv``, ``svg``). With scripts,
tables sort by the numbers behind their cells.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import markupsafe

from reports.document import Block, Bullets, Document, Heading, Picture, Section, Table, Text, Value
from reports.svg import inline_svg
from reports.tables_csv import table_csv
from reports.wording import tied

TEMPLATE_FOLDER = Path(__file__).parent
DATA_SECTION = "data"
LONG_TABLE_ROWS = 40  # a table with more rows scrolls within its own frame
MOST_DATA_ROWS = 200  # of a figure's numbers, shown on the page; the CSV holds all
SHORT_CELL = 24  # characters; a column of text with no longer cell keeps its lines whole
REM_PER_INCH, MOST_ENLARGED = 6.0, 1.2  # of a drawing, whose type would look too large beside the text's
URL = re.compile(r"https?://[^\s<>\"'&;,)\]]*[^\s<>\"'&;,)\].]")


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file that the page carries. words: what it is."""

    file_name: str
    mime: str
    content: bytes
    words: str


@dataclass(frozen=True, kw_only=True)
class FigureRow:
    """Pictures that stand side by side where there is room."""

    pictures: tuple[Picture, ...]


def render_html(document: Document, drawings: Mapping[str, str], downloads: Sequence[Download] = ()) -> str:
    """The page. drawings: picture name -> its SVG file; downloads: offered in the section ``data``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "prose": _prose, "kind": _kind, "inline": inline_svg, "csv_link": _csv_link, "data_link": _data_link,
        "words": _tone_words, "room": _room_rem,
    }  # fmt: skip
    return environment.get_template("page.html.j2").render(
        document=document, labels=document.labels(), drawings=drawings, downloads=downloads, rows=_rows,
        blocks_of=lambda section: list(arranged(section)), data_section=DATA_SECTION, long_rows=LONG_TABLE_ROWS,
        most_data_rows=MOST_DATA_ROWS, css=_own("page.css"), script=_own("page.js"),
    )  # fmt: skip


def arranged(section: Section) -> Iterator[Block | FigureRow]:
    """The blocks of a section, pictures that follow one another and are not wide put in one row."""
    row: list[Picture] = []
    for block in section.blocks:
        if isinstance(block, Picture) and not block.wide:
            row.append(block)
            continue
        if row:
            yield FigureRow(pictures=tuple(row))
            row = []
        yield block
    if row:
        yield FigureRow(pictures=tuple(row))


def _own(name: str) -> str:
    return (TEMPLATE_FOLDER / name).read_text(encoding="utf-8")


def _kind(block: Block | FigureRow) -> str:
    kinds = {Text: "text", Bullets: "bullets", Heading: "heading", Table: "table", Picture: "picture"}
    return "figures" if isinstance(block, FigureRow) else kinds[type(block)]


def _prose(text: str) -> markupsafe.Markup:
    """Escaped text, numbers tied to their units, addresses as links."""
    escaped = str(markupsafe.escape(tied(text)))
    return markupsafe.Markup(URL.sub(r'<a href="\g<0>">\g<0></a>', escaped))


def _room_rem(picture: Picture) -> float:
    """The widest that a drawing may be shown [rem]."""
    return round(MOST_ENLARGED * REM_PER_INCH * float(picture.figure.get_size_inches()[0]), 1)


def _tone_words(tone: str) -> str:
    """The classes of a tone; the word itself is never the only sign of it."""
    return f"tone-{tone}" if tone else ""


def _rows(table: Table, most: int | None = None) -> Iterator[markupsafe.Markup]:
    """The body's rows; built here and not in the template because large tables have tens of thousands of cells."""
    classes = [_column_class(table, index) for index in range(len(table.columns))]
    for index, row in enumerate(table.rows[:most]):
        cells = "".join(_cell(cell, shared) for cell, shared in zip(row, classes, strict=True))
        group = ' class="group"' if index in table.groups and index > 0 else ""
        yield markupsafe.Markup(f"<tr{group}>{cells}</tr>")


def _column_class(table: Table, index: int) -> str:
    column = table.columns[index]
    cells = (row[index] for row in table.rows)
    is_short = all(len(cell if isinstance(cell, str) else cell.text) <= SHORT_CELL for cell in cells)
    kind = "num" if column.numeric else "short" if is_short else "words"
    return " ".join(word for word in (kind, _tone_words(column.tone)) if word)


def _cell(cell: Value | str, shared: str) -> str:
    value = cell if isinstance(cell, Value) else Value(text=cell)
    tone = _tone_words(value.tone)
    names = f"{shared} {tone}".strip() if tone and tone not in shared else shared
    number = "" if value.number is None else f' data-n="{value.number!r}"'
    class_name = f' class="{names}"' if names else ""
    return f"<td{class_name}{number}>{_prose(value.text)}</td>"


def _csv_link(table: Table) -> str:
    return _data_link(table_csv(table).encode(), "text/csv")


def _data_link(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
