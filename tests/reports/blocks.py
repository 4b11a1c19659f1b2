"""Looking into sections made of hand-made records: their tables as texts, their words, their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reports.campaign import Campaign
from reports.document import Bullets, Picture, Section, Table, Text, Value
from scaling_studies.records import Record, RecordFolder


def campaign_of(records: Sequence[Record], **more: Any) -> Campaign:
    return Campaign(folder=RecordFolder(records=tuple(records), refused=()), **more)


def table_of(sections: Sequence[Section], name: str) -> Table:
    """The table of this name, those of pictures included."""
    blocks = [block for section in sections for block in section.blocks]
    tables = [block.data if isinstance(block, Picture) else block for block in blocks]
    (found,) = [table for table in tables if isinstance(table, Table) and table.name == name]
    return found


def picture_of(sections: Sequence[Section], name: str) -> Picture:
    blocks = [block for section in sections for block in section.blocks]
    (found,) = [block for block in blocks if isinstance(block, Picture) and block.name == name]
    return found


def texts(table: Table) -> list[list[str]]:
    """Cells as they are read."""
    return [[cell.text if isinstance(cell, Value) else cell for cell in row] for row in table.rows]


def column(table: Table, name: str) -> list[str]:
    """One column as it is read."""
    place = [column.name for column in table.columns].index(name)
    return [row[place] for row in texts(table)]


def numbers(table: Table, name: str) -> list[float | None]:
    """The numbers behind one column."""
    place = [column.name for column in table.columns].index(name)
    return [row[place].number if isinstance(row[place], Value) else None for row in table.rows]


def words(sections: Sequence[Section]) -> str:
    """Everything that paragraphs, lists, captions and notes say."""
    found = []
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Text):
            found.append(block.text)
        elif isinstance(block, Bullets):
            found += block.items
        elif isinstance(block, Table | Picture):
            found.append(block.caption)
            found.append(block.note if isinstance(block, Table) else "")
    return "\n".join(found)
