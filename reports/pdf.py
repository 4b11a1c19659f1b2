"""A document as PDF, typeset by Typst (a compiler in a Python package: no system package, no network).

It owns what the typesetter is given, not the layout (``report.typ``). The content travels as data, never as source
text, so nothing that a user wrote can be taken for markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.document import Block, Bullets, Document, Heading, Picture, Section, Table, Text, Value
from reports.html import URL
from reports.wording import tied

LAYOUT = Path(__file__).parent / "report.typ"
LONGEST_WORD = 20  # characters; longer ones may be broken
MEASURED_CELLS = 4  # longest cells and words of a column, which decide its width
ZERO_WIDTH_SPACE = "\u200b"


def render_pdf(document: Document, drawings: Mapping[str, str]) -> bytes:
    """The PDF file. drawings: picture name -> its SVG file. The same document gives the same bytes.

    It is tagged for readers who cannot see it (PDF/UA-1): headings, tables, and a description of every figure.
    """
    import matplotlib
    import typst

    files: Any = {f"{picture.name}.svg": drawings[picture.name].encode() for picture in document.pictures()}
    files |= {"main.typ": LAYOUT.read_bytes(), "document.json": json.dumps(_content(document)).encode()}
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    made = typst.compile(
        files, font_paths=[str(fonts)], ignore_system_fonts=True, format="pdf", timestamp=0, pdf_standards="ua-1"
    )
    assert isinstance(made, bytes), f"the typesetter gave {type(made)} for one PDF"
    return made


def _content(document: Document) -> dict[str, Any]:
    labels = document.labels()
    return {
        "title": document.title, "kicker": document.kicker, "written": document.written_at,
        "banner": document.banner, "banner-short": document.banner.partition(":")[0],
        "lead": [_runs(text) for text in document.lead], "headline": [list(pair) for pair in document.headline],
        "sections": [_section(section, number, labels) for number, section in enumerate(document.sections, 1)],
    }  # fmt: skip


def _section(section: Section, number: int, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": section.id, "number": str(number), "title": section.title, "short": section.short, "tag": section.tag,
        "tone": section.tone, "blocks": [_block(block, labels) for block in section.blocks],
    }  # fmt: skip


def _block(block: Block, labels: Mapping[str, str]) -> dict[str, Any]:
    match block:
        case Text():
            return {"kind": "text", "style": block.style, "runs": _runs(block.text)}
        case Bullets():
            return {"kind": "bullets", "items": [_runs(item) for item in block.items]}
        case Heading():
            return {"kind": "heading", "text": block.text}
        case Picture():
            return {
                "kind": "picture", "name": block.name, "label": labels[block.name], "caption": _runs(block.caption),
                "description": block.description or labels[block.name],
                "inches": float(block.figure.get_size_inches()[0]),
            }  # fmt: skip
        case Table():
            return _table(block, labels.get(block.name, ""))


def _table(table: Table, label: str) -> dict[str, Any]:
    rows = [[_cell(cell, column.tone) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    return {
        "kind": "table", "label": label, "caption": _runs(table.caption), "note": _runs(table.note), "rows": rows,
        "groups": list(table.groups), "columns": [_column(table, index) for index in range(len(table.columns))],
    }  # fmt: skip


def _cell(cell: Value | str, column_tone: str) -> dict[str, Any]:
    value = cell if isinstance(cell, Value) else Value(text=cell)
    return {"runs": _runs(value.text), "tone": value.tone or column_tone}


def _column(table: Table, index: int) -> dict[str, Any]:
    """A column's head and, for its width, the longest of its cells and of the words of its cells and head."""
    column = table.columns[index]
    cells = [row[index] for row in table.rows]
    texts = {_breakable(tied(cell if isinstance(cell, str) else cell.text)) for cell in cells}
    words = {word for text in texts for word in _words(text)}
    return {
        "name": column.name, "numeric": column.numeric, "tone": column.tone,
        "cells": sorted(texts, key=len)[-MEASURED_CELLS:], "words": sorted(words, key=len)[-MEASURED_CELLS:],
        "head_words": sorted(_words(column.name), key=len)[-MEASURED_CELLS:],
    }  # fmt: skip


def _words(text: str) -> list[str]:
    """What a line is not broken inside."""
    return re.split(rf"[ {ZERO_WIDTH_SPACE}]|(?<=-)", text)


def _runs(text: str) -> list[dict[str, str]]:
    """Pieces of a text: plain ones, and addresses with where they lead."""
    runs, end = [], 0
    for match in URL.finditer(text):
        runs += [_run(text[end : match.start()]), _run(match.group(), match.group())]
        end = match.end()
    return [run for run in [*runs, _run(text[end:])] if run["text"]]


def _run(text: str, target: str = "") -> dict[str, str]:
    return {"text": _breakable(tied(text)), "target": target}


def _breakable(text: str) -> str:
    """The text with places to break in words too long for a column: after punctuation, else every few letters."""
    return re.sub(rf"[^\s\u00a0]{{{LONGEST_WORD},}}", lambda match: _broken(match.group()), text)


def _broken(word: str) -> str:
    pieces = re.split(r"(?<=[/_.,=:;+&?-])", word)
    pieces = [piece[at : at + LONGEST_WORD] for piece in pieces for at in range(0, len(piece), LONGEST_WORD)]
    return ZERO_WIDTH_SPACE.join(pieces)
