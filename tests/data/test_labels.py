"""Every label rule: the sentence names file, index and rule; --skip-bad leaves out exactly the bad ones."""

from __future__ import annotations

import numpy as np
import pytest

from janus.data.labels import (
    LabelChecker,
    LabelLimits,
    LabelReport,
    check_entries,
    sound_structures,
    structure_findings,
)
from janus.data.problems import ERRORS, WARNINGS, DataError
from janus.data.reading import LabelKeys, read_entries
from janus.data.structure import Structure
from janus.errors import UserError
from tests.data.sample_files import ATOMS, BAD_FRAMES, frame, good_frames


def checked(*paths, limits=None, keys=None):
    """Report over some files, as `janus data check` makes it."""
    report, checker = LabelReport(), LabelChecker(limits)
    for path in paths:
        for _ in check_entries(read_entries(path, keys), checker, report):
            pass
    return report


def written(folder, *frames, name="sample.xyz"):
    path = folder / name
    path.write_text("".join(frames))
    return path


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_bad_structure_is_refused_with_file_index_and_rule(tmp_path, name):
    bad, rule, words = BAD_FRAMES[name]
    good = good_frames(2)
    path = written(tmp_path, good[0], bad, good[1])
    with pytest.raises(DataError) as caught:
        list(sound_structures(read_entries(path), LabelChecker(), LabelReport()))
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "index 1 (0-based)" in sentence
    assert f"(rule {rule})" in sentence
    assert words in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_skip_bad_leaves_out_the_bad_one_only_and_lists_it(tmp_path, name):
    bad, rule, _ = BAD_FRAMES[name]
    good = good_frames(3)
    report = LabelReport()
    entries = read_entries(written(tmp_path, good[0], good[1], bad, good[2]))
    kept = list(sound_structures(entries, LabelChecker(), report, skip_bad=True))
    assert [structure.name for structure in kept] == ["good-0", "good-1", "good-2"]
    assert {(problem.index, problem.rule) for problem in report.errors} == {(2, rule)}
    assert (report.num_entries, report.num_bad) == (4, 1)
    account = report.to_mapping()
    assert account["num_skipped"] == 1
    assert list(account["indices_of_rule"][rule].values()) == [[2] * account["count_of_rule"][rule]]


def test_every_rule_on_structures_has_a_bad_frame():
    """Rules about whole files, ids and duplicates have tests of their own."""
    elsewhere = {"missing-file", "empty-file", "truncated", "no-labels", "missing-id", "duplicate-id",
                 "conflicting-labels"}  # fmt: skip
    assert {rule for _, rule, _ in BAD_FRAMES.values()} == set(ERRORS) - elsewhere
    assert not set(ERRORS) & set(WARNINGS)


VALID = {
    "isolated atom without a cell": frame(cell="", pbc="F F F", info="energy=-1.0", atoms=("H 0 0 0 0 0 0",)),
    "molecule without a cell": frame(cell="", pbc="F F F", info="energy=-1.0"),
    "molecule in a box": frame(pbc="F F F", info="energy=-1.0"),
    "slab": frame(pbc="T T F", info="energy=-1.0"),
    "slab without a third vector": frame(cell='Lattice="4.0 0 0 0 4.0 0 0 0 0"', pbc="T T F", info="energy=-1.0"),
    "wire": frame(cell='Lattice="4.0 0 0 0 0 0 0 0 0"', pbc="T F F", info="energy=-1.0"),
    "no stress": frame(info="energy=-1.0"),
    "left-handed cell": frame(cell='Lattice="0 4.0 0 4.0 0 0 0 0 4.0"', info="energy=-1.0"),
    "skewed cell": frame(cell='Lattice="4.0 0 0 8.1 4.0 0 0 12.3 4.0"', info="energy=-1.0"),
    "integer energy": frame(info="energy=0"),
    "heaviest element": frame(atoms=("Pu 0 0 0 0 0 0", ATOMS[1])),
}


@pytest.mark.parametrize("name", VALID)
def test_valid_structures_of_every_kind_pass(tmp_path, name):
    report = checked(written(tmp_path, VALID[name]))
    assert (report.num_entries, report.problems) == (1, [])


def test_stress_of_a_structure_that_is_not_fully_periodic_is_ignored_with_a_warning(tmp_path):
    path = written(tmp_path, frame(pbc="T T F"))
    report = LabelReport()
    (structure,) = sound_structures(read_entries(path), LabelChecker(), report)
    assert structure.stress is None
    assert [problem.rule for problem in report.warnings] == ["stress-ignored"]
    assert "boundary conditions are TTF" in report.warnings[0].sentence
    assert report.errors == []


def test_all_problems_of_one_structure_are_listed(tmp_path):
    bad = frame(info="REF_energy=1", atoms=("X 0 0 0 nan 0 0", "Cu 0 0 0.05 0 0 900"))
    rules = [problem.rule for problem in checked(written(tmp_path, bad)).problems]
    assert rules == ["unknown-element", "not-finite", "missing-label", "overlapping-atoms", "absurd-forces"]


def test_limits_move_and_turn_off_their_rules(tmp_path):
    path = written(tmp_path, frame(atoms=(ATOMS[0], "Au 0.1 0.0 0.0 0 0 500.0")))
    assert checked(path).count_of_rule == {"overlapping-atoms": 1, "absurd-forces": 1}
    loose = LabelLimits(max_force_ev_per_angstrom=500.0, min_distance_angstrom=0.1)
    assert checked(path, limits=loose).problems == []
    strict = LabelLimits(max_force_ev_per_angstrom=0.05, min_distance_angstrom=3.5)
    assert checked(written(tmp_path, frame()), limits=strict).count_of_rule == {
        "overlapping-atoms": 1, "absurd-forces": 1}  # fmt: skip
    off = LabelLimits(max_force_ev_per_angstrom=float("inf"), min_distance_angstrom=0.0)
    assert checked(path, limits=off).problems == []


def test_a_negative_or_nan_limit_is_a_user_error():
    with pytest.raises(UserError, match="max_force_ev_per_angstrom is -1"):
        LabelLimits(max_force_ev_per_angstrom=-1.0)
    with pytest.raises(UserError, match="min_distance_angstrom is nan"):
        LabelLimits(min_distance_angstrom=float("nan"))


def test_duplicate_ids_name_the_first_place_over_all_files(tmp_path):
    good = good_frames(3)
    first = written(tmp_path, good[0], good[1], name="first.xyz")
    again = good[2].replace("good-2", "good-1")
    report = checked(first, written(tmp_path, good[2], again, name="second.xyz"))
    (problem,) = report.errors
    assert (problem.rule, problem.index) == ("duplicate-id", 1)
    assert f"'good-1' was already that of index 1 of {first}" in problem.what


def test_only_the_id_key_counts_as_an_id(tmp_path):
    frames = [text.replace(f"id=good-{index}", f"material_id=same row_id={index}")
              for index, text in enumerate(good_frames(3))]  # fmt: skip
    path = written(tmp_path, *frames)
    assert checked(path).problems == []
    assert checked(path, keys=LabelKeys(identity="row_id")).problems == []
    report = checked(path, keys=LabelKeys(identity="material_id"))
    assert [(problem.rule, problem.index) for problem in report.problems] == [("duplicate-id", 1), ("duplicate-id", 2)]
    report = checked(path, keys=LabelKeys(identity="uuid"))
    assert report.count_of_rule == {"missing-id": 3}
    assert "no id named 'uuid'" in report.problems[0].what


def test_identical_structures_are_a_warning_and_contradicting_ones_an_error(tmp_path):
    same, close, apart = frame(), frame(info="energy=-3.501"), frame(info="energy=-3.4")
    report = checked(written(tmp_path, frame(), *good_frames(1), same, close, apart))
    found = [(problem.rule, problem.index) for problem in report.problems]
    assert found == [("identical-structure", 1), ("identical-structure", 2), ("identical-structure", 3),
                     ("conflicting-labels", 4)]  # fmt: skip
    assert "the same structure as index 0, energies differ by 0.05 eV/atom" in report.errors[0].what
    wide = checked(written(tmp_path, frame(), apart), limits=LabelLimits(max_conflict_ev_per_atom=0.06))
    assert wide.errors == []


def test_a_structure_left_out_does_not_make_its_sound_twin_a_duplicate(tmp_path):
    good = good_frames(1)[0]
    report = checked(written(tmp_path, good.replace("energy=-3.500", "energy=nan"), good))
    assert [(problem.rule, problem.index) for problem in report.problems] == [("not-finite", 0)]


def test_a_file_without_any_label_gets_one_problem_of_its_own(tmp_path):
    bare = frame(info="", properties="Properties=species:S:1:pos:R:3")
    report = checked(written(tmp_path, *good_frames(1), name="a.xyz"), written(tmp_path, bare, bare, name="b.xyz"))
    assert [(problem.rule, problem.index) for problem in report.errors] == [
        ("missing-label", 0), ("missing-label", 1), ("no-labels", None)]  # fmt: skip
    assert "none of its 2 structures has an energy or forces" in report.errors[-1].sentence


def test_structures_made_in_python_are_checked_for_shape():
    cell, flags = np.eye(3) * 4.0, np.array([True] * 3)
    good = {"numbers": np.array([29], dtype=np.int32), "positions": np.zeros((1, 3)), "cell": cell, "pbc": flags,
            "energy": 1.0, "forces": np.zeros((1, 3))}  # fmt: skip
    assert structure_findings(Structure(**good), LabelLimits()) == []
    for name, value in {"positions": np.zeros((2, 3)), "cell": np.zeros((2, 3)), "pbc": np.array([True]),
                        "forces": np.zeros((3, 1)), "energy": np.zeros(1)}.items():  # fmt: skip
        rules = {rule for rule, _ in structure_findings(Structure(**(good | {name: value})), LabelLimits())}
        assert rules == {"wrong-shape"}, name
