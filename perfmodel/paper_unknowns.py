"""What the paper leaves open, as ranges with reasons: the unknowns of ``paper_model``, per machine.

It owns names, defaults, ranges and reasons. It does not own what an unknown does to a row (``paper_model``) nor how
ranges are searched (``paper_search``). Defaults are those of the machine files and of ``full_machine`` where they have
one; nothing was moved towards a published row.
"""

from __future__ import annotations

from perfmodel.machine import Machine
from perfmodel.paper import GLOBAL
from perfmodel.paper_search import Space, Unknown

LARGEST_BATCH = GLOBAL["largest_batch"].value
UNIT_IN_NODE, UNIT_OVER_NODES = 0.0, 1.0  # of "unit_place"
CPUS_PER_NODE = 2  # of LineShine
MODEL_FLOPS, EXECUTED_FLOPS = 0.0, 1.0  # of "counted"
TOKENS, WEIGHTS = 0.0, 1.0  # of "strategy"
HALVING, OPTIMAL = 0.0, 1.0  # of "all_reduce"
NO, YES = 0.0, 1.0
BEYOND = 8.0  # times the reported largest batch, where a search may leave it


def _number(
    key: str, label: str, unit: str, value: float, low: float, high: float, reason: str, *, log: bool = False
) -> Unknown:
    return Unknown(key=key, label=label, unit=unit, value=value, low=low, high=high, scale="log" if log else "linear",
                   reason=reason)  # fmt: skip


def _choice(key: str, label: str, value: float, choices: tuple[float, ...], words: tuple[str, ...], reason: str,
            unit: str = "") -> Unknown:  # fmt: skip
    return Unknown(key=key, label=label, unit=unit, value=value, low=min(choices), high=max(choices), scale="choice",
                   choices=choices, words=words, reason=reason)  # fmt: skip


def _batches(largest: float) -> list[Unknown]:
    reported = f"reported: up to {LARGEST_BATCH:,.0f}, of which run is not said"
    if largest > LARGEST_BATCH:
        reported += f"; searched up to {largest:,.0f} because of the identities"
    return [
        _number("batch_peak", "global batch of the peak run, L", "configurations", 12_000, 1_000, largest, reported,
                log=True),
        _number("batch_step_l", "global batch of L's step times", "configurations", 12_000, 500, largest, reported,
                log=True),
        _number("batch_step_m", "global batch of M's step times", "configurations", 12_000, 500, largest,
                reported + "; M and L need not be alike", log=True),
        _number("batch_strong", "global batch of strong scaling, L", "configurations", 12_000, 1_000, largest, reported,
                log=True),
        _number("step_part", "part of the machine that step times are of", "", 1.0, 1 / 64, 1.0,
                "not said; the full machine contradicts the batch on LineShine", log=True),
        _number("weak_part", "smallest part of the machine in weak scaling", "", 1 / 64, 1 / 512, 1 / 4,
                "not said; such lines usually span a factor of 4 to 500", log=True),
        _number("strong_part", "smallest part of the machine in strong scaling", "", 1 / 8, 1 / 64, 1 / 2,
                "not said; the states of L and its batch must fit there", log=True),
    ]  # fmt: skip


def _work() -> list[Unknown]:
    mean = GLOBAL["edges"].value / GLOBAL["configurations"].value
    return [
        _number("edges", "directed edges per configuration", "edges", mean, 3_400, 12_000,
                f"data set's mean {mean:,.0f}; 3,400 if EFLOPS and normalised throughput both hold; scaling runs may "
                "use a part of the data", log=True),
        _number("flops_factor", "FLOPs per edge over the preset's", "x", 1.0, 0.8, 1.4,
                "widths and experts are this project's choice; 1.38 if every active parameter met every edge"),
        _choice("counted", "FLOPs counted", MODEL_FLOPS, (MODEL_FLOPS, EXECUTED_FLOPS), ("model", "executed"),
                "a profiler counts recomputed products too; the paper's way is not said"),
        _choice("recompute", "blocks are recomputed", NO, (NO, YES), ("no", "yes"),
                "not said; the memory formula of this project's CPU operators asks for it, leaner kernels may not"),
        _number("kept", "activations kept over this project's formula", "x", 1.0, 0.2, 1.0,
                "the formula is of eager operators; kernels of their own for attention and dispatch keep less"),
        _choice("micro_batch", "configurations per micro-batch of a unit", 4.0, (1.0, 2.0, 4.0, 8.0, 16.0),
                ("1", "2", "4", "8", "16"), "not said"),
        _number("size_spread", "spread of configuration sizes (log-normal)", "", 0.05, 0.0, 0.5,
                "of the data set about 1; runs for scaling are made of more alike ones, or L could not reach its share "
                "of peak; shared out to units by the trainer's packing"),
        _number("deviation", "deviation of a rank's compute from step to step", "", 0.02, 0.0, 0.06,
                "not said; 1 to 3 % on quiet machines"),
    ]  # fmt: skip


def _speeds(machine: Machine) -> list[Unknown]:
    rates = machine.require_rates()[0]
    peak = machine.peaks["float32"].flops_per_s
    memory = rates.plain_bytes_per_s / machine.memory_bytes_per_s
    return [
        _number("product_share", "share of peak that L's products reach", "", rates.matmul_flops_per_s / peak, 0.4,
                0.95, "measured elsewhere: 0.5 to 0.87 (16 bits, accelerators); grouped products reach less"),
        _number("product_m", "share of peak of M's products over L's", "x", 0.9, 0.4, 1.0,
                "M is half as wide and has fewer rows per expert"),
        _number("memory_share", "memory traffic as counted, at this share of the memory rate", "", memory, 0.15, 2.5,
                "0.8 is plain code; above 1 where fused kernels touch less than is counted; far below where DDR takes "
                "part (LineShine)", log=True),
        _number("launch_s", "one operator call", "s", rates.op_s, 1e-6, 5e-5,
                "5 to 10 us from PyTorch; less with graphs, more with many threads", log=True),
    ]  # fmt: skip


def _network(machine: Machine) -> list[Unknown]:
    nics, rate = machine.network.nics_per_node, machine.network.nic_bytes_per_s
    inside = machine.network.node_bytes_per_s
    assert nics is not None
    assert rate is not None
    assert inside is not None
    found = []
    if machine.name == "lineshine":
        found += [
            _choice("unit_place", "an FS-3D unit of 8 is", UNIT_OVER_NODES, (UNIT_IN_NODE, UNIT_OVER_NODES),
                    ("8 NUMA domains of one CPU", "8 CPUs in 4 nodes"),
                    "8 devices are reported, not what one is; 40,960 units of one CPU are more than the reported batch "
                    "has configurations"),
            _number("injection", "network of a node over 1.6 Tb/s", "x", 1.0, 0.5, 1.0,
                    "1.6 Tb/s per node is published; what messages reach of it is not"),
        ]  # fmt: skip
    else:
        found.append(
            _choice("injection", "NICs of 400 Gb/s per node", nics, (1.0, 2.0, 4.0, 8.0), ("1", "2", "4", "8"),
                    "not published; 400 Gb/s is the vendor's NIC, if the machine is what it is taken for")
        )  # fmt: skip
    return [
        *found,
        _number("taper", "taper of the fabric", "", 1.0, 1.0, 4.0, "not published"),
        _choice("all_reduce", "sum of gradients over units", OPTIMAL, (HALVING, OPTIMAL),
                ("halving and doubling, folded to a power of two", "bandwidth-optimal at any number"),
                "the library and its algorithm are not said; 5,632 and 40,960 are no powers of two"),
        _number("node_link", "link of a rank inside a node over the machine file's", "x", 1.0, 0.4, 4.0,
                f"assumed {inside / 1e9:g} GB/s; 20 to 200 GB/s on comparable parts", log=True),
        _choice("strategy", "what FSEP moves", TOKENS, (TOKENS, WEIGHTS), ("rows of tokens", "weights of experts"),
                "FSEP is named, not described; both are in the literature"),
        _number("overlap", "part of what can be hidden that is hidden", "", 0.9, 0.5, 1.0,
                "asynchronous gradients and updates are named; CPUs have no streams of their own"),
        _number("packing", "packing and compressing of rows over this trainer's", "x", 1.0, 0.05, 1.0,
                "dispatch kernels are named; this trainer packs and rounds rows by plain operators", log=True),
        _number("exchange_cover", "part of the compute beside which exchanges can run", "", 0.0, 0.0, 0.6,
                "0 is this project's trainer (beside the shared experts only); rows cut in pieces could hide more"),
    ]  # fmt: skip


def _baseline(machine: Machine) -> list[Unknown]:
    found = [
        _number("baseline_overlap", "the same in the baseline", "", 0.0, 0.0, 0.5,
                "what the baseline lacks is not listed; overlap is among what is credited with the gain"),
        _number("baseline_products", "products of the baseline over the optimised", "x", 0.6, 0.2, 1.0,
                "kernels for gather, attention and dispatch are credited; the baseline's are not described", log=True),
        _number("baseline_memory", "effective memory rate of the baseline over the optimised", "x", 0.4, 0.1, 1.0,
                "unfused kernels touch more memory; before SDMA", log=True),
        _number("baseline_launches", "operator calls of the baseline over the optimised", "x", 2.0, 1.0, 6.0,
                "experts one after the other in place of grouped products", log=True),
        _number("baseline_load", "fullest rank of experts over the mean, unplanned", "x", 1.3, 1.0, 2.5,
                "just-in-time planning is credited; loads without it depend on the composition"),
        _choice("baseline_compression", "the baseline compresses exchanges", NO, (NO, YES), ("no", "yes"),
                "16-bit exchanges are credited with half of the volume"),
    ]  # fmt: skip
    if machine.name == "lineshine":
        most = GLOBAL["sdma_gain"].value
        found.append(_number("sdma", "memory rate with SDMA over without", "x", 1.2, 1.0, most,
                             f"reported: up to {most:g}"))  # fmt: skip
    return found


def _outside() -> list[Unknown]:
    return [
        _number("outside_s", "start-up and I/O of a run", "s", 700.0, 100.0, 3_000.0,
                "reported: hundreds of seconds of start-up at full scale; I/O is not", log=True),
        _number("steps", "steps of the sustained run", "steps", 1_500.0, 1_000.0, 5_000.0, "reported: at least 1,000",
                log=True),
    ]  # fmt: skip


def unknowns_of(machine: Machine, *, largest_batch: float = LARGEST_BATCH) -> Space:
    """The unknowns of one of the paper's machines. largest_batch: of any run; the reported one unless a search must
    leave it."""
    return Space([
        *_batches(largest_batch), *_work(), *_speeds(machine), *_network(machine), *_baseline(machine), *_outside(),
    ])  # fmt: skip
