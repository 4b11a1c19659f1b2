"""From files to a store: real data, what is left out, and the cache of files used directly."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from janus.data.pack import open_or_pack, pack_files
from janus.data.problems import DataError
from janus.data.reading import LabelKeys, read_entries
from janus.data.store import StructureStore
from janus.errors import UserError
from tests.data.sample_files import BAD_FRAMES, frame, good_frames

CUTOFFS = {"cutoff_angstrom": 6.0, "line_cutoff_angstrom": 4.0}


def test_mptrj_packs_completely_with_its_published_counts(shared_data, tmp_path):
    path = shared_data / "structures" / "mptrj-random-1k.xyz"
    store, report = pack_files([path], tmp_path / "a.store", keys=LabelKeys(identity="mptrj_snapshot_id"), **CUTOFFS)
    assert (len(store), report.problems) == (1000, [])
    assert (store.num_atoms.min(), store.num_atoms.max()) == (2, 192)
    assert np.count_nonzero(store.atoms_of_element) == 85
    assert store.has_stress.all()
    assert store.names[0] == "mp-1080834-0-1"
    assert store.reference.rank == 85
    assert 0.3 < store.reference.rmse_ev_per_atom < 1.0
    assert store.recount(6.0, 4.5).num_angles.max() == 323_112
    for index in (0, 501, 999):
        entry = next(entry for entry in read_entries(path) if entry.index == index)
        assert (store[index].positions == entry.structure.positions).all()
        assert (store[index].forces == entry.structure.forces).all()


def test_several_files_without_stress_pack_into_one_store(shared_data, tmp_path):
    files = sorted((shared_data / "structures" / "mlearn").glob("*.xyz"))
    store, report = pack_files(files, tmp_path / "a.store", **CUTOFFS)
    assert (len(store), report.errors) == (241 + 194 + 214 + 228, [])
    assert not store.has_stress.any()
    assert store.has_forces.all()
    assert [source["name"] for source in store.meta["sources"]] == [path.name for path in files]


def test_the_timing_batch_packs(shared_data, tmp_path):
    store, _ = pack_files([shared_data / "structures" / "bench_8x64.xyz"], tmp_path / "a.store", **CUTOFFS)
    assert (store.num_edges.sum(), store.num_angles.sum()) == (27_510, 120_518)


def test_skip_bad_is_written_into_the_store(tmp_path):
    good = good_frames(4)
    bad = [text for text, _, _ in BAD_FRAMES.values()]
    path = tmp_path / "a.xyz"
    path.write_text("".join([good[0], *bad, *good[1:3]]) + good[3][:-30])
    store, report = pack_files([path], tmp_path / "a.store", skip_bad=True, **CUTOFFS)
    assert store.names == ["good-0", "good-1", "good-2"]
    assert report.num_bad == len(bad) + 1
    account = json.loads((tmp_path / "a.store" / "skipped.json").read_text())
    assert account["num_skipped"] == store.meta["num_skipped"] == len(bad) + 1
    assert account["skip_bad"] is True
    left_out = {problem["index"] for problem in account["problems"] if problem["severity"] == "error"}
    assert left_out == {*range(1, len(bad) + 1), len(bad) + 3}
    listed = {index for places in account["indices_of_rule"].values() for index in places[str(path)]}
    assert listed == left_out


def test_without_skip_bad_nothing_is_written(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(good_frames(1)[0] + frame(info="energy=nan"))
    with pytest.raises(DataError, match=r"index 1 \(0-based\): energy is nan \(rule not-finite\)"):
        pack_files([path], tmp_path / "a.store", **CUTOFFS)
    assert [child.name for child in tmp_path.iterdir()] == ["a.xyz"]


def test_when_every_structure_is_bad_the_rules_are_named(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(frame(info="energy=nan") * 2 + frame(atoms=("X 0 0 0 0 0 0",)))
    with pytest.raises(UserError, match=r"all 3 structures break a rule \(not-finite: 2, unknown-element: 1\)"):
        pack_files([path], tmp_path / "a.store", skip_bad=True, **CUTOFFS)
    assert [child.name for child in tmp_path.iterdir()] == ["a.xyz"]


def test_a_file_without_labels_is_refused_even_with_skip_bad(tmp_path):
    bare = frame(info="REF_energy=1", properties="Properties=species:S:1:pos:R:3")
    (tmp_path / "a.xyz").write_text(good_frames(1)[0])
    (tmp_path / "b.xyz").write_text(bare * 3)
    with pytest.raises(DataError, match=r"b\.xyz: none of its 3 structures has an energy or forces \(rule no-labels\)"):
        pack_files([tmp_path / "a.xyz", tmp_path / "b.xyz"], tmp_path / "c.store", skip_bad=True, **CUTOFFS)
    with pytest.raises(DataError, match="no energy and no forces, but the file has REF_energy"):
        pack_files([tmp_path / "b.xyz"], tmp_path / "c.store", **CUTOFFS)
    assert not (tmp_path / "c.store").exists()


def test_missing_and_empty_files_are_named_before_anything_is_read(tmp_path):
    (tmp_path / "a.xyz").write_text(good_frames(1)[0])
    (tmp_path / "empty.xyz").touch()
    for name in ("none.xyz", "empty.xyz"):
        with pytest.raises(DataError, match=name):
            pack_files([tmp_path / "a.xyz", tmp_path / name], tmp_path / "c.store", **CUTOFFS)
    with pytest.raises(UserError, match="no file to pack"):
        pack_files([], tmp_path / "c.store", **CUTOFFS)


def test_open_or_pack_opens_stores_and_recounts_them(tmp_path):
    (tmp_path / "a.xyz").write_text("".join(good_frames(3)))
    pack_files([tmp_path / "a.xyz"], tmp_path / "a.store", **CUTOFFS)
    same = open_or_pack(tmp_path / "a.store", 6.0, 4.0)
    other = open_or_pack(tmp_path / "a.store", 5.0, 3.0)
    assert (same.cutoff_angstrom, other.cutoff_angstrom) == (6.0, 5.0)
    assert other.num_edges.sum() < same.num_edges.sum()
    with pytest.raises(UserError, match="no store at"):
        open_or_pack(tmp_path / "b.store", 5.0, 3.0)
    with pytest.raises(DataError, match="no such file"):
        open_or_pack(tmp_path / "b.xyz", 5.0, 3.0)


def test_open_or_pack_keeps_a_cache_until_file_or_cutoffs_change(tmp_path):
    path, cache = tmp_path / "a.xyz", tmp_path / "a.xyz.cache.store"
    path.write_text("".join(good_frames(3)))
    assert len(open_or_pack(path, 6.0, 4.0)) == 3
    made = (cache / "meta.json").stat().st_ino
    os.utime(path)  # another time, the same content
    assert len(open_or_pack(path, 6.0, 4.0)) == 3
    assert (cache / "meta.json").stat().st_ino == made
    assert open_or_pack(path, 5.0, 4.0).cutoff_angstrom == 5.0
    path.write_text("".join(good_frames(4)))
    assert len(open_or_pack(path, 5.0, 4.0)) == 4
    (cache / "energy.npy").unlink()
    assert len(open_or_pack(path, 5.0, 4.0)) == 4
    assert StructureStore.open(cache).verify() == []
    assert sorted(child.name for child in tmp_path.iterdir()) == ["a.xyz", "a.xyz.cache.store"]
