"""Reading measured tables: what their bytes mean, what is dropped, and errors that name file, line and column."""

from __future__ import annotations

import pytest

from janus.errors import UserError
from perfmodel.network.measured import read_measurements
from perfmodel.network.measured_names import UNKNOWN_NAME, implementation_of

PICO = "system,collective,nodes,torus,ranks_per_node,ranks,bytes,algorithm,gpu,median_us,notes\n"
CRAB = "system,benchmark,job_nodes,victim_nodes,msgsize_bytes,baseline_median_max_us\n"


def _table(folder, text, name="rows.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_all_to_all_of_the_pairs_table_counts_what_a_rank_sends_in_all_its_own_part_included(tmp_path):
    (one,) = read_measurements(_table(tmp_path, CRAB + "lumi,a2a_comm_only,8,4,1000,12.5\n"))
    assert (one.size_bytes, one.num_ranks, one.collective, one.stack) == (4000.0, 4, "all_to_all", "crab")
    assert one.measured_s == pytest.approx(12.5e-6, rel=1e-12)


def test_all_gather_of_the_pairs_table_is_given_by_its_result(tmp_path):
    (one,) = read_measurements(_table(tmp_path, CRAB + "lumi,agtr_comm_only,8,4,1000,12.5\n"))
    assert (one.size_bytes, one.collective, one.name) == (1000.0, "all_gather", "ring")


def test_columns_of_the_other_table_and_its_stacks(tmp_path):
    text = PICO + (
        "Fugaku,ALLREDUCE,8,2x2x2,1,8,32,default-ring,no,20,null\n"
        "leonardo,ALLGATHER,4,,4,16,4096,ring_over,yes,20,\n"
        "mare_nostrum,ALLREDUCE,4,,4,16,4096,allreduce_nccl_ring,yes,20,vsnccl\n"
    )
    fugaku, gpu, nccl = read_measurements(_table(tmp_path, text))
    assert (fugaku.system, fugaku.torus, fugaku.stack, fugaku.line) == ("fugaku", (2, 2, 2), "mpi", 2)
    assert (gpu.stack, gpu.num_ranks) == ("mpi-gpu", 16)
    assert nccl.stack == "nccl"


@pytest.mark.parametrize(
    ("collective", "size", "kept"), [("ALLGATHER", 32, 0), ("ALLGATHER", 256, 1), ("ALLREDUCE", 32, 1)]
)
def test_calls_with_less_than_an_item_per_rank_moved_nothing_and_are_left_out(tmp_path, collective, size, kept):
    text = PICO + f"a,{collective},64,,1,64,{size},x,no,1,\na,ALLREDUCE,64,,1,64,4,x,no,1,\n"
    assert len(read_measurements(_table(tmp_path, text))) == kept + 1


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a,ALLREDUCE,8,,1,8,many,x,no,1,", "line 2, column 'bytes' is 'many': a number is needed"),
        ("a,ALLREDUCE,8,,1,8,32,x,no,,", "line 2, column 'median_us' is empty"),
        ("a,ALLREDUCE,8,,1,8,32,x,no,-1,", "column 'median_us' is -1: it must be a finite number above 0"),
        ("a,ALLREDUCE,8,,1,8,32,x,no,nan,", "column 'median_us' is nan: it must be a finite number above 0"),
        ("a,ALLREDUCE,7.5,,1,8,32,x,no,1,", "column 'nodes' is 7.5: a whole number is needed"),
        ("a,ALLREDUCE,8,,2,8,32,x,no,1,", "column 'ranks' is 8: 8 nodes with 2 ranks each make 16"),
        ("a,ALLREDUCE,8,2x2,1,8,32,x,no,1,", "column 'torus' is '2x2': that is 4 nodes, the row has 8"),
        ("a,ALLREDUCE,8,cube,1,8,32,x,no,1,", "column 'torus' is 'cube': a shape like 4x4x4"),
        ("a,ALLREDUCE,8,,1,8,32,x,no,1,,more", "line 2 has more fields than the header names"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_column(tmp_path, row, sentence):
    path = _table(tmp_path, PICO + row + "\n")
    with pytest.raises(UserError) as caught:
        read_measurements(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("system,collective\na,b\n", "line 1 lacks the columns"),
        ("", "line 1 lacks the columns"),
        (PICO, "has no measured rows below its header"),
    ],
)
def test_a_table_of_neither_layout_says_what_is_missing(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read_measurements(_table(tmp_path, text))


def test_a_missing_or_binary_file_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_measurements(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot be read as a text file"):
        read_measurements(tmp_path / "binary.csv")


def _one(tmp_path, collective, name, size=4096, system="leonardo", notes=""):
    text = PICO + f"{system},{collective},64,,1,64,{size},{name},no,1,{notes}\n"
    (one,) = read_measurements(_table(tmp_path, text))
    return implementation_of(one)


def test_names_stand_for_schedules_and_unknown_ones_for_none(tmp_path):
    assert _one(tmp_path, "REDUCE_SCATTER", "recursive_halving_over").algorithm == "recursive_halving"
    assert _one(tmp_path, "ALLGATHER", "my_own") == UNKNOWN_NAME
    assert _one(tmp_path, "GATHER", "ring_ompi") == UNKNOWN_NAME
    assert "own choice" in _one(tmp_path, "ALLGATHER", "default-default", system="fugaku")
    assert "uTofu" in _one(tmp_path, "ALLGATHER", "BINE-VEC_DOUBLING_BLOCKS-UTOFU-0-1", system="fugaku")


def test_the_ring_with_fewer_items_than_ranks_is_recursive_doubling(tmp_path):
    assert _one(tmp_path, "ALLREDUCE", "ring_ompi", size=64).algorithm == "recursive_doubling"
    assert _one(tmp_path, "ALLREDUCE", "ring_ompi", size=256).algorithm == "ring"


def test_open_mpis_own_choice_is_the_algorithm_that_its_rules_name(tmp_path):
    large = _one(tmp_path, "ALLREDUCE", "default_ompi", size=2**29)
    assert large == _one(tmp_path, "ALLREDUCE", f"{large.algorithm}_ompi", size=2**29)
    assert _one(tmp_path, "ALLREDUCE", "default_ompi", size=4).algorithm != large.algorithm


def test_one_run_has_its_algorithms_renamed_in_its_notes(tmp_path):
    notes = "raben is modified allg scatter is old raben"
    assert _one(tmp_path, "ALLREDUCE", "allgather_reduce_ompi", notes=notes).algorithm == "rabenseifner"
    assert _one(tmp_path, "ALLREDUCE", "allgather_reduce_ompi") == UNKNOWN_NAME


def test_the_sample_tables_are_read_completely(shared_data):
    folder = shared_data / "collectives"
    if not folder.is_dir():
        pytest.skip(f"needs the measured tables, which are not at {folder}")
    pico = read_measurements(folder / "pico_collectives.csv")
    crab = read_measurements(folder / "crab_all_to_all_all_gather.csv")
    assert len(crab) == 232
    assert len(pico) == 4296  # 4,300 rows; 4 all-gathers of fewer items than ranks moved nothing
    assert {one.system for one in pico} == {"fugaku", "leonardo", "mare_nostrum"}
