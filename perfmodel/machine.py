"""Machines as data: devices, nodes, links and fitted rates, every number with its source.

It owns the file format (TOML, ``janus.machine/1``), its checks and the catalogue in ``perfmodel/machines``. It does
not own measuring (``janus calibrate``), fitting (``calibration``) or what anything costs (``step_time``,
``collectives``).

A number in a machine file is ``{value = 4e12, source = "vendor page, June 2026"}``; a source that starts with
``assumed`` marks a number nobody published, and a fitted one carries ``quality`` (median relative residual of the
fit, or spread of the repeats). A bare number is refused. An unknown peak is absent: it shows as "n/a".

*device*: what a peak belongs to: an accelerator, a NUMA domain of a large CPU, or one core of a small host.
*rates*: how fast a rank computes when a node runs ``ranks`` ranks of ``threads`` threads each; measured ways of
filling a node are listed, so contention for memory is in the numbers and not in a formula.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from janus.config import read_toml
from janus.errors import UserError
from perfmodel.operators import FUSED_KINDS, PASS_NAMES

SCHEMA = "janus.machine/1"
CATALOGUE = Path(__file__).parent / "machines"
RATE_NAMES = (
    "matmul_flops_per_s", "matmul_bytes_per_s", "op_s", "step_stretch", "plain_bytes_per_s", "fresh_bytes_per_s",
    "batch_s",
    "optimizer_bytes_per_s", "optimizer_tensor_s", "data_structure_s", "data_edge_s", "data_angle_s",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The number a percentage of peak refers to: FLOP/s of one device, its dtype, a name and the source."""

    flops_per_s: float
    dtype: str
    name: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Speed of one rank while a node runs ``ranks`` ranks of ``threads`` threads.

    matmul_flops_per_s, matmul_bytes_per_s: a product [R,n]x[n,m] alone takes
    2Rnm / flops_per_s + itemsize (Rn + Rm + nm) / bytes_per_s.
    fused_s: seconds per element (row x channel) of each fused operator kind and pass (forward, backward, double);
    None: not timed, priced by its traffic at plain_bytes_per_s.
    step_stretch: factor on products and fused operators inside a step, over alone.
    plain_bytes_per_s: traffic of everything else; fresh_bytes_per_s: memory that FE and FF keep, touched for the first
    time (the operating system hands out and zeroes each new page).
    op_s: one operator call; batch_s: fixed part of a phase.
    optimizer_*: seconds per parameter tensor + bytes of parameters and states / rate (clip, AdamW, average).
    data_*: seconds per structure, edge and angle to build graphs and batches.
    all_reduce_*: ring form over the node's ranks (None: one rank).
    """

    ranks: int
    threads: int
    matmul_flops_per_s: float
    matmul_bytes_per_s: float
    op_s: float
    step_stretch: float
    plain_bytes_per_s: float
    fresh_bytes_per_s: float
    batch_s: float
    optimizer_bytes_per_s: float
    optimizer_tensor_s: float
    data_structure_s: float
    data_edge_s: float
    data_angle_s: float
    all_reduce_latency_s: float | None = None
    all_reduce_bytes_per_s: float | None = None
    fused_s: dict[str, dict[str, float]] | None = None

    @property
    def label(self) -> str:
        return f"ranks_{self.ranks}_threads_{self.threads}"


@dataclass(frozen=True, kw_only=True)
class Network:
    """Links: inside a node per rank, and between nodes per NIC; per direction. None: unknown (one node)."""

    node_latency_s: float | None = None
    node_bytes_per_s: float | None = None
    fabric_latency_s: float | None = None
    nic_bytes_per_s: float | None = None
    nics_per_node: int | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine. ``sources`` and ``quality`` are by dotted name of the number; ``provenance`` is of a host file."""

    name: str
    description: str
    device_name: str
    nodes: int
    devices_per_node: int
    memory_bytes_per_node: float
    memory_bytes_per_s: float
    peaks: dict[str, Peak]
    network: Network
    rates: tuple[Rates, ...]
    second_memory_bytes_per_node: float = 0.0
    sources: dict[str, str] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def is_calibrated_host(self) -> bool:
        return bool(self.provenance)

    def peak(self, dtype: str) -> Peak | None:
        """The peak of one device for a dtype, None where it is not known (show "n/a")."""
        return self.peaks.get(dtype)

    def assumptions(self) -> dict[str, str]:
        """Every number of the file that nobody published: dotted name -> what is assumed."""
        return {name: source for name, source in self.sources.items() if source.startswith("assumed")}

    def devices_used(self, ranks_per_node: int, threads: int) -> int:
        """Devices of a node that this many ranks keep busy (a rank of a CPU host uses one core per thread)."""
        return min(self.devices_per_node, ranks_per_node * max(1, threads if self.is_calibrated_host else 1))


class _Reader:
    """Takes quantities out of nested TOML tables and keeps their sources; errors name the file and the number."""

    def __init__(self, origin: str, values: Mapping[str, Any]) -> None:
        self.origin = origin
        self.values = values
        self.sources: dict[str, str] = {}
        self.quality: dict[str, float] = {}

    def table(self, path: str) -> Mapping[str, Any]:
        node: Any = self.values
        for name in path.split("."):
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
        return node if isinstance(node, Mapping) else {}

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise UserError(f"{self.origin}: {name} is {value!r}: it must be a text")
        return value

    def optional(self, path: str, *, zero: bool = False) -> float | None:
        """A quantity's value, or None where the file has none. ``zero``: 0 is allowed."""
        parent, _, name = path.rpartition(".")
        entry = (self.table(parent) if parent else self.values).get(name)
        if entry is None:
            return None
        if not isinstance(entry, Mapping):
            raise UserError(
                f'{self.origin}: {path} is {entry!r} without a source: write {{value = ..., source = "..."}}, '
                "with a source that starts with 'assumed' where nobody published it"
            )
        value, source = entry.get("value"), entry.get("source")
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0 or (value == 0 and not zero):
            raise UserError(f"{self.origin}: {path} has the value {value!r}: it must be a number above 0")
        if not isinstance(source, str) or not source.strip():
            raise UserError(f"{self.origin}: {path} has no source: name one, or write 'assumed: why'")
        self.sources[path] = source
        if "quality" in entry:
            self.quality[path] = float(entry["quality"])
        return float(value)

    def required(self, path: str, *, zero: bool = False) -> float:
        value = self.optional(path, zero=zero)
        if value is None:
            raise UserError(f'{self.origin}: {path} is missing: add {{value = ..., source = "..."}}')
        return value

    def whole(self, path: str) -> int:
        value = self.required(path)
        if value != int(value):
            raise UserError(f"{self.origin}: {path} is {value}: it must be a whole number")
        return int(value)


def _read_fused(reader: _Reader, base: str) -> dict[str, dict[str, float]] | None:
    """Seconds per element of every kind and pass, or None where the table is absent."""
    if not reader.table(base):
        return None
    return {
        kind: {name: reader.required(f"{base}.{kind}.{name}", zero=True) for name in PASS_NAMES} for kind in FUSED_KINDS
    }


def _read_rates(reader: _Reader, label: str) -> Rates:
    base = f"rates.{label}"
    plain = {name: reader.required(f"{base}.{name}", zero=name.endswith("_s") and "per" not in name)
             for name in RATE_NAMES}  # fmt: skip
    return Rates(
        ranks=reader.whole(f"{base}.ranks"),
        threads=reader.whole(f"{base}.threads"),
        fused_s=_read_fused(reader, f"{base}.fused_s"),
        all_reduce_latency_s=reader.optional(f"{base}.all_reduce_latency_s", zero=True),
        all_reduce_bytes_per_s=reader.optional(f"{base}.all_reduce_bytes_per_s"),
        **plain,
    )


def machine_from_mapping(values: Mapping[str, Any], origin: str) -> Machine:
    """A Machine of the nested values of a machine file. Raises UserError naming ``origin`` and the number."""
    if values.get("schema") != SCHEMA:
        raise UserError(f"{origin} has schema {values.get('schema')!r}: a machine file has schema {SCHEMA!r}")
    reader = _Reader(origin, values)
    peaks = {}
    for dtype, entry in reader.table("device.peaks").items():
        path = f"device.peaks.{dtype}"
        peaks[dtype] = Peak(
            flops_per_s=reader.required(path), dtype=dtype, source=str(entry.get("source")),
            name=str(entry.get("name", f"{dtype} peak of {values.get('device_name')}")),
        )  # fmt: skip
    network = Network(
        node_latency_s=reader.optional("network.node_latency_s", zero=True),
        node_bytes_per_s=reader.optional("network.node_bytes_per_s"),
        fabric_latency_s=reader.optional("network.fabric_latency_s", zero=True),
        nic_bytes_per_s=reader.optional("network.nic_bytes_per_s"),
        nics_per_node=reader.whole("network.nics_per_node") if reader.table("network").get("nics_per_node") else None,
    )
    if not reader.table("rates"):
        raise UserError(f"{origin} has no [rates.*] table: add one, or calibrate the host with 'janus calibrate'")
    return Machine(
        name=reader.text("name"),
        description=reader.text("description"),
        device_name=reader.text("device_name"),
        nodes=reader.whole("nodes"),
        devices_per_node=reader.whole("devices_per_node"),
        memory_bytes_per_node=reader.required("device.memory_bytes_per_node"),
        memory_bytes_per_s=reader.required("device.memory_bytes_per_s"),
        second_memory_bytes_per_node=reader.optional("device.second_memory_bytes_per_node") or 0.0,
        peaks=peaks,
        network=network,
        rates=tuple(_read_rates(reader, label) for label in reader.table("rates")),
        sources=reader.sources,
        quality=reader.quality,
        provenance=dict(reader.table("provenance")),
    )


def catalogue_names() -> list[str]:
    """Names of the machines that come with the program."""
    return sorted(path.stem for path in CATALOGUE.glob("*.toml"))


def load_machine(name_or_path: str | Path) -> Machine:
    """A machine of the catalogue by name, or any machine file by path (anything with a slash or ending in .toml).

    Raises UserError for an unknown name (with the nearest known), a missing or malformed file.
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text or isinstance(name_or_path, Path):
        path = Path(text)
    else:
        path = CATALOGUE / f"{text}.toml"
        if not path.exists():
            names = catalogue_names()
            near = difflib.get_close_matches(text, names, n=1)
            repair = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}, or a path ending in .toml"
            raise UserError(f"no machine {text!r} in the catalogue: {repair}")
    return machine_from_mapping(read_toml(path), str(path))


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{escaped}"'


def machine_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Machine-file text of nested values; quantities ({value, source, ...}) are written on one line."""
    lines, nested = [], []
    for name, value in values.items():
        if isinstance(value, Mapping) and "value" not in value:
            nested.append((name, value))
        elif isinstance(value, Mapping):
            inner = ", ".join(f"{key} = {_inline(entry)}" for key, entry in value.items())
            lines.append(f"{name} = {{{inner}}}")
        else:
            lines.append(f"{name} = {_inline(value)}")
    head = f"\n[{prefix}]\n" if prefix and lines else ""
    text = head + "".join(line + "\n" for line in lines)
    return text + "".join(machine_toml(value, f"{prefix}.{name}" if prefix else name) for name, value in nested)


def write_machine(path: Path, values: Mapping[str, Any]) -> None:
    """Check the values as a machine file and write them atomically. Raises UserError, writes nothing, if invalid."""
    machine_from_mapping(values, str(path))
    write_text_atomically(path, machine_toml(values))


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the whole new one. Raises UserError where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out or make room") from None
