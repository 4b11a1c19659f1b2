"""Declarations: what is checked before anything runs, and files there and back."""

import math

import numpy as np
import pytest

from janus.errors import UserError
from scaling_studies.records import RECORD_FOLDER, read_folder, write_record
from scaling_studies.study import (
    CLOCKS,
    Declaration,
    ExecutorSettings,
    changed_settings,
    quick_declaration,
    read_declaration,
    study_records,
    write_declaration,
)
from tests.record_sets import record
from tests.study_cases import strong, throughput, weak


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (weak, {"structures_per_rank": None}, "does not set structures_per_rank"),
        (weak, {"structures_total": 8}, "is weak but sets structures_total"),
        (weak, {"structures_per_rank": (1, 2)}, "give one number"),
        (strong, {"structures_per_rank": 2}, "is strong but sets structures_per_rank"),
        (strong, {"structures_total": None}, "does not set structures_total"),
        (strong, {"structures_total": 1}, "would idle"),
        (throughput, {"ranks": (1, 2)}, "one number of ranks"),
        (throughput, {"structures_per_rank": 2}, "give a list"),
        (throughput, {"structures_per_rank": (2, 2)}, "once"),
        (throughput, {"base_ranks": 2}, "scales structures_per_rank"),
        (throughput, {"base_structures_per_rank": 3}, "choose one of"),
        (weak, {"ranks": ()}, "ranks"),
        (weak, {"ranks": (1, 1)}, "once"),
        (weak, {"ranks": (0, 1)}, "1 or more"),
        (weak, {"base_ranks": 4}, "choose one of"),
        (weak, {"repeats": 0}, "repeats is 0"),
        (weak, {"steps": 0}, "steps is 0"),
        (weak, {"warm_up_steps": -1}, "warm_up_steps -1"),
        (weak, {"structures_per_rank": 0}, "structures_per_rank is 0"),
        (weak, {"stop_ci_percent": 5.0}, "an interval needs 6 repeats"),
        (weak, {"stop_ci_percent": 5.0, "repeats": 8, "max_repeats": 7}, "max_repeats 7"),
        (weak, {"node_hours": 0.0}, "node_hours 0.0"),
        (weak, {"max_failures": 0}, "max_failures is 0"),
        (weak, {"clock": "fastest_rank"}, "'slowest_rank', 'mean_rank'"),
        (weak, {"unit": 2}, "a point of 1 in units of 2"),
        (weak, {"unit": 2, "ranks": (2, 4), "shard_degree": 3}, "does not divide the unit"),
        (weak, {"unit": 2, "ranks": (2, 4), "expert_degree": 2}, "has no experts"),
        (weak, {"unit": 2, "ranks": (2, 4), "layout": "planned"}, "degrees of its own"),
        (weak, {"name": "a b"}, "rename"),
        (weak, {"name": "-w"}, "'-' not first"),
        (weak, {"name": "w" * 101}, "100 at most"),
        (weak, {"ranks": 4}, r"give a list, \[4\]"),
        (weak, {"node_hours": math.inf}, "node_hours inf"),
        (weak, {"time_out_s": math.inf}, "time_out_s inf"),
        (weak, {"question": " "}, "question"),
        (weak, {"mode": "diagonal"}, "'diagonal'"),
        (weak, {"model": "matris-tniy"}, "matris-tiny"),
    ],
)
def test_a_wrong_declaration_is_refused_up_front(make, changes, words):
    with pytest.raises(UserError, match=words):
        make(**changes)


def test_base_point_is_the_smallest_unless_named():
    assert weak(ranks=(2, 4, 1)).base == 1
    assert weak(ranks=(2, 4), base_ranks=4).base == 4
    assert throughput(structures_per_rank=(4, 2)).base == 2
    assert throughput(base_structures_per_rank=4).base == 4


def test_what_a_point_holds_by_mode():
    studies = weak(), strong(), throughput(structures_per_rank=(4, 6, 10))
    assert [study.points for study in studies] == [(1, 2), (1, 2), (4, 6, 10)]
    assert [study.ranks_at(study.points[1]) for study in studies] == [2, 2, 2]
    assert [study.distinct_structures for study in studies] == [2, 4, 2]
    assert [study.copies(study.points[1]) for study in studies] == [2, 1, 6]


def test_layouts_fill_the_ranks_and_a_graph_group_counts_as_one_for_idling():
    study = strong(ranks=(4, 8), unit=4, graph_degree=2, shard_degree=4, structures_total=4)
    assert [study.layout_at(ranks).replicas for ranks in study.ranks] == [1, 2]
    assert study.layout_at(8).data_degree == 4


def test_a_planned_layout_leaves_idle_ranks_to_the_planner():
    assert strong(ranks=(4,), structures_total=1, layout="planned").points == (4,)


def test_lists_of_a_python_file_are_taken():
    assert weak(ranks=[1, 2]) == weak(ranks=(1, 2))
    assert throughput(structures_per_rank=[1, 2]).points == (1, 2)
    assert weak(ranks=range(1, 3)) == weak(ranks=2 ** np.arange(2)) == weak()
    assert all(type(ranks) is int for ranks in weak(ranks=2 ** np.arange(2)).ranks)


def test_every_clock_is_defined_in_words():
    assert all(text.count(".") >= 2 for text in CLOCKS.values())


def test_a_campaign_file_reads_back_equal(tmp_path):
    executor = ExecutorSettings(kind="slurm", ranks_per_node=8, queue="batch", setup=("module load mpi", 'echo "a"'))
    studies = (weak(stop_ci_percent=4.0, repeats=6, node_hours=3), strong(max_work=0, base_ranks=2), throughput())
    for declaration in (Declaration(studies=studies, executor=executor), Declaration(studies=(weak(),))):
        assert read_declaration(write_declaration(tmp_path, declaration)) == declaration


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 'x'", r"\[\[study\]\]"),
        ("[[study]]\nname='x'", "does not set question and mode and ranks"),
        ("[[study]]\nname='x'\nmodde='weak'", "did you mean 'mode'"),
        ("study = []", "no study"),
        ("[[study]\n", "not valid TOML"),
        ("study = [1]", r"\[\[study\]\] tables"),
        ("study = []\nexecutor = 3", r"an \[executor\] table"),
        ("[[study]]\nname='x'\nquestion='How?'\nmode='weak'\nranks=4", "ranks is 4: it must be a list"),
        ("study = []\n[executor]\nkind='cron'", "executor.kind is 'cron'"),
    ],
)
def test_a_wrong_campaign_file_is_named_with_the_rule(text, words, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_declaration(path)
    assert str(path) in str(caught.value)


RECIPE = """from scaling_studies.study import Declaration, Study
ranks = tuple(2**power for power in range(3))
studies = [Study(name=name, question="How?", mode="weak", ranks=ranks, structures_per_rank=2) for name in {names}]
{more}
"""


def test_a_campaign_may_be_a_python_file(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(names=["a", "b"], more=""))
    assert [study.ranks for study in read_declaration(path).studies] == [(1, 2, 4), (1, 2, 4)]
    path.write_text(RECIPE.format(names=["a"], more="declaration = Declaration(studies=tuple(studies[:1]))"))
    assert read_declaration(path).studies[0].name == "a"


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        (["a b"], "", "line 3: study name 'a b'"),
        (["a"], "studies[0].ranks[9]", "line 4: IndexError"),
        (["a"], "studies = (", "line 4: "),
        (["a"], "raise SystemExit(0)", "line 4: SystemExit"),
        (["a"], "studies = 'weak'", "defines no campaign"),
        (["a", "a"], "", "each must be used once"),
        (["a"], "import dataclasses; studies = [dataclasses.replace(studies[0], repeats=2.5)]", "repeats is 2.5"),
        (
            ["a"],
            "import numpy; ranks = numpy.array([1.0, 2.0]); studies = [Study(name='b', question='How?', "
            "mode='weak', ranks=ranks, structures_per_rank=1)]",
            "line 4: TypeError",
        ),
        (
            ["a"],
            "from scaling_studies.study import ExecutorSettings\n"
            "declaration = Declaration(studies=studies, executor=ExecutorSettings(kind='sge', ranks_per_node=1))",
            "executor.kind is 'sge'",
        ),
    ],
)
def test_a_mistake_in_a_python_file_is_one_sentence_with_its_line(names, more, words, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(names=names, more=more))
    with pytest.raises(UserError, match=words) as caught:
        read_declaration(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "pbs"}, "without ranks_per_node"),
        ({"max_in_flight": 2}, "disturb each"),
        ({"kind": "flux", "ranks_per_node": 2, "arrays": True}, "slurm alone"),
        ({"threads": 0}, "threads is 0"),
        ({"queue": "long"}, "executor.queue is for a scheduler"),
        ({"directives": ("--x",)}, "executor.directives is for a scheduler"),
        ({"poll_s": -1.0}, "executor.poll_s is -1.0"),
        ({"poll_s": math.nan}, "executor.poll_s is nan"),
        ({"poll_s": math.inf}, "executor.poll_s is inf"),
    ],
)
def test_wrong_executor_settings_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        ExecutorSettings(**changes)


def test_executor_defaults_follow_its_kind_and_nodes_follow_the_ranks():
    here, far = ExecutorSettings(), ExecutorSettings(kind="slurm", ranks_per_node=4)
    assert here.max_in_flight == 1
    assert far.poll_s > here.poll_s > 0
    assert [here.nodes(9), far.nodes(4), far.nodes(5)] == [1, 1, 2]


def test_studies_take_the_transport_of_the_executor_unless_they_name_one():
    executor = ExecutorSettings(transport="mpi")
    resolved = Declaration(studies=(weak(), strong(transport="gloo")), executor=executor).studies
    assert [study.transport for study in resolved] == ["mpi", "gloo"]


@pytest.mark.parametrize(("num_cores", "ranks"), [(1, (1, 2)), (2, (1, 2, 4)), (64, (1, 2, 4))])
def test_the_quick_campaign_stays_within_twice_the_cores(num_cores, ranks):
    for study in quick_declaration(num_cores).studies:
        assert study.ranks == ranks


def test_what_a_study_does_not_set_is_named(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[[study]]\nname = "weak"\nmode = "weak"\nstructures_per_rank = 2\n')
    with pytest.raises(UserError, match="study 'weak' does not set question and ranks"):
        read_declaration(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[study]]\nname = "a"\nrepeats = "6"\n', "study a: repeats is '6'"),
        ('[[study]]\nname = "a"\nrepeat = 6\n', "study a: unknown setting 'repeat': did you mean 'repeats'"),
        ("[exector]\nthreads = 1\n", "unknown table or setting 'exector': did you mean 'executor'"),
        ('[[studies]]\nname = "a"\n', "unknown table or setting 'studies': did you mean 'study'"),
        ('schema = "janus.machine/1"\n', "unknown table or setting 'schema': a campaign holds"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_study_or_table(tmp_path, text, words):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_declaration(path)


def test_records_of_a_study_are_read_as_it_declares_them_now(tmp_path):
    write_declaration(tmp_path, Declaration(studies=(weak(name="weak", repeats=3), throughput(name="more"))))
    entries = [record(repeats_planned=6), record(ranks=2, repeats_planned=2), record(ranks=8), record(study="gone")]
    shared = {"study": "more", "mode": "throughput", "scaled": "structures_per_rank", "ranks": 2, "base_scale": 1.0}
    entries += [record(**shared, scale=4.0, repeats_planned=2), record(**shared, scale=3.0)]
    for entry in entries:
        write_record(tmp_path / RECORD_FOLDER, entry)
    found = study_records(tmp_path)
    kept = {(entry.study, entry.x): entry.repeats_planned for entry in found.records}
    assert kept == {("weak", 1): 3, ("weak", 2): 3, ("more", 4.0): 2}
    assert {(entry.study, entry.x) for entry in found.undeclared} == {("weak", 8), ("gone", 1), ("more", 3.0)}
    assert "study weak at ranks = 8 is no longer declared and left out: 1 DONE" in found.undeclared_lines
    assert read_folder(tmp_path / RECORD_FOLDER).undeclared == ()  # the files are as they were


def test_records_without_a_declaration_are_read_as_they_are(tmp_path):
    write_record(tmp_path / RECORD_FOLDER, record(repeats_planned=6))
    assert study_records(tmp_path) == read_folder(tmp_path / RECORD_FOLDER)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (weak(), weak(ranks=(2, 4)), []),
        (weak(), weak(ranks=(2, 4), steps=9), ["w.steps was 8 and is 9"]),
        (throughput(), throughput(ranks=(4,)), ["t.ranks was [2] and is [4]"]),
        (throughput(), throughput(structures_per_rank=(2, 4)), ["t.structures_per_rank was [1, 2, 4] and is [2, 4]"]),
    ],
)
def test_points_may_come_and_go_and_settings_may_not(before, now, words):
    assert changed_settings(Declaration(studies=(before,)), Declaration(studies=(now,))) == words
