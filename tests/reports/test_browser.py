"""The page in a real browser: opened from a file, with and without scripts, on a desktop and on a phone."""

import pytest

from reports.html import render_html
from reports.svg import file_svg
from tests.reports.browser import Browser, browser_path
from tests.reports.made_document import made_document

pytestmark = pytest.mark.skipif(browser_path() is None, reason="no Chromium or Chrome is installed to open pages with")
DESKTOP, PHONE = 1280, 390
POINTS = "#tab-points"
FIRST_COLUMN = f"[...document.querySelectorAll('{POINTS} tbody tr')].map(row => row.cells[COLUMN].textContent)"


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    document = made_document(banner="Predicted, not measured: nothing ran.")
    drawings = {entry.name: file_svg(entry.figure, entry.name) for entry in document.pictures()}
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(document, drawings), encoding="utf-8")
    return path


def column(browser, number: int) -> list[str]:
    return browser.value_of(FIRST_COLUMN.replace("COLUMN", str(number)))


def head(number: int) -> str:
    return f"{POINTS} th:nth-child({number}) button"


def sort_state(browser) -> list[str | None]:
    return browser.value_of(f"[...document.querySelectorAll('{POINTS} th')].map(e => e.getAttribute('aria-sort'))")


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_page_opens_without_trouble_and_is_no_wider_than_the_window(browser, page, tmp_path, width, scripts):
    import matplotlib.image

    browser.open(page, width=width, scripts=scripts)
    size = browser.call("Page.getLayoutMetrics")["cssContentSize"]
    assert size["width"] == width
    pixels = matplotlib.image.imread(browser.picture(tmp_path / "page.png"))
    assert pixels.shape[:2] == (size["height"], width)
    dark = pixels[..., :3].mean(axis=2) < 0.5
    assert 0.01 < dark.mean() < 0.3  # neither blank nor black
    bands = [rows.any() for rows in (dark[at : at + 400] for at in range(0, len(dark) - 400, 400))]
    assert all(bands)
    assert browser.trouble() == []


def test_figures_are_drawn_with_their_text(browser, page):
    browser.open(page, width=DESKTOP)
    texts = browser.value_of("[...document.querySelectorAll('#fig-weak-efficiency svg text')].map(e => e.textContent)")
    assert "ranks" in texts
    drawn = browser.value_of("document.querySelector('#fig-weak-efficiency svg').getBoundingClientRect().height")
    assert drawn > 200


def test_a_click_sorts_by_number_and_a_third_one_restores_the_order(browser, page):
    browser.open(page, width=DESKTOP)
    original = column(browser, 2)
    assert original == ["102\u00a0ms", "1.12\u00a0s", "20\u00a0ms", "n/a"]
    browser.click(head(3))
    assert column(browser, 2) == ["20\u00a0ms", "102\u00a0ms", "1.12\u00a0s", "n/a"]
    assert sort_state(browser)[2] == "ascending"
    browser.click(head(3))
    assert column(browser, 2) == ["1.12\u00a0s", "102\u00a0ms", "20\u00a0ms", "n/a"]  # what is not known stays last
    assert sort_state(browser)[2] == "descending"
    browser.click(head(3))
    assert column(browser, 2) == original
    assert sort_state(browser) == [None] * 5


def test_the_keyboard_sorts_too(browser, page):
    browser.open(page, width=DESKTOP)
    browser.value_of(f"document.querySelector('{head(2)}').focus()")
    browser.press("Enter")
    browser.press("Space")
    assert column(browser, 1) == ["128", "10", "2", "1"]
    assert sort_state(browser)[1] == "descending"


def test_without_scripts_nothing_offers_to_sort_and_folds_open(browser, page):
    browser.open(page, width=DESKTOP, scripts=False)
    document = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
    found = browser.call("DOM.querySelectorAll", nodeId=document, selector="th button")
    assert found["nodeIds"] == []
    before = browser.call("Page.getLayoutMetrics")["cssContentSize"]["height"]
    summary = browser.call("DOM.querySelector", nodeId=document, selector="#tab-attempts-left-out summary")["nodeId"]
    browser.call("DOM.scrollIntoViewIfNeeded", nodeId=summary)
    quad = browser.call("DOM.getBoxModel", nodeId=summary)["model"]["content"]
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=quad[0] + 40, y=(quad[1] + quad[5]) / 2, button="left",
                     clickCount=1)  # fmt: skip
    assert browser.call("Page.getLayoutMetrics")["cssContentSize"]["height"] > before + 200


def test_dark_text_on_a_white_page(browser, page):
    browser.open(page, width=DESKTOP)
    colours = browser.value_of("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert colours == ["rgb(34, 38, 46)", "rgb(255, 255, 255)"]
