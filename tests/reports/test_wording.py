"""Number formats: three digits, units, signs, nothing that reads as another number."""

import pytest

from reports import values, wording
from reports.points import arrange
from tests.record_sets import continuation, record, throughput


@pytest.mark.parametrize(
    ("value_s", "text"),
    [(0.0, "0 s"), (3e-12, "0 s"), (4.2e-5, "42 µs"), (0.1, "100 ms"), (1.0, "1.00 s"), (8.999, "9.00 s"),
     (12.34, "12.3 s"), (-0.0121, "−12.1 ms"), (-2e-12, "0 s"),
     (999.4, "999 s"), (4321.0, "4,321 s")],
)  # fmt: skip
def test_times(value_s, text):
    assert wording.seconds(value_s) == text


def test_percentages_keep_their_sign_and_nothing_has_none():
    assert wording.signed_percent(0.0004) == "0.0 %"
    assert wording.signed_percent(-0.0721) == "−7.2 %"
    assert wording.percent(-0.0001, 0) == "0 %"
    assert values.percent_range(-0.015, 0.012).text == "−1.5 to 1.2 %"


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.5e6, "2.5 MFLOP/s"), (5e10, "50 GFLOP/s"), (1.2e18, "1.2 EFLOP/s"), (1.5e15, "1.5 PFLOP/s")],
)
def test_rates(value, text):
    assert wording.flops_rate(value) == text


def test_memory_counts_and_unknown_values():
    assert wording.binary_bytes(300 * 2**20) == "300 MiB"
    assert wording.binary_bytes(24 * 2**30) == "24.0 GiB"
    assert (values.memory(0).text, values.memory(None).number) == ("n/a", None)
    assert (values.plain(1_713_456.0).text, values.plain(0.012345).text) == ("1,710,000", "0.0123")
    assert wording.count_of(1, "rank") == "1 rank"
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
    assert wording.listed([]) == ""


def test_places_and_definitions_follow_what_is_scaled():
    (batch,) = arrange(throughput())
    assert wording.place(batch.points[0]) == "1 structure per rank"
    assert "relative to those at 1 per rank" in wording.constant(batch)
    (line,) = arrange(continuation())
    assert wording.constant(line).endswith("efficiency = T(8) / T(N).")
    (strong,) = arrange([record(mode="strong", ranks=ranks, base_ranks=2) for ranks in (2, 4)])
    assert "efficiency = 2 T(2) / (N T(N))" in wording.constant(strong)


def test_layouts_are_told_in_words():
    layout = {"unit": 8, "replicas": 4, "shard_degree": 8, "graph_degree": 1, "expert_degree": 8}
    assert wording.layout_text(layout) == "4 replicas of units of 8 ranks (shard 8, graph 1, expert 8)"
    assert wording.layout_text({"unit": 1, "replicas": 1}) == "1 replica of one rank"
    assert wording.layout_text({}) == "n/a"


def test_numbers_are_tied_to_their_units():
    assert wording.tied("about 5 ms on 4 ranks") == "about 5\u00a0ms on 4\u00a0ranks"
