"""Fit set and held-out rows apart, machines left out, the choice of the best: on small tables made by the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perfmodel.network.algorithms import make_schedule
from perfmodel.network.closed_form import price
from perfmodel.network.cluster import Cluster
from perfmodel.network.fabric import build_fabric
from perfmodel.network.fit import generic_transport
from perfmodel.network.fitted import FITTED
from perfmodel.network.measured import Measurement, read_measurements
from perfmodel.network.measured_cases import make_cases
from perfmodel.network.measured_price import price_with_free_ports
from perfmodel.network.measured_schedules import knomial_at_once
from perfmodel.network.routes import Transport
from perfmodel.network.validation import (
    Library,
    Verdict,
    bounds,
    choices,
    errors,
    fit_limits,
    fit_stacks,
    is_fitted,
    judge,
    left_out_library,
    library_of,
    stack_of,
)


def _row(system="leonardo", nodes=4, name="ring_ompi", size=2.0**20, measured_s=1e-3, **changes):
    values = {
        "file": "f", "line": 2, "system": system, "stack": "mpi", "collective": "all_gather", "name": name,
        "num_nodes": nodes, "ranks_per_node": 1, "size_bytes": size, "measured_s": measured_s,
    }  # fmt: skip
    return Measurement(**(values | changes))


def _cases(*rows):
    cases, left_out = make_cases(rows)
    assert not left_out
    return cases


def test_small_scales_are_fitted_and_larger_ones_judged():
    cases = _cases(*[_row(nodes=nodes, system="nowhere") for nodes in (4, 8, 16, 64)])
    (limit,) = fit_limits(cases).values()
    assert limit == 16
    assert [is_fitted(case, limit) for case in cases] == [True, True, True, False]
    assert fit_limits(_cases(_row(nodes=32), _row(nodes=60))) == {("leonardo", "mpi"): 32}


def test_several_ranks_per_node_on_host_memory_are_held_out():
    (case,) = _cases(_row(ranks_per_node=2))
    assert not is_fitted(case, 1000)


def test_no_held_out_row_changes_the_constants_that_judge_it():
    rows = [_row(nodes=nodes, system="nowhere", size=2.0**k, measured_s=1e-6 * nodes * (1 + 2.0 ** (k - 16)))
            for nodes in (4, 32) for k in (10, 14, 18, 22)]  # fmt: skip
    changed = [replace(one, measured_s=10 * one.measured_s) if one.num_nodes == 32 else one for one in rows]
    (first,), (second,) = fit_stacks(_cases(*rows)).values(), fit_stacks(_cases(*changed)).values()
    assert first.small_scales == second.small_scales
    assert first.all_scales != second.all_scales
    assert first.jobs == {"all_gather": (4,)}


def test_a_machine_left_out_is_judged_by_others_only():
    stack = ("leonardo", "mpi")
    known = {name: entry.all_scales for name, entry in FITTED.items()}
    expected = left_out_library(stack, {name: t for name, t in known.items() if name[0] != "leonardo"})
    assert left_out_library(stack, known) == expected
    assert expected.origin == "others"
    assert left_out_library(stack, {}) == Library(transport=generic_transport(), origin="generic")


@pytest.mark.parametrize(
    ("row", "origin", "fitted"),
    [
        (_row(nodes=4), "scales", True),
        (_row(nodes=200), "scales", False),
        (_row(nodes=1024), "stack", False),
        (_row(system="lumi", nodes=16), "machine", False),
        (_row(system="nowhere", nodes=16), "others", False),
    ],
)
def test_which_constants_judge_a_row(row, origin, fitted):
    (case,) = _cases(row)
    library, was_fitted = library_of(case, FITTED)
    assert (library.origin, was_fitted) == (origin, fitted)


def test_scales_that_the_program_knows_are_judged_by_their_small_scales():
    (case,) = _cases(_row(nodes=200))
    assert library_of(case, FITTED)[0].transport == FITTED[stack_of(case)].small_scales


def _verdict(algorithm, measured_s, predicted_s, size=2.0**20):
    one = _row(measured_s=measured_s, size=size)
    return Verdict(measurement=one, algorithm=algorithm, predicted_s=predicted_s, fitted=False, origin="scales")


def test_errors_are_medians_and_the_bias_keeps_its_sign():
    found = errors([_verdict("a", 1.0, 0.5), _verdict("a", 1.0, 0.8), _verdict("a", 1.0, 1.1)])
    assert (found.num_rows, found.median_error, found.bias) == (3, pytest.approx(0.2), pytest.approx(-0.2))
    assert errors([]) is None


def test_the_best_of_the_model_counts_if_it_is_within_five_percent_of_the_measured_best():
    near = [_verdict("a", 1.04, 1.0), _verdict("b", 1.0, 2.0)]
    far = [_verdict("a", 1.5, 1.0, size=64.0), _verdict("b", 1.0, 2.0, size=64.0)]
    alone = [_verdict("a", 1.0, 1.0, size=32.0)]
    found = choices([*near, *far, *alone])
    assert (found.num_calls, found.num_close) == (2, 1)
    assert found.median_regret == pytest.approx((1.04 + 1.5) / 2)


def test_causes_of_a_time_add_up():
    (case,) = _cases(_row(collective="all_reduce", name="rabenseifner_ompi", size=2.0**27))
    shares = bounds(case, FITTED["leonardo", "mpi"].small_scales, 2.0**27)
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-9)
    assert shares["reductions"] > shares["messages"]


@pytest.mark.parametrize(("ranks", "radix", "transfers"), [(32, 2, 15), (256, 2, 36), (32, 4, 16), (256, 4, 30)])
def test_trees_that_post_all_children_at_once_take_the_measured_number_of_transfers(ranks, radix, transfers):
    """Measured: 512 MiB among 32 nodes of MareNostrum 5, 256 of Leonardo, over the time of one transfer."""
    schedule = knomial_at_once(ranks, radix=radix)
    held, total = {0}, 0
    for one in schedule.rounds():
        assert set(one.source.tolist()) <= held
        assert held.isdisjoint(one.target.tolist())
        held |= set(one.target.tolist())
        total += max(one.source.tolist().count(rank) for rank in set(one.source.tolist()))
    assert held == set(range(ranks))
    assert total == transfers


def test_constants_of_the_program_are_those_that_the_sample_tables_give(shared_data):
    folder = shared_data / "collectives"
    if not folder.is_dir():
        pytest.skip(f"needs the measured tables, which are not at {folder}")
    rows = [one for path in sorted(folder.glob("*.csv")) for one in read_measurements(path) if one.system == "lumi"]
    cases, _ = make_cases(rows)
    (found,) = fit_stacks(cases).values()
    shipped = FITTED["lumi", "crab"]
    assert (found.limit, found.largest, found.jobs) == (shipped.limit, shipped.largest, shipped.jobs)
    for name, value in vars(shipped.small_scales).items():
        assert getattr(found.small_scales, name) == pytest.approx(value, rel=0.02), name


def test_ports_that_several_send_to_do_not_count_as_shared_but_links_inside_the_fabric_do():
    fabric = build_fabric("fat_tree", {"children": (4, 2), "taper": 4.0, "link_bytes_per_s": 1.0}, num_nodes=8,
                          nics_per_node=1)  # fmt: skip
    cluster = Cluster(num_nodes=8, ranks_per_node=1, fabric=fabric, nics_per_node=1, node_bytes_per_s=1.0,
                      node_latency_s=0.0)  # fmt: skip
    schedule = make_schedule("all_to_all", "linear", 8)
    plain, free = price(schedule, cluster), price_with_free_ports(schedule, cluster)
    # each leaf sends 4 ranks' 4/8 of m over an uplink of 4/4: 2 m, shared by four senders
    assert free.shared_load_s_per_byte.tolist() == pytest.approx([2.0])
    one_leaf = price_with_free_ports(make_schedule("all_to_all", "linear", 4), cluster)
    assert one_leaf.shared_load_s_per_byte.tolist() == [0.0]
    assert price(make_schedule("all_to_all", "linear", 4), cluster).shared_load_s_per_byte.tolist() == [0.75]
    sizes = [1.0, 1e6]
    assert free.time_s(sizes, Transport()).tolist() == pytest.approx(plain.time_s(sizes, Transport()).tolist())


def test_verdicts_keep_the_case_order_and_the_constants_origin():
    cases = _cases(_row(size=1024.0), _row(size=2.0**22))
    (case,) = cases
    found = judge(case, Library(transport=generic_transport(), origin="generic"), fitted=False)
    assert [one.measurement.size_bytes for one in found] == [1024.0, 2.0**22]
    assert found[0].predicted_s < found[1].predicted_s
    assert {one.origin for one in found} == {"generic"}
