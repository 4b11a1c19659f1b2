"""The machines that collectives were measured on, as clusters: which machine file, and what of it a job used.

It owns what a table's ``system`` means: NICs per rank, the nodes a job got, the shape of its torus. It does not own the
machines' numbers (``perfmodel/machines``) nor how clusters are built (``cluster``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from janus.errors import UserError
from perfmodel.machine import Machine, catalogue_names, load_machine
from perfmodel.network.cluster import Cluster, spread_nodes
from perfmodel.network.fabric import Fabric, build_fabric
from perfmodel.network.measured import Measurement
from perfmodel.network.routes import Transport

GENERIC_PORT_BYTES_PER_S = 25e9  # 200 Gb/s: the rail of every InfiniBand and Slingshot machine in the catalogue
SHARED_MEMORY_BYTES_PER_S = 8e9  # assumed: one rank's message to another of its node, through shared memory
HOST_MEMORY_BYTES_PER_S = 204.8e9  # assumed: of a node, for all its ranks: eight channels of DDR4-3200
# Bytes that memory moves for a byte: of a message copied in the node, reduced, copied, touched for the first time.
MESSAGE_TRAFFIC, REDUCTION_TRAFFIC, COPY_TRAFFIC, TOUCH_TRAFFIC = 2, 3, 2, 2


@dataclass(frozen=True, kw_only=True)
class MeasuredSystem:
    """machine: its name in the catalogue. host_memory_bytes_per_s: of a node. node_stride: the job's nodes are every so
    many of consecutive ones; spread: they lie at even distances over the whole machine. ports_block: a port that
    several nodes send to loses rate too (seen on LUMI's Slingshot, not on InfiniBand and Tofu). overrides: numbers of
    the fabric that differ from the machine file's, up to so many nodes: what one rank could use, and in place of what
    the file has from larger measurements."""

    machine: str
    host_memory_bytes_per_s: float = HOST_MEMORY_BYTES_PER_S
    node_stride: int = 1
    spread: bool = False
    ports_block: bool = False
    overrides_up_to: int = 1 << 30
    overrides: Mapping[str, Any] = field(default_factory=dict)


SYSTEMS: dict[str, MeasuredSystem] = {
    # assumed: a job on a busy dragonfly gets nodes all over it
    "leonardo": MeasuredSystem(machine="leonardo", spread=True),
    "lumi": MeasuredSystem(machine="lumi_g", spread=True, ports_block=True),
    "mare_nostrum": MeasuredSystem(
        machine="marenostrum5_acc", host_memory_bytes_per_s=614.4e9,  # assumed: two sockets of eight DDR5-4800
    ),
    # one message uses one of the six interfaces of a node: 6.3 of 6.8 GB/s measured
    "fugaku": MeasuredSystem(
        machine="fugaku", host_memory_bytes_per_s=1024e9, overrides={"port_bytes_per_s": 6.8e9},
    ),
    # CRAB: the measured nodes are every second of the job's, the others run the aggressor. Taper of the leaves from 32
    # nodes (two leaves of 16), the largest that is fitted; above the leaves nothing is known from there: no taper. The
    # machine file has the upper taper from 128 nodes, which holds for larger jobs.
    "cresco8": MeasuredSystem(
        machine="cresco8", node_stride=2, overrides={"children": (32, 24), "taper": 5.5}, overrides_up_to=128
    ),
}  # fmt: skip


def machine_of(system: str) -> Machine | None:
    """The machine file of a system: as known here, or by its own name in the catalogue; None for an unknown system."""
    if system in SYSTEMS:
        return load_machine(SYSTEMS[system].machine)
    wanted = system.replace("-", "_")
    for name in catalogue_names():
        if name == wanted or name.startswith(f"{wanted}_"):
            machine = load_machine(name)
            return machine if machine.fabric is not None else None
    return None


def cluster_of(measurement: Measurement) -> Cluster:
    """The nodes and ranks of a measurement on its system's fabric. The ranks of a node share one NIC, but for NCCL's,
    which have all. An unknown system is one switch of 25 GB/s ports."""
    nodes = measurement.num_nodes
    machine = machine_of(measurement.system)
    system = SYSTEMS.get(measurement.system, MeasuredSystem(machine=""))
    share_bytes_per_s = system.host_memory_bytes_per_s / (MESSAGE_TRAFFIC * measurement.ranks_per_node)
    nics, inside_bytes_per_s = 1, min(SHARED_MEMORY_BYTES_PER_S, share_bytes_per_s)
    family: str = "single_switch"
    numbers: dict[str, Any] = {"port_bytes_per_s": GENERIC_PORT_BYTES_PER_S}
    inside_s = 1e-6
    if machine is not None and machine.fabric is not None:
        family, numbers = machine.fabric.family, dict(machine.fabric.numbers)
        numbers |= system.overrides if nodes <= system.overrides_up_to else {}
        if measurement.stack != "mpi" and measurement.stack != "crab":
            inside_bytes_per_s = machine.network.node_bytes_per_s or inside_bytes_per_s
        if measurement.stack == "nccl" or measurement.ranks_per_node == 1:
            nics = machine.network.nics_per_node or 1
        elif "switches_per_node" in numbers:
            numbers["switches_per_node"] = 1
    if family == "tofu_d" and measurement.torus:
        numbers["job_shape"] = _three(measurement.torus)
    node_numbers = system.node_stride * np.arange(nodes, dtype=np.int64)
    if system.spread and machine is not None and nodes <= machine.nodes:
        node_numbers = spread_nodes(nodes, machine.nodes)
    try:
        fabric = build_fabric(family, numbers, num_nodes=int(node_numbers[-1]) + 1, nics_per_node=nics)
    except UserError:
        if not measurement.torus:
            raise
        fabric = _plain_torus(measurement.torus, numbers)
    return Cluster(
        num_nodes=nodes, ranks_per_node=measurement.ranks_per_node, fabric=fabric, nics_per_node=nics,
        node_bytes_per_s=inside_bytes_per_s, node_latency_s=inside_s, node_numbers=node_numbers,
    )  # fmt: skip


def _plain_torus(shape: tuple[int, ...], numbers: Mapping[str, Any]) -> Fabric:
    """The virtual torus itself, for shapes whose fold into the machine's dimensions is not known."""
    kept = {name: numbers[name] for name in ("link_bytes_per_s", "port_bytes_per_s") if name in numbers}
    latencies = {name: numbers[name] for name in ("wire_latency_s", "switch_latency_s") if name in numbers}
    return build_fabric("torus", kept | latencies | {"shape": shape}, num_nodes=math.prod(shape), nics_per_node=1)


def ports_block(one: Measurement) -> bool:
    """Whether the ports of a system lose rate where several nodes send to one."""
    return one.system in SYSTEMS and SYSTEMS[one.system].ports_block


def with_neighbours(transport: Transport, one: Measurement) -> Transport:
    """The library of a rank that shares its host's memory and cache with the other ranks of its node."""
    ranks_per_node = one.ranks_per_node
    share = SYSTEMS.get(one.system, MeasuredSystem(machine="")).host_memory_bytes_per_s / ranks_per_node
    return replace(
        transport,
        memory_reduction_bytes_per_s=min(transport.memory_reduction_bytes_per_s, share / REDUCTION_TRAFFIC),
        memory_copy_bytes_per_s=min(transport.memory_copy_bytes_per_s, share / COPY_TRAFFIC),
        first_touch_bytes_per_s=min(transport.first_touch_bytes_per_s, share / TOUCH_TRAFFIC),
        cache_bytes=transport.cache_bytes / ranks_per_node,
    )


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A job's shape with three axes."""
    return (*shape, 1, 1)[:3] if len(shape) < 3 else shape
