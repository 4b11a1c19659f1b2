"""Declarations: what is checked before anything runs, and TOML there and back."""

import pytest

from janus.errors import UserError
from scaling_studies.study import CAMPAIGN_FILE, check_campaign, quick_studies, read_campaign, write_campaign
from tests.study_cases import strong, weak


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (weak, {"structures_per_rank": None}, "does not set structures_per_rank"),
        (weak, {"structures_total": 8}, "is weak but sets structures_total"),
        (strong, {"structures_per_rank": 2}, "is strong but sets structures_per_rank"),
        (strong, {"structures_total": None}, "does not set structures_total"),
        (strong, {"structures_total": 1}, "would idle"),
        (weak, {"ranks": ()}, "ranks"),
        (weak, {"ranks": (1, 1)}, "once"),
        (weak, {"ranks": (0, 1)}, "1 or more"),
        (weak, {"base_ranks": 4}, "choose one of"),
        (weak, {"repeats": 0}, "repeats is 0"),
        (weak, {"steps": 0}, "steps is 0"),
        (weak, {"warm_up_steps": -1}, "warm_up_steps -1"),
        (weak, {"structures_per_rank": 0}, "structures_per_rank is 0"),
        (weak, {"name": "a b"}, "rename"),
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


def test_weak_copies_per_rank_and_strong_once():
    assert weak().copies(4) == 4
    assert weak().distinct_structures == 2
    assert strong().copies(4) == 1
    assert strong().distinct_structures == 4


def test_a_campaign_file_reads_back_equal(tmp_path):
    studies = (weak(), strong(max_work=0, recompute=True, base_ranks=2))
    write_campaign(tmp_path, studies)
    assert read_campaign(tmp_path / CAMPAIGN_FILE) == studies


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 'x'", r"\[\[study\]\]"),
        ("[[study]]\nname='x'", "incomplete"),
        ("[[study]]\nname='x'\nmodde='weak'", "did you mean 'mode'"),
        ("[[study]\n", "not valid TOML"),
    ],
)
def test_a_wrong_campaign_file_is_named_with_the_rule(text, words, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_campaign(path)
    assert str(path) in str(caught.value)


def test_names_must_differ():
    with pytest.raises(UserError, match="once"):
        check_campaign((weak(), weak()))


@pytest.mark.parametrize(("num_cores", "ranks"), [(1, (1, 2)), (2, (1, 2, 4)), (64, (1, 2, 4))])
def test_quick_studies_stay_within_twice_the_cores(num_cores, ranks):
    for study in quick_studies(num_cores):
        assert study.ranks == ranks
