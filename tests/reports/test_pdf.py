"""The PDF: typeset without complaint, the same twice, every word of the document in it, nothing taken for markup."""

import re
import shutil
import subprocess

import pytest

from reports.document import Section, Table
from reports.pdf import ZERO_WIDTH_SPACE, render_pdf
from reports.svg import file_svg
from tests.reports.made_document import HOSTILE, made_document, wide_table

needs_poppler = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("pdfinfo", "pdftotext", "pdftoppm")),
    reason="reading a PDF back needs the programs of poppler-utils, which are not installed",
)


def pdf_of(document) -> bytes:
    return render_pdf(document, {entry.name: file_svg(entry.figure, entry.name) for entry in document.pictures()})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("pdf") / "made.pdf"
    path.write_bytes(pdf_of(made_document()))
    return path


def words_of(path) -> str:
    text = subprocess.run(["pdftotext", "-raw", path, "-"], capture_output=True, text=True, check=True).stdout
    return re.sub(r"\s+", "", text.replace(ZERO_WIDTH_SPACE, ""))


def info_of(path) -> dict[str, str]:
    text = subprocess.run(["pdfinfo", "-l", "-1", path], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^(.*?):\s+(.*)$", text, flags=re.MULTILINE))


def test_the_same_document_gives_the_same_file(made):
    again = pdf_of(made_document())
    assert again.startswith(b"%PDF-")
    assert again == made.read_bytes()


@needs_poppler
def test_it_is_tagged_and_named_for_readers_who_cannot_see_it(made):
    info = info_of(made)
    assert info["Tagged"] == "yes"
    assert info["Title"] == "Scaling of Ours & <Theirs>"
    assert b"pdfuaid" in made.read_bytes()


def test_letters_that_no_font_has_and_control_characters_do_no_harm():
    assert pdf_of(made_document(title="\u4e2d \U0001f600 \u0007 \ue000", sections=())).startswith(b"%PDF-")


@needs_poppler
def test_everything_of_the_document_is_in_it(made):
    words = words_of(made)
    for text in ("Scaling of Ours & <Theirs>", "median error of the predicted step time", "Weak scaling",
                 "predicted, not measured", "Figure 3", "weak-ranks00002-3f0c2d4e5a6b-attempt149",
                 "efficiency − of the base point"):  # fmt: skip
        assert text.replace(" ", "") in words, text
    for piece in HOSTILE.split():
        assert piece in words


@needs_poppler
def test_pages_are_a4_and_numbered_and_a_long_table_goes_on_with_its_head(made):
    info = info_of(made)
    pages = int(info["Pages"])
    assert pages >= 5
    sizes = [value for name, value in info.items() if re.fullmatch(r"Page +[0-9]+ size", name)]
    assert len(sizes) == pages
    assert all(value.startswith("595.276 x 841.89") for value in sizes)
    text = subprocess.run(["pdftotext", "-layout", made, "-"], capture_output=True, text=True, check=True).stdout
    assert f"{pages} of {pages}" in text
    heads = [page for page in text.split("\f") if re.search(r"^\s*attempt\s+state\s+reason", page, re.MULTILINE)]
    assert len(heads) >= 3


@needs_poppler
def test_pages_render_and_none_is_blank(made, tmp_path):
    subprocess.run(["pdftoppm", "-r", "20", "-gray", made, tmp_path / "page"], check=True)
    pictures = sorted(tmp_path.glob("page-*.pgm"))
    assert len(pictures) == int(info_of(made)["Pages"])
    for picture in pictures:
        pixels = picture.read_bytes().split(b"255\n", 1)[1]
        assert 0.005 < sum(pixel < 200 for pixel in pixels) / len(pixels) < 0.6


@needs_poppler
def test_a_banner_heads_every_page(tmp_path):
    path = tmp_path / "banner.pdf"
    path.write_bytes(pdf_of(made_document(banner="Predicted, not measured: nothing ran.")))
    text = subprocess.run(["pdftotext", path, "-"], capture_output=True, text=True, check=True).stdout
    pages = text.rstrip("\f").split("\f")
    assert all("Predicted, not measured" in page for page in pages)


@needs_poppler
@pytest.mark.parametrize(("num_rows", "turned"), [(3, False), (40, True)], ids=["short: cut", "long: turned page"])
def test_a_table_too_wide_for_a_page_loses_nothing(num_rows, turned, tmp_path):
    wide = wide_table()
    table = Table(name="wide", columns=wide.columns, rows=wide.rows[:1] * num_rows, caption="Wide.")
    path = tmp_path / "wide.pdf"
    path.write_bytes(pdf_of(made_document(sections=(Section(id="s", title="S", short="S", blocks=(table,)),))))
    sizes = [value for name, value in info_of(path).items() if re.fullmatch(r"Page +[0-9]+ size", name)]
    assert any(value.startswith("841.89 x 595.276") for value in sizes) == turned
    words = words_of(path)
    for number in range(1, len(wide.columns)):
        assert (f"awhile,{number}" if number % 3 == 0 else f"{1234.5 * number:,.1f}ms") in words
