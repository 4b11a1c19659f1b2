"""Reading: extended XYZ frame by frame, ASE databases, other formats, and files that cannot be read."""

from __future__ import annotations

import gzip
import subprocess
import sys

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from janus.data.problems import DataError
from janus.data.reading import LabelKeys, read_entries
from tests.data.sample_files import frame, good_frames


def labelled_atoms(count: int) -> list[ase.Atoms]:
    made = []
    for index in range(count):
        atoms = ase.Atoms("CuAu", positions=[[0, 0, 0], [2, 2, 0.1 + index]], cell=[6.0, 6.0, 9.0], pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=-3.5 - index, forces=np.full((2, 3), 0.1 * index),
                                           stress=np.arange(6.0) / 100)  # fmt: skip
        made.append(atoms)
    return made


def assert_same_labels(structures, atoms_list):
    assert len(structures) == len(atoms_list)
    for structure, atoms in zip(structures, atoms_list, strict=True):
        assert structure.numbers.dtype == np.int32
        assert (structure.numbers == atoms.numbers).all()
        assert structure.positions == pytest.approx(atoms.positions, abs=1e-8)
        assert structure.cell == pytest.approx(atoms.cell.array)
        assert (structure.pbc == atoms.pbc).all()
        assert float(structure.energy) == pytest.approx(atoms.get_potential_energy())
        assert structure.forces == pytest.approx(atoms.get_forces())
        assert structure.stress == pytest.approx(atoms.get_stress(voigt=False))


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "a.traj", "a.db", "a.json", "a.aselmdb", "a.xyz.gz"])
def test_every_format_gives_the_same_structures(tmp_path, name):
    atoms_list, path = labelled_atoms(3), tmp_path / name
    if name.endswith((".db", ".json", ".aselmdb")):
        with ase.db.connect(str(path)) as database:
            for index, atoms in enumerate(atoms_list):
                database.write(atoms, tag=f"row-{index}")
    else:
        ase.io.write(path, atoms_list)
    entries = list(read_entries(path))
    assert [entry.index for entry in entries] == [0, 1, 2]
    assert_same_labels([entry.structure for entry in entries], atoms_list)
    assert [entry.structure.name for entry in entries] == [f"{name}#0", f"{name}#1", f"{name}#2"]
    assert all(entry.identity is None and entry.problems == () for entry in entries)


@pytest.mark.parametrize("name", ["a.db", "a.json", "a.aselmdb"])
def test_ids_of_databases_come_from_their_key_value_pairs(tmp_path, name):
    with ase.db.connect(str(tmp_path / name)) as database:
        for index, atoms in enumerate(labelled_atoms(2)):
            database.write(atoms, tag=f"row-{index}", data={"sid": f"s{index}"})
    for key, names in (("tag", ["row-0", "row-1"]), ("sid", ["s0", "s1"])):
        assert [entry.identity for entry in read_entries(tmp_path / name, LabelKeys(identity=key))] == names


def test_aselmdb_without_its_reader_names_the_extra(tmp_path):
    path = tmp_path / "a.aselmdb"
    with ase.db.connect(str(path)) as database:
        database.write(labelled_atoms(1)[0])
    code = (
        "import sys; sys.modules['ase_db_backends'] = None\n"
        "from janus.cli.main import main\n"
        f"sys.exit(main(['data', 'pack', {str(path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'janus-umlip[aselmdb]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert [child.name for child in tmp_path.iterdir() if "store" in child.name] == []


def test_own_frame_reader_agrees_with_ase_on_real_files(shared_data):
    for name in ("bench_8x64.xyz", "mlearn/Ge_train.xyz"):
        path = shared_data / "structures" / name
        for entry, atoms in zip(read_entries(path), ase.io.iread(path, index=":"), strict=True):
            assert (entry.structure.positions == atoms.positions).all()
            assert (entry.structure.forces == atoms.get_forces()).all()
            assert (entry.structure.cell == atoms.cell.array).all()
            assert entry.structure.energy == atoms.get_potential_energy()


def test_real_files_have_the_stress_they_should(shared_data):
    folder = shared_data / "structures"
    assert all(entry.structure.stress is not None for entry in read_entries(folder / "mptrj-random-1k.xyz"))
    assert all(entry.structure.stress is None for entry in read_entries(folder / "mlearn" / "Li_train.xyz"))


def test_blank_lines_vectors_and_a_missing_last_newline_are_read(tmp_path):
    first, second = good_frames(2)
    path = tmp_path / "a.xyz"
    path.write_text(f"{first}\n\n{second.rstrip()}")
    assert [entry.identity for entry in read_entries(path)] == ["good-0", "good-1"]
    path.write_text("1\nwith vectors\nCu 0 0 0\nVEC1 3 0 0\nVEC2 0 4 0\nVEC3 0 0 5\n" + first)
    entries = list(read_entries(path))
    assert entries[0].structure.cell.diagonal().tolist() == [3.0, 4.0, 5.0]
    assert entries[1].identity == "good-0"


def test_reading_streams(tmp_path):
    """The first structure comes before a later one that cannot be read is even looked at."""
    path = tmp_path / "a.xyz"
    path.write_text("".join(good_frames(1)) + "garbage\n" * 5)
    entries = read_entries(path)
    assert next(entries).identity == "good-0"
    (last,) = entries
    assert last.problems[0].rule == "unreadable"
    assert "expected a line with the number of atoms but found 'garbage'" in last.problems[0].what


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_file_cut_between_lines_is_truncated(tmp_path, cut):
    path = tmp_path / "a.xyz"
    text = "".join(good_frames(3))
    path.write_text("\n".join(text.splitlines()[:-cut]) + "\n")
    entries = list(read_entries(path))
    assert [entry.identity for entry in entries[:2]] == ["good-0", "good-1"]
    (problem,) = entries[2].problems
    assert (problem.rule, problem.index) == ("truncated", 2)
    assert f"the file ends after {max(0, 2 - cut)} of 2 atoms" in problem.what


def test_a_file_cut_within_a_line_is_noticed(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("".join(good_frames(2))[:-25])
    entries = list(read_entries(path))
    assert entries[1].problems[0].rule in ("unreadable", "truncated")


def test_damaged_binary_files_become_problems(tmp_path):
    database, archive = tmp_path / "a.db", tmp_path / "a.xyz.gz"
    database.write_bytes(b"no database at all, but long enough to be taken for one" * 30)
    (entry,) = read_entries(database)
    assert entry.problems[0].rule == "unreadable"
    random = np.random.default_rng(0)  # compresses badly, so that the start of the file can be read
    packed = gzip.compress(
        "".join(good_frames(1)[0].replace("good-0", random.bytes(99).hex()) for _ in range(900)).encode()
    )
    archive.write_bytes(packed[: len(packed) // 2])
    *fine, last = read_entries(archive)
    assert last.problems[0].rule == "unreadable"
    assert fine
    assert not any(entry.problems for entry in fine)
    archive.write_bytes(packed[:40])
    with pytest.raises(DataError, match="its start is damaged"):
        list(read_entries(archive))
    latin = tmp_path / "b.xyz"
    latin.write_bytes(frame(info="energy=1 author=Müller").encode("latin-1"))
    (entry,) = read_entries(latin)
    assert entry.problems[0].rule == "unreadable"


@pytest.mark.parametrize(
    ("make", "rule", "words"),
    [
        (lambda path: None, "missing-file", "no such file"),
        (lambda path: path.touch(), "empty-file", "the file is empty"),
        (lambda path: path.mkdir(), "unreadable", "it is a folder"),
        (lambda path: path.write_bytes(bytes(range(256)) * 4), "unreadable", "ASE does not know"),
    ],
)
def test_a_file_that_is_none_is_one_error(tmp_path, make, rule, words):
    path = tmp_path / "some.data.thing"
    make(path)
    with pytest.raises(DataError) as caught:
        list(read_entries(path))
    assert caught.value.problem.rule == rule
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_labels_under_other_names(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(frame(properties="Properties=species:S:1:pos:R:3:REF_forces:R:3",
                          info='REF_energy=-1.5 REF_stress="1 0 0 0 2 0 0 0 3"'))  # fmt: skip
    (entry,) = read_entries(path)
    assert entry.structure.energy is None
    assert entry.other_labels == ("REF_energy", "REF_forces", "REF_stress")
    keys = LabelKeys(energy="REF_energy", forces="REF_forces", stress="REF_stress")
    (entry,) = read_entries(path, keys)
    assert float(entry.structure.energy) == -1.5
    assert entry.structure.forces.shape == (2, 3)
    assert entry.structure.stress.diagonal().tolist() == [1.0, 2.0, 3.0]
