"""The page: complete, in itself, safe against what users wrote, and sortable by numbers."""

import base64
import csv
import io
import re
from html.parser import HTMLParser

import pytest

from reports.document import Column, Section, Table, Value
from reports.html import MOST_DATA_ROWS, Download, render_html
from reports.svg import file_svg
from tests.reports.made_document import HOSTILE, made_document, picture

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags with attributes, rows of tables and text, and checks that elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def page_of(document) -> tuple[str, Page]:
    drawings = {entry.name: file_svg(entry.figure, entry.name) for entry in document.pictures()}
    file = Download(file_name="attempts.csv", mime="text/csv", content=b"a,b\n1,2\n", words="every attempt")
    text = render_html(document, drawings, [file])
    return text, Page(text)


@pytest.fixture(scope="module")
def made() -> tuple[str, Page]:
    data = Section(id="data", title="Data", short="Data", blocks=())
    return page_of(made_document(sections=(*made_document().sections, data)))


def attributes_of(page: Page, tag: str) -> list[dict[str, str | None]]:
    return [attributes for name, attributes in page.tags if name == tag]


def test_the_page_loads_nothing_from_outside(made):
    text, page = made
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed")
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            value = attributes.get(name) or ""
            allowed = ("#", "data:", "https://example.org/") if tag == "a" else ("#", "data:")
            assert value == "" or value.startswith(allowed), (tag, name, value)
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)


def test_identifiers_are_unique_and_links_arrive(made):
    _, page = made
    identifiers = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(identifiers) == len(set(identifiers))
    targets = [attributes.get("href") or attributes.get("xlink:href") or "" for _, attributes in page.tags]
    inner = [target[1:] for target in targets if target.startswith("#")]
    assert {"verdict", "weak", "exclusions", "data"} <= set(inner)
    assert set(inner) <= set(identifiers)


def test_what_users_wrote_stays_text(made):
    text, page = made
    assert "<script>alert" not in text
    assert len(attributes_of(page, "script")) == 1
    assert "".join(page.text).count(HOSTILE) == 3  # a paragraph, an item, a cell
    assert "<h1>Scaling of Ours &amp; &lt;Theirs&gt;</h1>" in text


def test_cells_carry_the_numbers_they_sort_by(made):
    _, page = made
    numbers = [attributes["data-n"] for attributes in attributes_of(page, "td") if attributes.get("data-n")]
    assert numbers[:3] == ["1", "0.102", "0.095"]  # of the first row: ranks, and two times in seconds


def test_tones_mark_columns_cells_and_sections(made):
    text, page = made
    heads = {"".join(row): row for row in page.rows}
    assert "studyranksstep timepredicted95 % interval" in heads
    assert '<th scope="col" class="num tone-predicted">predicted</th>' in text
    assert re.search(r'<td class="num tone-predicted" data-n="0.095">95\u00a0ms</td>', text)
    assert '<span class="tag tone-predicted">predicted, not measured</span>' in text


def test_figures_and_tables_are_numbered_in_order(made):
    text, _ = made
    labels = re.findall(r'<b class="label">([A-Z][a-z]+ \d+)\.</b>', text)
    assert labels == ["Table 1", "Figure 1", "Figure 2", "Figure 3", "Table 2", "Table 3"]


def test_every_table_and_figure_has_its_csv_on_the_page(made):
    _, page = made
    links = {a["download"]: a["href"] for a in attributes_of(page, "a") if a.get("download")}
    names = [table.name for table in made_document().tables()]
    assert set(links) == {f"{name}.csv" for name in names} | {"attempts.csv"}
    rows = list(csv.reader(io.StringIO(base64.b64decode(links["points.csv"].partition("base64,")[2]).decode())))
    assert rows[0] == ["study", "ranks", "step_s", "predicted_s", "95 % interval"]
    assert rows[1] == ["weak", "1", "0.102", "0.095", "no CI (n=2)"]
    assert rows[4] == ["strong", "128", "n/a", "0.003", HOSTILE]
    assert base64.b64decode(links["attempts.csv"].partition("base64,")[2]) == b"a,b\n1,2\n"


def test_long_tables_fold_and_a_figures_many_numbers_are_cut_on_the_page_only():
    section = Section(id="one", title="One", short="One", blocks=(picture("many", num_rows=MOST_DATA_ROWS + 20),))
    text, page = page_of(made_document(sections=(section,)))
    assert len(page.rows) == MOST_DATA_ROWS + 1
    assert "The first 200 of 220 rows; the CSV holds all." in text
    (link,) = [a["href"] for a in attributes_of(page, "a") if a.get("download")]
    assert base64.b64decode(link.partition("base64,")[2]).decode().count("\n") == MOST_DATA_ROWS + 21


def test_addresses_become_links_without_the_full_stop_behind_them():
    columns = (Column(name="source"),)
    table = Table(name="sources", columns=columns, rows=((Value(text="see https://example.org/a_b?c=1."),),))
    text, _ = page_of(made_document(sections=(Section(id="s", title="S", short="S", blocks=(table,)),)))
    assert 'see <a href="https://example.org/a_b?c=1">https://example.org/a_b?c=1</a>.' in text


def test_a_banner_is_above_all():
    text, _ = page_of(made_document(banner="Predicted, not measured: nothing ran."))
    assert text.index("Predicted, not measured: nothing ran.") < text.index("<h1>")
