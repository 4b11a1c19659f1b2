"""The files of a report: what is written, what each holds, what an older report left behind."""

import csv
import io
import re
import shutil
import subprocess

import pytest

from reports.campaign import Campaign
from reports.document import Section, Text
from reports.files import FORMATS, num_stages, write_report
from reports.latex import SPECIAL, escaped, render_latex
from reports.markdown import render_markdown
from scaling_studies.records import RecordFolder, from_json
from tests.record_sets import campaign, continuation
from tests.reports.made_document import HOSTILE, made_document


def campaign_of(records) -> Campaign:
    return Campaign(folder=RecordFolder(records=tuple(records), refused=()))


@pytest.fixture(scope="module")
def measured() -> Campaign:
    return campaign_of([*campaign(), *continuation()])


def test_all_files_are_written_beside_the_page(measured, tmp_path):
    document, stages = made_document(), []
    written = write_report(document, measured, tmp_path / "out" / "first.html", on_stage=stages.append)
    names = ["first.html", "first.pdf", "first.md", "first.tex", "first-data"]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == names
    assert len(stages) == num_stages(document, tuple(FORMATS))
    data = {path.name for path in written[-1].iterdir()}
    tables, pictures = [table.name for table in document.tables()], [entry.name for entry in document.pictures()]
    assert data == {f"{name}.csv" for name in tables} | {f"{name}.svg" for name in pictures} | {
        "attempts.csv", "records.jsonl", "files.csv",
    }  # fmt: skip


def test_one_format_alone_writes_one_file(measured, tmp_path):
    write_report(made_document(), measured, tmp_path / "first.html", ["md"])
    assert [path.name for path in tmp_path.iterdir()] == ["first.md"]


def test_the_data_are_the_data(measured, tmp_path):
    write_report(made_document(), measured, tmp_path / "first.html", ["data"])
    folder = tmp_path / "first-data"
    lines = (folder / "records.jsonl").read_text().splitlines()
    assert [from_json(line) for line in lines] == list(measured.records)
    rows = list(csv.DictReader(io.StringIO((folder / "attempts.csv").read_text())))
    assert len(rows) == len(measured.records)
    assert {row["source"] for row in rows} == {"measured", "predicted"}
    assert [row["reason"] for row in rows if row["state"] == "FAILED"] == ["exit code 1: rank 1 ran out of <memory>"]
    first = next(row for row in rows if row["source"] == "measured")
    assert (float(first["step_s_median"]), first["ranks"]) == (0.1, "1")


def test_an_older_reports_files_go_and_a_persons_stay(measured, tmp_path):
    write_report(made_document(), measured, tmp_path / "first.html", ["data"])
    folder = tmp_path / "first-data"
    (folder / "notes.csv").write_text("mine")
    fewer = made_document(sections=made_document().sections[:1])
    write_report(fewer, measured, tmp_path / "first.html", ["data"])
    names = {path.name for path in folder.iterdir()}
    assert "weak-efficiency.svg" not in names
    assert {"points.csv", "notes.csv"} <= names


def test_a_listing_that_points_elsewhere_removes_nothing_there(measured, tmp_path):
    (tmp_path / "first-data").mkdir()
    (tmp_path / "first-data" / "files.csv").write_text("file\n../precious.csv\n/etc/x.csv\n")
    (tmp_path / "precious.csv").write_text("mine")
    write_report(made_document(), measured, tmp_path / "first.html", ["data"])
    assert (tmp_path / "precious.csv").read_text() == "mine"


def rows_of(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line[:1]]


def test_markdown_has_the_verdict_and_every_point(measured):
    text = render_markdown(made_document(), measured)
    assert "A step takes 12 % longer on 8 ranks than on one." in text
    assert "## Read this first\n\n- One number is withheld: 120 % of peak." in text
    rows = rows_of(text)
    assert ["weak", "2", "2 of 2", "112 ms", "no CI (n=2)", "105 ms", "−5.8 %", "91.5 %"] in [row[:8] for row in rows]
    assert "its interval" not in text  # no point of two jobs has one
    full = [row for row in rows if row[0] == "full-machine (weak)"]
    assert [row[1] for row in full] == ["8", "131,072"]  # base and full machine, nothing measured
    assert all(row[2] == row[3] == "–" for row in full)
    assert "Predicted columns and rows are predicted, not measured." in text
    assert "used together: matrix product, one core, float32 (measured by janus calibrate)" in text


def test_markdown_takes_nothing_for_markup(measured):
    section = Section(id="verdict", title="V", short="V", blocks=(Text(text=HOSTILE),))
    text = render_markdown(made_document(sections=(section,)), measured)
    assert "<script" not in text.replace("\\<", "")
    assert r"\<script\>alert(1)\</script\>" in text
    assert r"\_under\_ \*star\*" in text


def test_latex_rows_have_as_many_cells_as_columns_and_braces_close(measured):
    text = render_latex(made_document(title=HOSTILE), measured)
    bare = re.sub(r"\\[\\{}$&#_%]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]
    columns = re.search(r"@\{\}(\w+)@\{\}", text)[1]
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 6 + 8
    assert {len(re.sub(r"\\&", "", row).split("&")) for row in rows} == {len(columns)}
    assert text.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex to compile the table with")
def test_latex_compiles_on_one_page_without_a_line_too_long(measured, tmp_path):
    title = f"{HOSTILE} {' '.join(SPECIAL)} é ß Ω 漢 ﬁ"
    (tmp_path / "table.tex").write_text(render_latex(made_document(title=title), measured))
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "table.tex"]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull" not in run.stdout
    assert "(1 page" in run.stdout


def test_latex_marks_what_is_predicted(measured):
    text = render_latex(made_document(), measured)
    assert r"predicted$^{\dagger}$ & error & efficiency" in text
    assert r"\textit{full-machine (weak)}$^{\dagger}$ & \textit{8}" in text
    assert r"$^{\dagger}$ predicted, not measured." in text
    alone = render_latex(made_document(), campaign_of(continuation()))
    assert "Predicted, not measured.}" in alone


def test_latex_escapes_every_special_character():
    assert escaped(r"a_b & 5 % #1 $x$ {y} ~ ^ \z") == (
        r"a\_b \& 5 \% \#1 \$x\$ \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}z"
    )
    assert escaped("−6.9\u202f% × Å ü 中 \u200b|") == r"$-$6.9\,\% $\times$ \AA{} u ? \textbar{}"
