"""The table of points for a paper: LaTeX with booktabs, a document of its own to compile, a table to copy out of it.

It owns LaTeX's syntax, not the numbers (``key_table``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from reports.campaign import Campaign
from reports.document import Document
from reports.key_table import COLUMNS, KeyRow, filled_columns, key_rows, peak_words

PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs}
\usepackage[a4paper,landscape,margin=18mm]{geometry}
\begin{document}
"""
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "\u2212": "$-$", "\u00d7": r"$\times$", "\u2013": "--",
    "\u2014": "---", "\u00a0": "~", "\u202f": r"\,", "\u00b5": r"$\mu$", "\u03bc": r"$\mu$", "\u2192": r"$\to$",
    "\u2264": r"$\leq$", "\u2265": r"$\geq$", "\u00b7": r"$\cdot$", "\u2026": r"\ldots{}", "\u00c5": r"\AA{}",
    "\u00b0": r"$^\circ$", "\u00b1": r"$\pm$", "\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''",
}  # fmt: skip
MARK = r"$^{\dagger}$"
NOTES = (
    r"Step time: median over jobs, each with the median of its steps. Intervals: 95\,\%, none below six jobs.",
    r"Error: (predicted $-$ measured) / measured. Efficiency: against the base point of the same study.",
    rf"{MARK} predicted, not measured.",
)


def escaped(text: str) -> str:
    """Text as LaTeX prints it; a letter that its standard fonts lack becomes its nearest plain one, or "?"."""
    return "".join(SPECIAL.get(letter) or _plain(letter) for letter in text)


def _plain(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() else " "
    if unicodedata.category(letter)[0] == "C":
        return ""
    ascii_letters = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return "".join(SPECIAL.get(plain, plain) for plain in ascii_letters) or "?"


def render_latex(document: Document, campaign: Campaign) -> str:
    """A complete file; what lies between the two comment lines is the table."""
    rows = key_rows(campaign)
    kept = filled_columns(rows)
    body = [_row(row, rows[index - 1] if index else None, kept) for index, row in enumerate(rows)]
    spec = "".join("r" if COLUMNS[index].numeric else "l" for index in kept)
    table = [
        "% begin of the table (needs \\usepackage{booktabs})", r"\begin{table}", r"\centering\footnotesize",
        r"\setlength{\tabcolsep}{4.5pt}", rf"\caption{{{_caption(document, campaign)}}}", r"\label{tab:scaling}",
        rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule", _head(kept), r"\midrule", *body, r"\bottomrule",
        r"\end{tabular}", r"\par\smallskip\raggedright\scriptsize", *_notes(campaign), r"\end{table}",
        "% end of the table",
    ]  # fmt: skip
    return PREAMBLE + "\n".join(table) + "\n\\end{document}\n"


def _caption(document: Document, campaign: Campaign) -> str:
    title = escaped(document.title.rstrip("."))
    return f"{title}. {'Predicted, not measured.' if campaign.is_predicted_only else 'Measured beside predicted.'}"


def _head(kept: Sequence[int]) -> str:
    names = []
    for column in (COLUMNS[index] for index in kept):
        mark = MARK if column.tone == "predicted" else ""
        names.append(f"{escaped(column.name)}{mark}")
    return " & ".join(names) + r" \\"


def _row(row: KeyRow, before: KeyRow | None, kept: Sequence[int]) -> str:
    """One line of the table; the study is named at its first line, and what is only predicted is slanted."""
    is_first = before is None or before.view is not row.view
    name = str(row.cells[0]) if is_first else ""
    others = [row.cells[index] for index in kept if index > 0]
    texts = [name, *(cell if isinstance(cell, str) else cell.text for cell in others)]
    cells = [escaped(text.replace(" %", "\u202f%")) for text in texts]
    if row.is_predicted:
        cells = [rf"\textit{{{cell}}}" if cell else "" for cell in cells]
        cells[0] += MARK if is_first else ""
    rule = "\\addlinespace\n" if is_first and before is not None else ""
    return rule + " & ".join(cells) + r" \\"


def _notes(campaign: Campaign) -> list[str]:
    notes = [*NOTES, *([escaped(words)] if (words := peak_words(campaign)) else [])]
    if any(point.oversubscribed for view in campaign.views for point in view.points):
        notes.append("* more ranks than cores.")
    return notes
