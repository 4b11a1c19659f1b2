"""Holds the network model against measured collectives: what is fitted, what is judged, and how far off it is.

It owns the split into fitted and held-out rows, the verdicts and their summary. It does not own the model
(``closed_form``), the search (``fit``), nor where the constants that come with the program are kept (``fitted``).

Split: of each system and software stack, rows of the smaller node counts are fitted (up to a quarter of the largest,
at least the smallest) and all others judged. Where a stack has one node count only, or ``HELD_OUT`` says so,
collectives or ranks per node are held out instead. No row is judged by constants that it was fitted to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.network.fit import fit_transport, generic_transport, mean_transport
from perfmodel.network.measured import Measurement
from perfmodel.network.measured_cases import Case
from perfmodel.network.routes import Transport

LARGE_BYTES = 2.0**20
CLOSE = 1.05
ALIKE = 1.02
OWN_CHOICE = "default_ompi"  # judged as what Open MPI's rules choose; itself no algorithm to choose
Stack = tuple[str, str]  # system, software stack
NETWORK_CONSTANTS = (
    "overhead_s", "gap_s", "entry_s", "link_fraction", "contended_fraction", "rendezvous_s", "eager_bytes",
    "eager_copy_bytes_per_s",
)  # fmt: skip

GPU_MEMORY_BYTES_PER_S = 1e12  # assumed: what a kernel of a library reduces or copies in a GPU's memory
MEMORY_RATES = (
    "reduction_bytes_per_s", "copy_bytes_per_s", "memory_reduction_bytes_per_s", "memory_copy_bytes_per_s",
    "first_touch_bytes_per_s",
)  # fmt: skip

# Held out although their scale is fitted: collectives measured at one scale only, so that they judge something.
HELD_OUT: Mapping[Stack, tuple[str, ...]] = {("mare_nostrum", "mpi"): ("broadcast", "all_to_all")}


@dataclass(frozen=True, kw_only=True)
class FittedStack:
    """Constants of one stack that come with the program: fitted to its small scales (up to ``limit`` nodes), and to all
    (up to ``largest``). jobs: collective -> node counts in the fit set."""

    small_scales: Transport
    all_scales: Transport
    limit: int
    largest: int
    jobs: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Library:
    """Constants with what they were fitted to: origin is "scales" (this stack's small scales), "stack" (all rows of
    this stack that the program was fitted to), "machine" (another stack of this machine), "others" (the mean of other
    machines), "generic" (expected of any)."""

    transport: Transport
    origin: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One measurement beside the model. fitted: its row was among those the constants were fitted to."""

    measurement: Measurement
    algorithm: str
    predicted_s: float
    fitted: bool
    origin: str

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.predicted_s / self.measurement.measured_s - 1.0


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Median absolute relative error and bias (median relative error) of num_rows rows."""

    num_rows: int
    median_error: float
    bias: float


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Calls (job and size) with two or more algorithms judged: how many, in how many the model's best is within 5 % of
    the measured best, and the median of its time over the best."""

    num_calls: int
    num_close: int
    median_regret: float


def stack_of(case: Case) -> Stack:
    """System and software stack of a case."""
    return case.measurements[0].system, case.measurements[0].stack


def fit_limits(cases: Iterable[Case]) -> dict[Stack, int]:
    """Largest node count of each stack that is fitted: a quarter of its largest, at least its smallest."""
    scales: dict[Stack, set[int]] = defaultdict(set)
    for case in cases:
        scales[stack_of(case)].add(case.measurements[0].num_nodes)
    return {stack: max(min(found), max(found) // 4) for stack, found in scales.items()}


def is_fitted(case: Case, limit: int) -> bool:
    """Whether a case belongs to the fit set of its stack: small scale, one rank per node where ranks use the host's
    memory (and for GPUs by MPI, whose one scale is split that way), and not held out by collective."""
    one = case.measurements[0]
    if one.num_nodes > limit or one.collective in HELD_OUT.get(stack_of(case), ()):
        return False
    return one.stack == "nccl" or one.ranks_per_node == 1


def fit_stacks(cases: Sequence[Case], progress: Callable[[str], None] | None = None) -> dict[Stack, FittedStack]:
    """Constants of each stack, from its fit set and from all its cases. progress: called with each stack's name before
    its fits."""
    fits = {}
    for stack, limit in sorted(fit_limits(cases).items()):
        own = [case for case in cases if stack_of(case) == stack]
        chosen = [case for case in own if is_fitted(case, limit)]
        if progress is not None:
            progress(f"{stack[0]} {stack[1]}")
        jobs: dict[str, set[int]] = defaultdict(set)
        for case in chosen:
            jobs[case.measurements[0].collective].add(case.measurements[0].num_nodes)
        if chosen:
            fits[stack] = FittedStack(
                small_scales=fit_transport(chosen).transport,
                all_scales=fit_transport(own).transport,
                limit=limit,
                largest=max(case.measurements[0].num_nodes for case in own),
                jobs={collective: tuple(sorted(nodes)) for collective, nodes in sorted(jobs.items())},
            )
    return fits


def left_out_library(stack: Stack, known: Mapping[Stack, Transport]) -> Library:
    """What is expected of a machine that was never fitted: the mean of other machines' libraries of the same kind (GPU
    libraries apart from host memory), or of machines in general where there is none."""
    kinds = {"mpi": ("mpi", "crab"), "crab": ("mpi", "crab")}.get(stack[1], (stack[1],))
    by_system: dict[str, list[Transport]] = defaultdict(list)
    for (system, kind), transport in known.items():
        if system != stack[0] and kind in kinds:
            by_system[system].append(transport)
    if not by_system:
        rates = dict.fromkeys(MEMORY_RATES, GPU_MEMORY_BYTES_PER_S) if stack[1] in ("nccl", "mpi-gpu") else {}
        return Library(transport=generic_transport(rates), origin="generic")
    means = [mean_transport(transports) for transports in by_system.values()]
    return Library(transport=mean_transport(means), origin="others")


def own_network_library(network: Sequence[Transport], elsewhere: Library) -> Library:
    """For a software stack that was not fitted on a machine where others were: what belongs to the network as they have
    it, what belongs to the host's memory as other machines have it."""
    own = mean_transport(network)
    values = vars(elsewhere.transport) | {name: getattr(own, name) for name in NETWORK_CONSTANTS}
    return Library(transport=Transport(**values), origin="machine")


def library_of(case: Case, known: Mapping[Stack, FittedStack]) -> tuple[Library, bool]:
    """(constants for a case, whether they were fitted to it) from those that come with the program.

    Scales that the program's tables have are judged by constants of their small scales; larger ones by constants of all
    of them; other stacks of a known machine and unknown machines as ``own_network_library``, ``left_out_library``.
    """
    stack, one = stack_of(case), case.measurements[0]
    if stack in known:
        found = known[stack]
        if one.num_nodes > found.largest:
            return Library(transport=found.all_scales, origin="stack"), False
        fitted = is_fitted(case, found.limit) and one.num_nodes in found.jobs.get(one.collective, ())
        return Library(transport=found.small_scales, origin="scales"), fitted
    elsewhere = left_out_library(stack, {other: entry.all_scales for other, entry in known.items()})
    siblings = [entry.all_scales for (system, kind), entry in known.items()
                if system == stack[0] and kind != "nccl" and stack[1] != "nccl"]  # fmt: skip
    return (own_network_library(siblings, elsewhere) if siblings else elsewhere), False


def judge(case: Case, library: Library, *, fitted: bool) -> list[Verdict]:
    """A verdict for each measurement of a case."""
    predicted_s = case.predicted_s(library.transport)
    algorithm = case.implementation.algorithm
    return [
        Verdict(measurement=one, algorithm=algorithm, predicted_s=float(time_s), fitted=fitted, origin=library.origin)
        for one, time_s in zip(case.measurements, predicted_s, strict=True)
    ]


def errors(verdicts: Iterable[Verdict]) -> Errors | None:
    """Summary of the verdicts' errors; None without any."""
    values = np.array([one.error for one in verdicts])
    if not len(values):
        return None
    return Errors(num_rows=len(values), median_error=float(np.median(np.abs(values))), bias=float(np.median(values)))


def is_large(verdict: Verdict) -> bool:
    """At least 1 MiB."""
    return verdict.measurement.size_bytes >= LARGE_BYTES


def choices(verdicts: Iterable[Verdict]) -> Choices:
    """How good the model's best algorithm is. An algorithm measured in several implementations counts by their median;
    a library's own choice is none, and of calls with one algorithm there is nothing to choose."""
    calls: dict[tuple[object, ...], dict[str, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
    for one in verdicts:
        what = one.measurement
        if what.name == OWN_CHOICE:
            continue
        call = (what.system, what.stack, what.collective, what.num_nodes, what.ranks_per_node, what.size_bytes)
        calls[call][one.algorithm].append(one)
    regrets = []
    for by_algorithm in calls.values():
        if len(by_algorithm) < 2:
            continue
        measured = {name: float(np.median([one.measurement.measured_s for one in ones]))
                    for name, ones in by_algorithm.items()}  # fmt: skip
        predicted = {name: float(np.median([one.predicted_s for one in ones])) for name, ones in by_algorithm.items()}
        regrets.append(measured[_best(predicted)] / min(measured.values()))
    close = sum(regret <= CLOSE for regret in regrets)
    return Choices(num_calls=len(regrets), num_close=close, median_regret=float(np.median(regrets)) if regrets else 1.0)


def _best(predicted: Mapping[str, float]) -> str:
    """The algorithm that the model calls best. Of those it cannot tell apart (within 2 %) the plain one before a Bine
    variant, whose blocks need another order: the model has the messages of both and not all that orders blocks."""
    fastest = min(predicted.values())
    alike = [name for name, time_s in predicted.items() if time_s <= ALIKE * fastest]
    return min(alike, key=lambda name: (name.startswith("bine"), predicted[name], name))


def grouped(
    verdicts: Iterable[Verdict], key: Callable[[Verdict], tuple[str, ...]]
) -> dict[tuple[str, ...], list[Verdict]]:
    """Verdicts by key, in the key's order."""
    found: dict[tuple[str, ...], list[Verdict]] = defaultdict(list)
    for one in verdicts:
        found[key(one)].append(one)
    return dict(sorted(found.items()))


def left_out_counts(left_out: Mapping[Measurement, str]) -> list[tuple[str, str, str, str, int]]:
    """(system, collective, name, reason, rows) of what is not judged."""
    counts = Counter((one.system, one.collective, one.name, reason) for one, reason in left_out.items())
    return [(*key, number) for key, number in sorted(counts.items())]


def bounds(case: Case, transport: Transport, size_bytes: float) -> dict[str, float]:
    """Share of each cause in the predicted time of one size: what it would be less without it."""
    index = [one.size_bytes for one in case.measurements].index(size_bytes)
    whole_s = float(case.predicted_s(transport)[index])
    free = {
        "messages": {"overhead_s": 0.0, "latency_s": 0.0, "gap_s": 0.0, "entry_s": 0.0, "rendezvous_s": 0.0,
                     "eager_copy_bytes_per_s": np.inf},
        "reductions": {"reduction_bytes_per_s": np.inf, "memory_reduction_bytes_per_s": np.inf},
        "copies and work buffers": {"copy_bytes_per_s": np.inf, "memory_copy_bytes_per_s": np.inf,
                                    "first_touch_bytes_per_s": np.inf},
    }  # fmt: skip
    shares = {}
    for cause, values in free.items():
        without = Transport(**(vars(transport) | values))
        shares[cause] = 1.0 - float(case.predicted_s(without)[index]) / whole_s
    return shares | {"links": max(0.0, 1.0 - sum(shares.values()))}
