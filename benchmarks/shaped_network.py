"""The trainer's collectives across a real network of limited rate, measured beside predicted.

Makes hosts of one machine's network namespaces, two racks of two, joined by a switch that gives every host 80 Mbit/s
and every rack 40 Mbit/s up (4:1), and every cable 250 microseconds. One rank per host runs all-reduce, all-gather,
reduce-scatter and all-to-all over gloo and over MPI (two sets of forced algorithms): among all ranks, in both racks at
once, and in two groups across the racks at once, which share the uplinks.

measured ms: median over repetitions, and their smallest and largest, from an instant at which all ranks start until the
last one is done. predicted ms: discrete events and closed form of perfmodel, with the shape's rates and delays and the
library's constants from messages between two ranks. error: predicted (events) / measured - 1. size: the buffer of one
rank (all-reduce, input of a reduce-scatter), the gathered result, or all that one rank sends. Judged from 1 MiB on.

Needs root on Linux, iproute2, util-linux and /dev/net/tun. No process and no namespace outlives it, however it ends.

examples:
  sudo python benchmarks/shaped_network.py --quick
  sudo python benchmarks/shaped_network.py --json > benchmarks/results/shaped_network.json
  sudo python benchmarks/shaped_network.py --library gloo --host-mbit 50 --rack-mbit 50
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from shaped.shape import MEGABIT_BYTES, Shape

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
MESSAGE_SIZES = (1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
SIZES = {64 << 10: 11, 256 << 10: 9, 1 << 20: 7, 4 << 20: 5, 16 << 20: 3}  # bytes -> repetitions
QUICK_SIZES = {64 << 10: 5, 1 << 20: 5}
LARGEST_BESIDE_WORLD = 4 << 20
JUDGED_BYTES = 1 << 20
AIM = 0.10
LARGEST_MBIT = 200.0
TIMEOUT_S = 1800.0
# Setting -> library, its variables. IALLTOALLV sched_blocked posts all messages at once (up to 32).
MPI_SETTINGS: dict[str, dict[str, str]] = {
    "mpi halving": {
        "IALLREDUCE": "sched_reduce_scatter_allgather", "IALLGATHER": "sched_recursive_doubling",
        "IREDUCE_SCATTER_BLOCK": "sched_recursive_halving", "IALLTOALLV": "sched_blocked",
    },
    "mpi ring": {
        "IALLREDUCE": "tsp_ring", "IALLGATHER": "sched_ring", "IREDUCE_SCATTER_BLOCK": "sched_pairwise",
        "IALLTOALLV": "sched_blocked",
    },
}  # fmt: skip


def make_axes(shape: Shape) -> dict[str, list[list[int]]]:
    """Groups of ranks by name: everyone, each rack, and one rank of every rack."""
    hosts = list(range(shape.num_hosts))
    racks = [hosts[first : first + shape.hosts_per_rack] for first in range(0, shape.num_hosts, shape.hosts_per_rack)]
    return {
        "world": [hosts],
        "in racks": racks,
        "across racks": [list(group) for group in zip(*racks, strict=True)],
    }


def make_job(shape: Shape, sizes: Mapping[int, int], transport: str) -> dict[str, Any]:
    """What the ranks are to measure (``shaped/ranks.py``)."""
    cases = [
        {
            "axis": axis, "groups": groups, "collective": collective,
            "sizes": [[size, n] for size, n in sizes.items() if axis == "world" or size <= LARGEST_BESIDE_WORLD],
        }
        for axis, groups in make_axes(shape).items() for collective in COLLECTIVES
    ]  # fmt: skip
    pairs = [[0, 1], [0, shape.hosts_per_rack]]
    return {"transport": transport, "pairs": pairs, "message_sizes": list(MESSAGE_SIZES), "cases": cases}


def judge(shape: Shape, setting: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of one setting, measured beside predicted, and the constants it was predicted with."""
    from shaped.prediction import ALGORITHMS, calibrate, make_cluster, predict

    messages = [line for line in lines if line["kind"] == "message"]
    reduction = next(line["bytes_per_s"] for line in lines if line["kind"] == "reduction")
    cluster, transport = make_cluster(shape), calibrate(shape, messages, reduction)
    rows = []
    for line in lines:
        if line["kind"] == "collective":
            row = {key: line[key] for key in ("axis", "collective", "size_bytes")}
            scheduled = ALGORITHMS[setting][line["collective"]]
            row["algorithm"] = scheduled[1] + (f" ({scheduled[0]})" if scheduled[0] != line["collective"] else "")
            row |= predict(cluster, transport, scheduled, line["groups"], line["size_bytes"])
            row |= {"median_s": median(line["seconds"]), "seconds": line["seconds"], "late_s": max(line["late_s"])}
            row["error"] = row["events_s"] / row["median_s"] - 1
            row["closed_form_error"] = row["closed_form_s"] / row["median_s"] - 1
            rows.append(row)
    used = ("overhead_s", "rendezvous_s", "eager_bytes", "link_fraction", "reduction_bytes_per_s")
    constants = {name: getattr(transport, name) for name in used}
    measured = [{**line, "seconds": median(line["seconds"])} for line in messages]
    return {"setting": setting, "constants": constants, "messages": measured, "rows": rows}


def measure(shape: Shape, libraries: Sequence[str], sizes: Mapping[int, int]) -> tuple[list[dict[str, Any]], dict]:
    """Every setting of the libraries on one network, and what the switch counted."""
    from shaped.launch import run_gloo, run_mpi
    from shaped.network import ShapedNetwork

    results = []
    with ShapedNetwork(shape) as network:
        for setting in ("gloo", *MPI_SETTINGS):
            transport = setting.split()[0]
            if transport not in libraries:
                continue
            print(f"{setting}: measuring", file=sys.stderr, flush=True)
            words = [str(Path(__file__).resolve()), "--on-ranks", json.dumps(make_job(shape, sizes, transport))]
            if transport == "gloo":
                lines = run_gloo(network, words, TIMEOUT_S)
            else:
                chosen = MPI_SETTINGS[setting].items()
                variables = {f"MPIR_CVAR_{name}_INTRA_ALGORITHM": value for name, value in chosen}
                lines = run_mpi(network, words, variables, TIMEOUT_S)
            results.append(judge(shape, setting, lines))
        return results, network.statistics()


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Errors of the judged rows, by setting and in all."""
    judged = {
        entry["setting"]: [row for row in entry["rows"] if row["size_bytes"] >= JUDGED_BYTES] for entry in results
    }
    judged["all"] = [row for rows in judged.values() for row in rows]
    return {
        name: {
            "rows": len(rows),
            "within_aim": sum(abs(row["error"]) <= AIM for row in rows),
            "median_error": median(abs(row["error"]) for row in rows),
            "bias": median(row["error"] for row in rows),
            "largest_error": max(abs(row["error"]) for row in rows),
            "closed_form_within_aim": sum(abs(row["closed_form_error"]) <= AIM for row in rows),
        }
        for name, rows in judged.items() if rows
    }  # fmt: skip


def named(size_bytes: int) -> str:
    return f"{size_bytes >> 20} MiB" if size_bytes >= 1 << 20 else f"{size_bytes >> 10} KiB"


def print_tables(shape: Shape, document: Mapping[str, Any]) -> None:
    print(
        f"{shape.racks} racks of {shape.hosts_per_rack} hosts; host {shape.host_bytes_per_s / MEGABIT_BYTES:g} Mbit/s, "
        f"rack {shape.rack_bytes_per_s / MEGABIT_BYTES:g} Mbit/s ({shape.oversubscription:g}:1), "
        f"cable {1e6 * shape.cable_delay_s:g} us, packets of {shape.packet_bytes} bytes"
    )
    for entry in document["results"]:
        constants = entry["constants"]
        print(
            f"\n{entry['setting']}: overhead {1e6 * constants['overhead_s']:.0f} us, above "
            f"{constants['eager_bytes'] >> 10} KiB {1e6 * constants['rendezvous_s']:.0f} us more, "
            f"payload {constants['link_fraction']:.3f} of the rate (messages between two ranks)"
        )
        print(
            f"{'axis':<13}{'collective':<15}{'algorithm':<23}{'size':>8}{'measured ms':>12}{'(smallest, largest)':>20}"
            f"{'predicted ms':>14}{'error':>8}{'closed form':>13}{'error':>8}"
        )
        for row in entry["rows"]:
            spread = f"({1e3 * min(row['seconds']):.1f}, {1e3 * max(row['seconds']):.1f})"
            print(
                f"{row['axis']:<13}{row['collective']:<15}{row['algorithm']:<23}{named(row['size_bytes']):>8}"
                f"{1e3 * row['median_s']:>12.1f}{spread:>20}{1e3 * row['events_s']:>14.1f}{row['error']:>+8.1%}"
                f"{1e3 * row['closed_form_s']:>13.1f}{row['closed_form_error']:>+8.1%}"
            )
    print(f"\nfrom {named(JUDGED_BYTES)} on, aim {AIM:.0%}:")
    for name, found in document["summary"].items():
        print(
            f"{name:<13}{found['within_aim']} of {found['rows']} rows within the aim, median error "
            f"{found['median_error']:.1%}, bias {found['bias']:+.1%}, largest {found['largest_error']:.1%}"
        )
    switch = document["switch"]
    print(
        f"switch: {switch['packets']:.0f} packets, {switch['dropped']:.0f} dropped, {switch['resent']:.0f} sent again, "
        f"at most {1e3 * switch['largest_lateness_s']:.1f} ms late"
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--quick", action="store_true", help="two sizes, under two minutes per library setting")
    parser.add_argument("--library", choices=("gloo", "mpi", "both"), default="both")
    parser.add_argument("--host-mbit", type=float, default=80.0, help="rate of a host's cable, each way (at most 200)")
    parser.add_argument("--rack-mbit", type=float, default=40.0, help="rate of a rack's uplink, each way")
    parser.add_argument("--cable-delay-us", type=float, default=250.0, help="delay of every cable")
    parser.add_argument("--on-ranks", metavar="JOB", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, mbit in (("--host-mbit", options.host_mbit), ("--rack-mbit", options.rack_mbit)):
        if not 0 < mbit <= LARGEST_MBIT:
            parser.error(f"{name} {mbit:g}: give more than 0 and at most {LARGEST_MBIT:g}; two cores feed no more")
    return options


def stopped(number: int, _: object) -> None:
    """A request to end takes the way of Ctrl-C, through every context that has something to close."""
    raise KeyboardInterrupt


def main() -> int:
    options = read_options()
    if options.on_ranks:
        from shaped.ranks import run

        run(json.loads(options.on_ranks))
    from shaped.network import why_not

    reason = why_not()
    if reason is not None:
        print(f"shaped_network: {reason}", file=sys.stderr)
        return 2
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(request, stopped)
    shape = Shape(
        host_bytes_per_s=options.host_mbit * MEGABIT_BYTES, rack_bytes_per_s=options.rack_mbit * MEGABIT_BYTES,
        cable_delay_s=1e-6 * options.cable_delay_us,
    )  # fmt: skip
    libraries = ("gloo", "mpi") if options.library == "both" else (options.library,)
    try:
        results, switch = measure(shape, libraries, QUICK_SIZES if options.quick else SIZES)
    except KeyboardInterrupt:
        print("shaped_network: stopped, nothing is left behind", file=sys.stderr)
        return 130
    except (RuntimeError, subprocess.SubprocessError) as error:
        print(f"shaped_network: {error}", file=sys.stderr)
        return 1
    document = {
        **provenance(), "shape": asdict(shape), "oversubscription": shape.oversubscription, "switch": switch,
        "summary": summary(results), "results": results,
    }  # fmt: skip
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        print_tables(shape, document)
    return 0


def provenance() -> dict[str, Any]:
    """What a result needs to be judged by: command, versions, cores, load."""
    import rank_jobs

    return rank_jobs.provenance("shaped_network")


if __name__ == "__main__":
    sys.exit(main())
