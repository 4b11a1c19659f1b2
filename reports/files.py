"""The files of a report: page, PDF, summary, LaTeX table, and a folder with every number and drawing.

It owns their names and that each is written whole or not at all.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from reports.campaign import Campaign
from reports.document import Document
from reports.html import Download, render_html
from reports.latex import render_latex
from reports.markdown import render_markdown
from reports.pdf import render_pdf
from reports.svg import file_svg
from reports.tables_csv import attempts_csv, records_jsonl, table_csv
from scaling_studies.atomic import write_atomically

FORMATS = {
    "html": "one page, complete in itself", "pdf": "the same, typeset for print", "md": "one page of Markdown",
    "tex": "the table of points for a paper", "data": "a folder with a CSV per table and an SVG per figure",
}  # fmt: skip
LISTING = "files.csv"  # of the data folder: what is in it, so that what an older report left there can be removed


def write_report(
    document: Document,
    campaign: Campaign,
    page: Path,
    formats: Sequence[str] = tuple(FORMATS),
    on_stage: Callable[[str], None] = lambda words: None,
) -> list[Path]:
    """Write the report in some formats, named as ``page`` with the suffix of each. Returns what was written.

    on_stage: told what is done next. Raises UserError when a file cannot be written.
    """
    drawings = {}
    if {"html", "pdf", "data"} & set(formats):
        for picture in document.pictures():
            on_stage(f"figure {picture.name}")
            drawings[picture.name] = file_svg(picture.figure, picture.name)
    written = []
    for name in formats:
        on_stage(FORMATS[name])
        if name == "data":
            written.append(_write_data(document, campaign, drawings, page.with_name(f"{page.stem}-data")))
            continue
        content: str | bytes
        match name:
            case "html":
                content = render_html(document, drawings, downloads(campaign))
            case "pdf":
                content = render_pdf(document, drawings)
            case "md":
                content = render_markdown(document, campaign)
            case _:
                content = render_latex(document, campaign)
        path = page.with_suffix(f".{name}")
        write_atomically(path, content)
        written.append(path)
    return written


def num_stages(document: Document, formats: Sequence[str]) -> int:
    """How often ``write_report`` calls ``on_stage``."""
    return len(formats) + (len(document.pictures()) if {"html", "pdf", "data"} & set(formats) else 0)


def downloads(campaign: Campaign) -> tuple[Download, ...]:
    """What the page carries beside its tables."""
    records = campaign.records
    return (
        Download(file_name="attempts.csv", mime="text/csv", content=attempts_csv(records).encode(),
                 words="a line for every attempt and prediction"),
        Download(file_name="records.jsonl.gz", mime="application/gzip",
                 content=gzip.compress(records_jsonl(records).encode(), compresslevel=6, mtime=0),
                 words=f"all {len(records):,} records with their raw step times, compressed"),
    )  # fmt: skip


def _data_files(document: Document, campaign: Campaign, drawings: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(file name, content) of everything in the data folder."""
    yield from ((f"{table.name}.csv", table_csv(table)) for table in document.tables())
    yield from ((f"{name}.svg", drawing) for name, drawing in drawings.items())
    yield "attempts.csv", attempts_csv(campaign.records)
    yield "records.jsonl", records_jsonl(campaign.records)


def _write_data(document: Document, campaign: Campaign, drawings: dict[str, str], folder: Path) -> Path:
    old = _listed(folder)
    names = []
    for name, content in _data_files(document, campaign, drawings):
        write_atomically(folder / name, content)
        names.append(name)
    for name in old - set(names):
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / LISTING, "file\n" + "".join(f"{name}\n" for name in names))
    return folder


def _listed(folder: Path) -> set[str]:
    """Files that an earlier report wrote into the folder, by its own listing; plain names only."""
    try:
        lines = list(csv.reader(io.StringIO((folder / LISTING).read_text(encoding="utf-8"))))[1:]
    except (OSError, UnicodeDecodeError):
        return set()
    return {line[0] for line in lines if line and Path(line[0]).name == line[0] and line[0].endswith((".csv", ".svg"))}
