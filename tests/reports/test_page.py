"""The page: complete, self-contained, honest about what is predicted."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from reports.page import render_page
from reports.training import TrainingRun
from scaling_studies.records import Record, RecordFolder
from tests.record_sets import campaign, continuation, prediction, record

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes, text by element and checks that elements close in order."""

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
        if "style" not in self.open:
            self.text.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def page_of(records: list[Record], refused=()) -> tuple[str, Page]:
    text = render_page(RecordFolder(records=tuple(records), refused=tuple(refused)), written_at="2026-11-22 10:00 UTC")
    return text, Page(text)


@pytest.fixture(scope="module")
def full() -> tuple[str, Page]:
    return page_of([*campaign(), *continuation()], [("torn.json", "not a complete JSON document")])


def test_the_page_needs_nothing_from_outside(full):
    text, page = full
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            value = attributes.get(name) or ""
            assert not re.match(r"\s*(https?:)?//", value), (tag, name, value)
            assert value == "" or value.startswith(("#", "data:")), (tag, name, value)
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert len(text.encode()) < 2 * 2**20


def test_identifiers_are_unique_and_links_arrive(full):
    _, page = full
    identifiers = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.tags:
        target = attributes.get("href") or attributes.get("xlink:href") or ""
        if target.startswith("#"):
            assert target[1:] in identifiers


def test_every_point_is_listed_with_measured_predicted_and_error(full):
    _, page = full
    rows = [row for row in page.rows if row and row[0] in ("weak", "strong")]
    assert [(row[0], row[1]) for row in rows] == [
        (study, ranks) for study in ("weak", "strong") for ranks in ("1", "2", "4 *")
    ]
    assert rows[0][2:5] == ["102 ms", "95 ms", "−6.9 %"]
    assert rows[5][2:5] == ["250 ms", "220 ms", "−12.0 %"]
    assert all("no CI (n=2)" in row[-1] for row in rows)


def test_the_first_words_say_what_was_run_and_how_good_it_was(full):
    text, _ = full
    head = re.sub(r"\s+", " ", text[text.index("<header>") : text.index("</header>")])
    assert "trained the interatomic potential matris-tiny on testhost with 1, 2 and 4 parallel processes" in head
    assert "12 training runs that count" in head
    assert "On the 4 points with a core for every rank, predicted step times were off by 7 % in the median" in head
    assert "too few for a confidence interval" in head
    assert "That is a prediction: nobody ran it here." in head


def test_predicted_studies_are_marked_and_published_values_named(full):
    text, page = full
    section = text[text.index('id="continuation-full-machine"') : text.index('id="left-out"')]
    assert "predicted, not measured" in section
    for words in ("24.41 %", "90.3 %", "1.2 EFLOP/s", "published", "arXiv 2604.15821", "NUMA domain FP32"):
        assert words in section
    headers = [row for row in page.rows if "predicted here" in row]
    assert headers == [["", "predicted here", "published"]]


def test_failures_refused_files_and_missing_jobs_are_listed(full):
    _, page = full
    assert ["weak, 2 ranks, attempt 3", "FAILED", "exit code 1: rank 1 ran out of <memory>"] in page.rows
    assert ["file torn.json", "refused", "not a complete JSON document"] in page.rows
    _, short = page_of([record(), prediction(0.1)])
    assert ["weak, 1 rank", "incomplete", "1 of 2 planned jobs counted"] in short.rows


def test_percentages_name_peak_dtype_and_source_or_say_not_available(full):
    _, page = full
    rows = [row for row in page.rows if len(row) == 7 and row[1] == "measured"]
    assert rows[0] == ["1", "measured", "9.8 GFLOP/s", "19.6 %", "50 GFLOP/s, matrix product, one core", "float32",
                       "measured by janus calibrate"]  # fmt: skip
    _, unknown = page_of([record(peak=None), prediction(0.1, peak=None)])
    rows = [row for row in unknown.rows if len(row) == 7 and row[1] == "measured"]
    assert rows[0][3:] == ["n/a", "n/a", "n/a", "peak not known"]


def test_words_that_need_statistics_are_not_used(full):
    _, page = full
    text = " ".join(page.text).lower()
    for word in ("faster", "slower", "significant"):
        assert word not in text


def test_the_data_on_the_page_is_the_data(full):
    _, page = full
    links = {attributes["download"]: attributes["href"] for tag, attributes in page.tags if attributes.get("download")}
    decoded = {name: base64.b64decode(link.partition("base64,")[2]).decode() for name, link in links.items()}
    assert len(json.loads(decoded["records.json"])) == len(campaign()) + len(continuation())
    rows = list(csv.DictReader(io.StringIO(decoded["points.csv"])))
    assert len(rows) == len(campaign()) + len(continuation())
    assert {row["source"] for row in rows} == {"measured", "predicted"}
    assert [row["reason"] for row in rows if row["state"] == "FAILED"] == ["exit code 1: rank 1 ran out of <memory>"]


def test_provenance_and_assumptions_are_shown(full):
    _, page = full
    assert ["git revision", "abc1234"] in page.rows
    assert ["lineshine", "assumed: full bisection"] in page.rows


def test_what_users_wrote_is_escaped():
    text, _ = page_of([record(question="<b>bold?</b>"), prediction(0.1, question="<b>bold?</b>")])
    assert "<b>bold" not in text


@pytest.mark.parametrize(
    "records",
    [
        [record(), prediction(0.1)],
        [record()],
        [prediction(0.1)],
        continuation(),
        [record(phase_s={}), prediction(0.1, phase_s={})],
        [record(state="FAILED", reason="no", step_s=(), phase_s={}), prediction(0.1)],
        [record(ranks=2), prediction(0.1, state="FAILED", reason="no rates", ranks=2)],
    ],
    ids=["one point", "only measured", "only predicted", "continuation", "no phases", "all failed", "no base"],
)
def test_thin_record_sets_still_make_a_page(records):
    _, page = page_of(records)
    assert any(tag == "h1" for tag, _ in page.tags)


def test_a_training_run_is_shown_with_its_loss_and_errors():
    steps = tuple(
        {"step": step, "loss": 1.0 / (step + 1), "energy_mae_ev_per_atom": 0.02, "forces_mae_ev_per_angstrom": None}
        for step in range(40)
    )
    run = {"world_size": 2, "parameters": 140271, "validation": {"forces": {"mae": 0.25}}, "wall_s": 12.0}
    folder = RecordFolder(records=(record(), prediction(0.1)), refused=())
    text = render_page(folder, written_at="now", training=TrainingRun(run=run, steps=steps))
    rows = Page(text).rows
    assert ["force error (mean absolute), structures kept apart", "250 meV/Å"] in rows
    assert ["energy error (mean absolute), last batch", "20 meV/atom"] in rows
    assert ["loss, first to last tenth", "0.5208 to 0.026"] in rows  # means of 1, 1/2, 1/3, 1/4 and 1/37 ... 1/40
    assert ["structures trained on", "n/a"] in rows
    assert ["step time, measured (median)", "n/a"] in rows
    assert "not a point of the studies" in text


def test_a_planned_run_shows_its_prediction_beside_its_step_time():
    steps = tuple({"step": step, "loss": 1.0, "step_s": 9.0 if step == 0 else 0.5} for step in range(10))
    run = {"world_size": 2, "planned": {"machine": "host", "step_s": 0.4}}
    folder = RecordFolder(records=(record(), prediction(0.1)), refused=())
    rows = Page(render_page(folder, written_at="now", training=TrainingRun(run=run, steps=steps))).rows
    assert ["step time, measured (median)", "500 ms"] in rows
    assert ["step time, predicted by the plan", "400 ms"] in rows
    assert any(row[0] == "error of the plan" and "20.0" in row[1] for row in rows)
