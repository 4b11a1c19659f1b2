"""Figures as SVG: once as a file (for the PDF and for other documents), and from that as a part of a page.

It owns the text of the SVG, not what is drawn. Text stays text, so that it can be searched and copied.
"""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.figure import Figure

PROLOGUE = '<?xml version="1.0" encoding="utf-8"?>\n'
FILE_FONT = "'DejaVu Sans', Verdana, sans-serif"  # what the text was measured with, then what is as wide


def file_svg(figure: Figure, name: str) -> str:
    """The figure as a complete SVG document, the same bytes for the same figure. name: seed of its identifiers."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "hatch.linewidth": 0.6, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font: ([0-9.]+)px 'DejaVu Sans'[^;\"]*", rf"font: \1px {FILE_FONT}", text)
    return PROLOGUE + text


def inline_svg(document: str, name: str) -> str:
    """The ``<svg>`` element of ``file_svg`` for use inside a page: identifiers unique to name, fonts of the page."""
    text = document[document.index("<svg") :]
    text = re.sub(r'\bid="', f'id="svg-{name}-', text)
    text = re.sub(r'href="#', f'href="#svg-{name}-', text)
    text = re.sub(r"url\(#", f"url(#svg-{name}-", text)
    return text.replace(FILE_FONT, "var(--sans)")
