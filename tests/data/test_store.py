"""The store: what comes back, what damage is noticed, what a failed pack leaves behind, how much memory it takes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from janus.data.graph import build_graph
from janus.data.store import ARRAYS, CHUNK_STRUCTURES, StructureStore, write_store
from janus.data.structure import Structure
from janus.errors import UserError

CUTOFFS = {"cutoff_angstrom": 6.0, "line_cutoff_angstrom": 4.0}


def random_structure(index: int) -> Structure:
    """Crystals, slabs and molecules in turn, with all kinds of absent labels."""
    random = np.random.default_rng(index)
    count, periodic = int(random.integers(1, 9)), index % 3
    return Structure(
        numbers=random.choice([1, 8, 29, 94], size=count).astype(np.int32),
        positions=random.uniform(0.0, 7.0, (count, 3)),
        cell=np.zeros((3, 3)) if periodic == 2 else np.eye(3) * 7.0 + random.uniform(-0.3, 0.3, (3, 3)),
        pbc=np.array([periodic != 2, periodic != 2, periodic == 0]),
        energy=None if index % 7 == 6 else float(random.normal()),
        forces=None if index % 5 == 4 else random.normal(size=(count, 3)),
        stress=random.normal(size=(3, 3)) if periodic == 0 else None,
        name=f"größe-{index}",
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    structures = [random_structure(index) for index in range(40)]
    folder = tmp_path_factory.mktemp("packed")
    return structures, write_store(folder / "some.store", structures, **CUTOFFS)


def same(one: Structure, other: Structure) -> bool:
    def equal(a, b):
        return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))

    return all(equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_structures_come_back_bit_for_bit(packed):
    structures, store = packed
    assert len(store) == len(structures)
    assert all(same(a, b) for a, b in zip(structures, store, strict=True))
    assert same(store[-1], structures[-1])
    assert store.names == [structure.name for structure in structures]
    assert store[3].numbers.dtype == np.int32
    with pytest.raises(IndexError, match="structure 40 of 40"):
        store[40]


def test_counts_are_those_of_the_graphs(packed):
    structures, store = packed
    for index, structure in enumerate(structures):
        graph = build_graph(structure, 6.0, 4.0)
        found = (store.num_atoms[index], store.num_edges[index], store.num_bonds[index], store.num_angles[index])
        assert found == (structure.num_atoms, graph.num_edges, graph.num_bonds, graph.num_angles)
        centre_elements = structure.numbers[graph.centre]
        assert store.element_atoms[index].tolist() == np.bincount(structure.numbers, minlength=95).tolist()
        assert store.element_edges[index].tolist() == np.bincount(centre_elements, minlength=95).tolist()
    assert (store.work == store.num_edges + store.num_angles).all()
    assert {store.num_atoms.dtype, store.num_edges.dtype, store.num_bonds.dtype, store.num_angles.dtype} == {
        np.dtype("int64")}  # fmt: skip
    assert store.atoms_of_element.tolist() == store.element_atoms.sum(axis=0).tolist()
    assert store.edges_of_element.tolist() == store.element_edges.sum(axis=0).tolist()
    part = store.element_counts(5, 9)
    assert (part[0] == store.element_atoms[5:9]).all()
    assert (part[1] == store.element_edges[5:9]).all()
    assert store.has_energy.tolist() == [structure.energy is not None for structure in structures]
    assert store.has_forces.tolist() == [structure.forces is not None for structure in structures]
    assert store.has_stress.tolist() == [structure.stress is not None for structure in structures]


def test_arrays_are_mapped_not_loaded(packed):
    _, store = packed
    for name in ARRAYS:
        array = store.arrays[name]
        assert isinstance(array.base, np.memmap), name
        assert not array.flags.writeable, name
    structure = store[0]
    structure.positions[:] = 0.0  # a sample is a copy and may be changed
    assert store[0].positions.any()


def test_recount_fits_other_cutoffs_and_keeps_the_rest(packed):
    structures, store = packed
    assert store.recount(6.0, 4.0) is store
    other = store.recount(4.5, 3.0)
    assert (other.cutoff_angstrom, other.line_cutoff_angstrom) == (4.5, 3.0)
    graphs = [build_graph(structure, 4.5, 3.0) for structure in structures]
    assert other.num_edges.tolist() == [graph.num_edges for graph in graphs]
    assert other.num_angles.tolist() == [graph.num_angles for graph in graphs]
    assert other.edges_of_element.sum() == other.num_edges.sum() < store.num_edges.sum()
    assert other.fingerprint == store.fingerprint
    assert same(other[7], structures[7])
    assert store.num_edges.tolist() != other.num_edges.tolist()


def test_the_fingerprint_depends_on_content_only(packed, tmp_path):
    structures, store = packed
    again = write_store(tmp_path / "again.store", structures, cutoff_angstrom=5.0, line_cutoff_angstrom=3.0)
    assert again.fingerprint == store.fingerprint
    changed = [*structures[:-1], random_structure(1000)]
    assert write_store(tmp_path / "changed.store", changed, **CUTOFFS).fingerprint != store.fingerprint


def test_reference_energies_are_those_of_a_direct_fit(packed):
    structures, store = packed
    labelled = [structure for structure in structures if structure.energy is not None]
    assert store.reference.num_structures == len(labelled) < len(structures)
    fractions = np.array([np.bincount(s.numbers, minlength=95) / s.num_atoms for s in labelled])
    energy = np.array([s.energy / s.num_atoms for s in labelled])
    residual = energy - fractions @ store.reference_energies
    assert store.reference.rmse_ev_per_atom == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert store.reference_energies.shape == (95,)
    assert np.flatnonzero(store.reference_energies).tolist() == [1, 8, 29, 94]


def damaged(store: StructureStore, tmp_path: Path) -> Path:
    copy = tmp_path / "copy.store"
    shutil.copytree(store.path, copy)
    return copy


@pytest.mark.parametrize("name", ["positions", "num_edges", "name_bytes"])
def test_a_truncated_file_is_refused_by_name(packed, tmp_path, name):
    copy = damaged(packed[1], tmp_path)
    with (copy / f"{name}.npy").open("r+b") as stream:
        stream.truncate((copy / f"{name}.npy").stat().st_size - 1)
    with pytest.raises(UserError) as caught:
        StructureStore.open(copy)
    assert f"{copy} is damaged, {name}.npy has" in str(caught.value)
    assert "bytes instead of" in str(caught.value)


def test_a_missing_file_and_a_wrong_header_are_refused_by_name(packed, tmp_path):
    copy = damaged(packed[1], tmp_path)
    (copy / "forces.npy").unlink()
    with pytest.raises(UserError, match=r"forces\.npy is missing"):
        StructureStore.open(copy)
    shutil.copy(copy / "positions.npy", copy / "forces.npy")
    cell = bytearray((copy / "cell.npy").read_bytes())
    cell[:6] = b"\x00" * 6
    (copy / "cell.npy").write_bytes(cell)
    with pytest.raises(UserError, match=r"cell\.npy has no valid header"):
        StructureStore.open(copy)


def test_an_array_of_another_type_is_refused(packed, tmp_path):
    copy = damaged(packed[1], tmp_path)
    np.save(copy / "num_atoms.npy", np.load(copy / "num_atoms.npy").astype(np.float64))
    with pytest.raises(UserError, match=r"num_atoms\.npy is <f8\[40\] instead of <i8\[40\]"):
        StructureStore.open(copy)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "is not valid JSON"),
        (lambda text: text.replace('"num_skipped": 0', '"num_skipped": 1'), "does not match its checksum"),
        (lambda text: text.replace("janus.store/1", "janus.store/9"), "schema 'janus.store/9' instead of"),
        (lambda text: "[]", "schema None"),
    ],
)
def test_a_damaged_meta_file_is_refused(packed, tmp_path, spoil, words):
    copy = damaged(packed[1], tmp_path)
    text = (copy / "meta.json").read_text()
    assert spoil(text) != text
    (copy / "meta.json").write_text(spoil(text))
    with pytest.raises(UserError, match=r"copy\.store") as caught:
        StructureStore.open(copy)
    assert words in str(caught.value)


def test_what_is_no_store_is_said_to_be_none(tmp_path):
    with pytest.raises(UserError, match="no store at"):
        StructureStore.open(tmp_path / "none.store")
    with pytest.raises(UserError, match="is not a store"):
        StructureStore.open(tmp_path)


def test_a_changed_byte_is_found_by_verify(packed, tmp_path):
    copy = damaged(packed[1], tmp_path)
    assert StructureStore.open(copy).verify() == []
    content = bytearray((copy / "energy.npy").read_bytes())
    content[-3] ^= 1
    (copy / "energy.npy").write_bytes(content)
    (sentence,) = StructureStore.open(copy).verify()
    assert "energy.npy does not match its hash" in sentence
    assert str(copy) in sentence


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def failing_structures(after: int):
    for index in range(after):
        yield random_structure(index)
    raise KeyboardInterrupt


@pytest.mark.parametrize("replace", [False, True])
def test_a_failed_pack_leaves_what_was_there(tmp_path, replace):
    target = tmp_path / "a.store"
    write_store(target, [random_structure(1)], **CUTOFFS)
    before = contents(tmp_path)
    with pytest.raises((KeyboardInterrupt, UserError)):
        write_store(target, failing_structures(20), replace=replace, **CUTOFFS)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.store"]


def test_an_existing_store_is_replaced_only_when_asked_and_only_if_it_is_one(tmp_path):
    target = tmp_path / "a.store"
    write_store(target, [random_structure(1)], **CUTOFFS)
    with pytest.raises(UserError, match="exists: choose another name, or replace it with --force"):
        write_store(target, [random_structure(2)], **CUTOFFS)
    assert write_store(target, [random_structure(2), random_structure(3)], replace=True, **CUTOFFS).num_atoms.size == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.store"]
    mine = tmp_path / "mine.store"
    mine.mkdir()
    (mine / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not a store, so it is not replaced"):
        write_store(mine, [random_structure(2)], replace=True, **CUTOFFS)
    assert (mine / "thesis.tex").read_text() == "precious"


def test_a_store_reader_survives_its_replacement(tmp_path):
    """Ranks that have a store open keep reading the old content."""
    target = tmp_path / "a.store"
    old = write_store(target, [random_structure(1)], **CUTOFFS)
    write_store(target, [random_structure(2)], replace=True, **CUTOFFS)
    assert same(old[0], random_structure(1))
    assert same(StructureStore.open(target)[0], random_structure(2))


def test_a_link_to_a_store_is_followed_when_replaced(tmp_path):
    real = tmp_path / "real.store"
    write_store(real, [random_structure(1)], **CUTOFFS)
    (tmp_path / "link.store").symlink_to(real)
    write_store(tmp_path / "link.store", [random_structure(2)], replace=True, **CUTOFFS)
    assert (tmp_path / "link.store").is_symlink()
    assert same(StructureStore.open(real)[0], random_structure(2))


@pytest.mark.parametrize(
    ("name", "cutoffs", "words"),
    [
        ("a.data", CUTOFFS, "must end in .store"),
        ("a.store", {"cutoff_angstrom": 3.0, "line_cutoff_angstrom": 4.0}, "need 0 < line cutoff <= cutoff"),
        ("a.store", {"cutoff_angstrom": float("nan"), "line_cutoff_angstrom": 4.0}, "cutoff nan"),
        ("file/a.store", CUTOFFS, "cannot write"),
    ],
)
def test_impossible_requests_are_user_errors(tmp_path, name, cutoffs, words):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=words):
        write_store(tmp_path / name, [random_structure(1)], **cutoffs)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_empty_stream_makes_no_store(tmp_path):
    with pytest.raises(UserError, match="no structure is left to write"):
        write_store(tmp_path / "a.store", [], **CUTOFFS)
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_readable_by_others_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        write_store(tmp_path / "a.store", [random_structure(1)], **CUTOFFS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.store").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "a.store" / "meta.json").stat().st_mode) == 0o644


def peak_bytes_of_packing(folder: Path, count: int) -> int:
    atom = random_structure(2)
    tracemalloc.start()
    structures = (dataclasses.replace(atom, energy=float(index), name=f"{index:099d}") for index in range(count))
    write_store(folder / f"{count}.store", structures, **CUTOFFS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_of_packing_does_not_grow_with_the_number_of_structures(tmp_path):
    """More structures, the same peak: buffers and two chunks of the reference fit, no list of structures."""
    peak_bytes_of_packing(tmp_path, 10)  # imports and caches
    small, large = (peak_bytes_of_packing(tmp_path, factor * CHUNK_STRUCTURES) for factor in (2, 5))
    assert large < small + 300_000, (small, large)


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from janus.data.structure import Structure
from janus.data.store import write_store
from janus.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
atoms = np.arange(300.0).reshape(100, 3)
structures = (Structure(numbers=np.full(100, 29), positions=atoms + index, cell=np.zeros((3, 3)),
                        pbc=np.zeros(3, dtype=bool), energy=1.0, forces=atoms) for index in range(500))
try:
    write_store(sys.argv[1], structures, cutoff_angstrom=5.0, line_cutoff_angstrom=3.0, replace=True)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_is_one_sentence_and_harms_nothing(tmp_path):
    """A limit on the size of files stands in for the disk; the operating system refuses the write in the same way."""
    target = tmp_path / "a.store"
    write_store(target, [random_structure(1)], **CUTOFFS)
    before = contents(tmp_path)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(target)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "no room left on the disk while writing" in done.stdout
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.store"]


def test_a_killed_pack_leaves_the_old_store_in_place(tmp_path):
    target = tmp_path / "a.store"
    write_store(target, [random_structure(1)], **CUTOFFS)
    before = contents(target)
    code = LIMITED.replace("resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))", "import os").replace(
        "for index in range(500))", "for index in range(500) if index < 300 or os.kill(os.getpid(), 9))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert contents(target) == before
    assert same(StructureStore.open(target)[0], random_structure(1))


def test_opening_and_describing_a_store_does_not_import_torch(packed):
    code = (
        "import sys\n"
        "import janus.data.pack\n"
        "from janus.data.store import StructureStore\n"
        "from janus.data.statistics import describe_store\n"
        f"describe_store(StructureStore.open({str(packed[1].path)!r}), num_ranks=2, structures_per_rank=2)\n"
        "print('torch' in sys.modules, 'vesin' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_meta_is_plain_json_with_the_sizes_of_all_arrays(packed):
    _, store = packed
    meta = json.loads((store.path / "meta.json").read_text())
    assert set(meta["arrays"]) == set(ARRAYS)
    for name, entry in meta["arrays"].items():
        assert (store.path / f"{name}.npy").stat().st_size == entry["file_bytes"]
        assert list(np.load(store.path / f"{name}.npy").shape) == entry["shape"]
    assert meta["num_structures"] == 40
