"""A report on one page of Markdown: what was found, the table of points, what speaks against it. No figures."""

from __future__ import annotations

from reports.campaign import Campaign
from reports.document import Bullets, Document, Section, Table, Text, Value
from reports.key_table import COLUMNS, NAME, filled_columns, key_rows, peak_words

VERDICT = "verdict"
NOTES = (
    "Step time: median over jobs, each with the median of its steps; intervals: 95 %, none below six jobs. "
    "Error: (predicted − measured) / measured. Efficiency: against the base point of the same study.",
    "Predicted columns and rows are predicted, not measured.",
)


def render_markdown(document: Document, campaign: Campaign) -> str:
    """The summary, for a message, a repository or a log book."""
    verdict = next((section for section in document.sections if section.id == VERDICT), None)
    lines = [f"# {_inline(document.title)}", ""]
    if document.banner:
        lines += [f"> **{_inline(document.banner)}**", ""]
    for paragraph in _paragraphs(document, verdict):
        lines += [_inline(paragraph), ""]
    lines += [f"- {_inline(item)}" for item in _items(verdict)]
    lines += [f"- **{_inline(value)}** {_inline(name)}" for value, name in document.headline]
    warnings = list(dict.fromkeys(text.text for text in _texts(document) if text.style == "warning"))
    lines += ["", "## Read this first", "", *(f"- {_inline(text)}" for text in warnings)] if warnings else []
    lines += ["", "## Points", "", *_points(campaign), "", *_notes(campaign), ""]
    for table in _tables(verdict):
        lines += [f"## {_inline(table.caption.rstrip('.') or table.name)}", "", *_table(table), ""]
    return "\n".join([*lines, f"Written {document.written_at} by janus report.", ""])


def _paragraphs(document: Document, verdict: Section | None) -> list[str]:
    """The verdict's own words, or the report's first ones where there is no verdict."""
    blocks = verdict.blocks if verdict is not None else ()
    own = [block.text for block in blocks if isinstance(block, Text) and block.style in ("plain", "lead")]
    return own or list(document.lead)


def _items(verdict: Section | None) -> list[str]:
    blocks = verdict.blocks if verdict is not None else ()
    return [item for block in blocks if isinstance(block, Bullets) for item in block.items]


def _texts(document: Document) -> list[Text]:
    return [block for section in document.sections for block in section.blocks if isinstance(block, Text)]


def _tables(verdict: Section | None) -> list[Table]:
    """Tables of the verdict beside that of the points, which has its own place."""
    blocks = verdict.blocks if verdict is not None else ()
    return [block for block in blocks if isinstance(block, Table) and block.name != NAME]


def _notes(campaign: Campaign) -> list[str]:
    notes = [*NOTES, *([_inline(words)] if (words := peak_words(campaign)) else [])]
    if any(point.oversubscribed for view in campaign.views for point in view.points):
        notes.append("\\* more ranks than cores.")
    if campaign.predicted_views:
        notes.append("Of studies that were only predicted, the base point and the largest are shown.")
    return [" ".join(notes)]


def _points(campaign: Campaign) -> list[str]:
    rows = key_rows(campaign, ends_only=True)
    kept = filled_columns(rows)
    cells = tuple(tuple(row.cells[index] for index in kept) for row in rows)
    return _table(Table(name=NAME, columns=tuple(COLUMNS[index] for index in kept), rows=cells))


def _table(table: Table) -> list[str]:
    """A pipe table; columns of numbers are set right."""
    head = "| " + " | ".join(_inline(column.name) for column in table.columns) + " |"
    rule = "|" + "|".join("---:" if column.numeric else ":---" for column in table.columns) + "|"
    return [head, rule, *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table.rows)]


def _cell(cell: Value | str) -> str:
    return _inline(cell if isinstance(cell, str) else cell.text)


def _inline(text: str) -> str:
    """Text that Markdown would not take for markup, on one line."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())
