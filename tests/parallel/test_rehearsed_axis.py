"""A rank without the others: what its axes give, and what the timeline keeps."""

from __future__ import annotations

import pytest
import torch

from janus.layout import Layout
from janus.parallel.ledger import Ledger, in_phase
from janus.parallel.rehearsed_axis import LARGEST_COPY, RehearsedAxis, Timeline
from janus.rehearsed_unit import RehearsedCommunicator, group_of

CPU = torch.device("cpu")


def axis_of(size: int = 3, index: int = 1) -> tuple[RehearsedAxis, Timeline, Ledger]:
    timeline, ledger = Timeline(CPU), Ledger()
    return RehearsedAxis("graph", range(size), index, ledger, timeline), timeline, ledger


def test_rows_of_others_are_copies_of_what_they_get() -> None:
    axis, _, _ = axis_of()
    output = torch.full((7,), torch.nan)
    axis.all_to_all(output, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), [3, 1, 3], [2, 1, 2]).wait()
    assert output.tolist() == [1, 2, 1, 3, 4, 5, 4]


def test_rows_in_16_bits_are_not_repeated() -> None:
    """They begin with exponents, whose bits may be those of a NaN."""
    axis, _, _ = axis_of(2, 0)
    header = torch.tensor([-5], dtype=torch.int16).view(torch.float16)
    output = torch.ones(3, dtype=torch.float16)
    axis.all_to_all(output, header, [0, 3], [0, 1]).wait()
    assert output.view(torch.int16).tolist() == [-5, 0, 0]


def test_nothing_sent_gives_zeros() -> None:
    axis, _, _ = axis_of(2, 0)
    output = torch.full((2, 4), torch.nan)
    axis.all_to_all(output, torch.empty(0, 4), [0, 2], [0, 0]).wait()
    assert output.eq(0).all()


def test_pieces_of_others_are_own_ones_of_small_values() -> None:
    axis, _, _ = axis_of(2, 1)
    output, piece = torch.empty(4), torch.tensor([1.0, 0.05])
    axis.all_gather(output, piece).wait()
    torch.testing.assert_close(output, torch.tensor([LARGEST_COPY, 0.05, 1.0, 0.05]))


def test_others_add_nothing_to_sums() -> None:
    axis, _, _ = axis_of(2, 1)
    output, whole = torch.empty(2), torch.arange(4.0)
    axis.reduce_scatter(output, whole).wait()
    axis.all_reduce(whole).wait()
    assert output.tolist() == [2, 3]
    assert whole.tolist() == [0, 1, 2, 3]


def test_what_is_delivered_comes_once_and_a_known_whole_always() -> None:
    axis, _, _ = axis_of(2, 0)
    output, rows = torch.empty(2), torch.tensor([5.0, 6.0])
    axis.deliver("all_to_all", torch.tensor([[7.0], [8.0]]))
    for expected in ([7, 8], [5, 6]):
        axis.all_to_all(output, rows, [1, 1], [1, 1]).wait()
        assert output.tolist() == expected
    piece, gathered = torch.tensor([1.0]), torch.empty(2)
    axis.know_whole(piece, torch.tensor([1.0, 9.0]))
    for _ in range(2):
        axis.all_gather(gathered, piece).wait()
        assert gathered.tolist() == [1, 9]


def test_the_timeline_has_starts_waits_and_phases_in_order() -> None:
    axis, timeline, ledger = axis_of(2, 0)
    rows, output = torch.ones(4, 2), torch.empty(3, 2)
    axis.all_to_all(output, rows, [1, 2], [1, 3]).wait()  # before begin: counted, not kept
    timeline.begin()
    before = timeline.enter("FE")
    with in_phase("FE"):
        pending = axis.all_to_all(output, rows, [1, 2], [1, 3])
        axis.all_reduce(rows, phase="sync").wait()
        pending.wait()
        pending.wait()
    timeline.enter(before)
    events = timeline.end()
    assert [(event["at"], event["call"], event["during"]) for event in events] == [
        ("mark", None, "outside"), ("start", 0, "FE"), ("start", 1, "FE"), ("wait", 1, "FE"), ("wait", 0, "FE"),
        ("mark", None, "FE"), ("mark", None, "outside"),
    ]  # fmt: skip
    assert all(event["compute_s"] >= 0 for event in events)
    first, second = timeline.calls
    assert (first.phase, first.sent_bytes, first.received_bytes) == ("FE", 3 * 8, 2 * 8)
    assert (second.phase, second.sent_bytes) == ("sync", 2 * 32 // 2)
    assert sum(row["calls"] for row in ledger.rows()) == 3


@pytest.mark.parametrize("placement", ["unit_first", "replica_first"])
def test_groups_are_those_of_the_layout(placement: str) -> None:
    layout = Layout(
        unit=8, replicas=3, shard_degree=4, graph_degree=2, expert_degree=8, placement=placement  # type: ignore[arg-type]
    )  # fmt: skip
    for axis in ("shard", "shard_copies", "expert", "expert_copies", "graph", "unit", "world"):
        groups = layout.groups(axis)
        assert all(group_of(layout, axis, rank) in groups for rank in range(24))
        assert all(rank in group_of(layout, axis, rank) for rank in range(24))


def test_a_rehearsed_communicator_agrees_with_nobody() -> None:
    communicator = RehearsedCommunicator(3, 8, CPU)
    assert communicator.together(lambda: 5) == 5
    with pytest.raises(RuntimeError, match="rank 3 of 8 without the others, and neither trains nor saves"):
        communicator.gather_objects({})
