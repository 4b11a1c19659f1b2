"""Machines as data: devices, nodes, links and fitted rates, every number with its source.

It owns the file format (TOML, ``janus.machine/1``) and the catalogue in ``perfmodel/machines``. It does not own reading
one number (``quantities``), measured collectives (``collective_rates``), whether numbers are plausible
(``plausibility``), measuring (``janus calibrate``), fitting (``calibration``), topologies (``network``) or what
anything costs (``step_time``, ``prices``).

A number in a machine file is ``{value = 4e12, source = "vendor page, June 2026"}``; a source that starts with
``assumed`` marks a number nobody published, and a fitted one carries ``quality`` (median relative residual of the
fit, or spread of the repeats). ``date`` names at least a year; a number without one has the year in its source, else
the ``date`` of the file. A bare number and an unknown name are refused. An unknown peak is absent: it shows as "n/a".

*device*: what a peak belongs to: an accelerator, a NUMA domain of a large CPU, or one core of a small host.
*rates*: how fast a rank computes when a node runs ``ranks`` ranks of ``threads`` threads each; measured ways of
filling a node are listed, so contention for memory is in the numbers and not in a formula. A machine known from
publications only has none.
*fabric*: family and numbers of the network that joins the nodes; *transport*: what its communication library adds.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from janus.config import read_toml
from janus.errors import UserError
from perfmodel.collective_rates import CollectiveRates, read_collectives
from perfmodel.network.fabric import allowed_keys
from perfmodel.network.kinds import wrong_kinds
from perfmodel.network.routes import Transport
from perfmodel.operators import FUSED_KINDS, PASS_NAMES
from perfmodel.quantities import YEAR, Quantities

SCHEMA = "janus.machine/1"
CATALOGUE = Path(__file__).parent / "machines"
RATE_NAMES = (
    "matmul_flops_per_s", "matmul_bytes_per_s", "op_s", "step_stretch", "plain_bytes_per_s", "fresh_bytes_per_s",
    "batch_s",
    "optimizer_bytes_per_s", "optimizer_tensor_s", "data_structure_s", "data_edge_s", "data_angle_s",
)  # fmt: skip
# measured where a host was calibrated by this version or later; None where they are absent
OPTIONAL_RATE_NAMES = (
    "grouped_flops_per_s", "grouped_call_s", "step_s", "step_tensor_s", "overlap_efficiency",
    "loader_felt",
)  # fmt: skip
FAMILIES = ("matris", "matris-moe")
PEAK_DTYPES = (
    "float64", "float64_matrix", "float32", "float32_matrix", "tfloat32", "bfloat16", "float16", "float8", "int8",
)  # fmt: skip
FILE_KEYS = (
    "schema", "name", "description", "device_name", "date", "nodes", "devices_per_node", "device", "network", "fabric",
    "transport", "rates", "collectives", "start_up", "provenance",
)  # fmt: skip
DEVICE_KEYS = (
    "memory_bytes_per_node", "second_memory_bytes_per_node", "memory_bytes_per_s", "second_memory_bytes_per_s", "peaks",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The number a percentage of peak refers to: FLOP/s of one device, its dtype, a name and the source."""

    flops_per_s: float
    dtype: str
    name: str
    source: str


@dataclass(frozen=True, kw_only=True)
class FamilyRates:
    """What steps of one model family cost where they differ from the plain rates: its operators are written otherwise.

    product_stretch, operator_stretch: factors on products and on fused operators inside a step, over alone; the others
    stand for the plain rates of the same names.
    """

    product_stretch: float
    operator_stretch: float
    plain_bytes_per_s: float
    fresh_bytes_per_s: float
    op_s: float
    grouped_call_s: float
    batch_s: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Speed of one rank while a node runs ``ranks`` ranks of ``threads`` threads.

    matmul_flops_per_s, matmul_bytes_per_s: a product [R,n]x[n,m] alone takes
    2Rnm / flops_per_s + itemsize (Rn + Rm + nm) / bytes_per_s.
    fused_s, fused_row_s: seconds per element (row x channel), and per row whatever its width, of each fused operator
    kind and pass (forward, backward, double); fused_s None: not timed, priced by its traffic at plain_bytes_per_s.
    step_stretch: factor on products and fused operators inside a step, over alone.
    plain_bytes_per_s: traffic of everything else; fresh_bytes_per_s: memory that FE and FF keep, touched for the first
    time (the operating system hands out and zeroes each new page).
    op_s: one operator call; batch_s: fixed part of a phase.
    optimizer_*: seconds per parameter tensor + bytes of parameters and states / rate (clip, AdamW, average).
    grouped_flops_per_s, grouped_call_s: products of routed experts, a call per expert that has rows (None: as matmul_*
    and op_s). step_s, step_tensor_s: time of a step outside its phases, and the part of it per parameter tensor of the
    model (None: not measured). overlap_efficiency: of the shorter of a collective and the compute beside it, the
    fraction that is hidden; loader_felt: seconds by which a step grows per second of the loader beside it (None: not
    measured).
    families: by model family, what its steps cost where that was fitted apart; ``model_rates.rates_of_model`` applies
    it, and fused_row_s, to a model.
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
    grouped_flops_per_s: float | None = None
    grouped_call_s: float | None = None
    step_s: float | None = None
    step_tensor_s: float | None = None
    overlap_efficiency: float | None = None
    loader_felt: float | None = None
    fused_s: dict[str, dict[str, float]] | None = None
    fused_row_s: dict[str, dict[str, float]] | None = None
    families: dict[str, FamilyRates] = field(default_factory=dict)

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
class FabricDescription:
    """What joins the nodes: a family of ``perfmodel.network`` and the numbers that build one of it."""

    family: str
    numbers: dict[str, float | int | str | tuple[float | int | str, ...]]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine. ``sources``, ``dates`` and ``quality`` are by dotted name; ``provenance`` is of a host file.

    rates: empty for a machine known from publications only. fabric: None where nothing is known of what joins the
    nodes. transport: None where no constants of its communication library were fitted.
    second_memory_bytes_per_s: of one device to the node's second memory; None: unknown. collectives: measured ones of a
    calibrated host. start_up_s: {ranks on the host: seconds from the start of the processes to the end of the first
    step}; empty where not measured.
    """

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
    second_memory_bytes_per_s: float | None = None
    collectives: tuple[CollectiveRates, ...] = ()
    start_up_s: dict[int, float] = field(default_factory=dict)
    fabric: FabricDescription | None = None
    transport: Transport | None = None
    sources: dict[str, str] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def is_calibrated_host(self) -> bool:
        return bool(self.provenance)

    def peak(self, dtype: str) -> Peak | None:
        """The peak of one device for a dtype, None where it is not known (show "n/a")."""
        return self.peaks.get(dtype)

    def require_rates(self) -> tuple[Rates, ...]:
        """The rates. Raises UserError for a machine that has none."""
        if not self.rates:
            raise UserError(
                f"machine {self.name!r} is known from publications only and its compute rates are n/a: add a "
                "[rates.*] table to a copy of its file, or use a file of 'janus calibrate'"
            )
        return self.rates

    def assumptions(self) -> dict[str, str]:
        """Every number of the file that nobody published: dotted name -> what is assumed."""
        return {name: source for name, source in self.sources.items() if source.startswith("assumed")}

    def devices_used(self, ranks_per_node: int, threads: int) -> int:
        """Devices of a node that this many ranks keep busy (a rank of a CPU host uses one core per thread)."""
        return min(self.devices_per_node, ranks_per_node * max(1, threads if self.is_calibrated_host else 1))


@dataclass(frozen=True, kw_only=True)
class FileVerdict:
    """What reading a machine file gave: the machine, or every wrong or missing quantity, one sentence each."""

    machine: Machine | None
    problems: tuple[str, ...]


def _read_fused(reader: Quantities, base: str) -> dict[str, dict[str, float]] | None:
    """Seconds per element of every kind and pass, or None where the table is absent."""
    if not reader.table(base):
        return None
    reader.only(base, FUSED_KINDS)
    for kind in FUSED_KINDS:
        reader.only(f"{base}.{kind}", PASS_NAMES)
    return {
        kind: {name: reader.required(f"{base}.{kind}.{name}", zero=True) for name in PASS_NAMES} for kind in FUSED_KINDS
    }


def _read_rates(reader: Quantities, label: str) -> Rates:
    base = f"rates.{label}"
    reader.only(base, [entry.name for entry in fields(Rates)])
    plain: dict[str, Any] = {
        name: reader.required(f"{base}.{name}", zero=name.endswith("_s") and "per" not in name) for name in RATE_NAMES
    }
    return Rates(
        ranks=reader.whole(f"{base}.ranks"),
        threads=reader.whole(f"{base}.threads"),
        fused_s=_read_fused(reader, f"{base}.fused_s"),
        fused_row_s=_read_fused(reader, f"{base}.fused_row_s"),
        families=_read_families(reader, f"{base}.families"),
        all_reduce_latency_s=reader.optional(f"{base}.all_reduce_latency_s", zero=True),
        all_reduce_bytes_per_s=reader.optional(f"{base}.all_reduce_bytes_per_s"),
        **plain,
        **_read_optional_rates(reader, base),
    )


def _read_families(reader: Quantities, base: str) -> dict[str, FamilyRates]:
    reader.only(base, FAMILIES)
    names = [entry.name for entry in fields(FamilyRates)]
    found = {}
    for family in reader.table(base):
        reader.only(f"{base}.{family}", names)
        values = {name: reader.required(f"{base}.{family}.{name}", zero="_per_s" not in name) for name in names}
        found[family] = FamilyRates(**values)
    return found


def _read_optional_rates(reader: Quantities, base: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: reader.optional(f"{base}.{name}", zero=not name.endswith("_per_s")) for name in OPTIONAL_RATE_NAMES
    }
    if (found["overlap_efficiency"] or 0.0) > 1:
        reader.problems.append(
            f"{base}.overlap_efficiency is {found['overlap_efficiency']}: it is a fraction, at most 1"
        )
    return found


def _read_start_up(reader: Quantities) -> dict[int, float]:
    """Seconds by number of ranks: [start_up] ranks_1 = {...}, ranks_2 = {...}."""
    seconds: dict[int, float] = {}
    for name in reader.table("start_up"):
        ranks = name.removeprefix("ranks_")
        if name.startswith("ranks_") and ranks.isdecimal() and int(ranks) > 0:
            value = reader.optional(f"start_up.{name}")
            if value is not None:
                seconds[int(ranks)] = value
        else:
            reader.problems.append(f"start_up.{name} is not a name of a machine file: use ranks_1, ranks_2, ...")
    return dict(sorted(seconds.items()))


def _read_peaks(reader: Quantities) -> dict[str, Peak]:
    table = reader.table("device.peaks")
    reader.only("device.peaks", PEAK_DTYPES)
    peaks = {}
    for dtype, entry in table.items():
        path = f"device.peaks.{dtype}"
        flops_per_s = reader.optional(path, extra=("name",))
        if flops_per_s is not None:
            name = entry.get("name", f"{dtype} peak of {reader.values.get('device_name')}")
            if not isinstance(name, str):
                reader.problems.append(f"{path} has the name {name!r}: it must be a text")
            peaks[dtype] = Peak(flops_per_s=flops_per_s, dtype=dtype, name=str(name), source=reader.sources[path])
    return peaks


def _read_network(reader: Quantities) -> Network:
    reader.only("network", [entry.name for entry in fields(Network)])
    return Network(
        node_latency_s=reader.optional("network.node_latency_s", zero=True),
        node_bytes_per_s=reader.optional("network.node_bytes_per_s"),
        fabric_latency_s=reader.optional("network.fabric_latency_s", zero=True),
        nic_bytes_per_s=reader.optional("network.nic_bytes_per_s"),
        nics_per_node=reader.whole("network.nics_per_node") if "nics_per_node" in reader.table("network") else None,
    )


def _read_fabric(reader: Quantities) -> FabricDescription | None:
    """The [fabric] table: its family is a text, everything else a number, word or list with a source."""
    table = reader.table("fabric")
    if not table:
        return None
    family = table.get("family")
    if not isinstance(family, str) or not family:
        reader.problems.append(f"fabric.family is {family!r}: it must be a text, the name of a topology")
        return None
    try:
        keys = allowed_keys(family)
    except UserError as error:
        reader.problems.append(f"fabric.family: {error}")
        return None
    reader.only("fabric", ("family", *keys))
    for key, must in keys.items():
        if must and key not in table:
            reader.problems.append(f'fabric.{key} is missing: add {{value = ..., source = "..."}}')
    given = {name: reader.free(f"fabric.{name}") for name in table if name in keys}
    numbers = {name: value for name, value in given.items() if value is not None}
    reader.problems += wrong_kinds(family, numbers)
    return FabricDescription(family=family, numbers=numbers)


def _read_transport(reader: Quantities) -> Transport | None:
    """The [transport] table; what it leaves out has the default of Transport (costs nothing)."""
    table = reader.table("transport")
    if not table:
        return None
    reader.only("transport", [entry.name for entry in fields(Transport)])
    numbers = {
        name: reader.optional(f"transport.{name}", zero=not name.endswith(("_per_s", "_fraction")), infinite=True)
        for name in table
    }
    known = {name: value for name, value in numbers.items() if value is not None}
    for name, value in known.items():
        if name.endswith("_fraction") and value > 1:
            reader.problems.append(f"transport.{name} is {value}: it is a fraction, at most 1")
    return None if reader.problems else Transport(**known)


def read_machine(values: Mapping[str, Any]) -> FileVerdict:
    """The machine of the nested values of a machine file, or all that is wrong with them."""
    if values.get("schema") != SCHEMA:
        sentence = f"the file has schema {values.get('schema')!r}: a machine file has schema {SCHEMA!r}"
        return FileVerdict(machine=None, problems=(sentence,))
    reader = Quantities(values)
    reader.only("", FILE_KEYS)
    reader.only("device", DEVICE_KEYS)
    peaks, network = _read_peaks(reader), _read_network(reader)
    fabric, transport = _read_fabric(reader), _read_transport(reader)
    rates = tuple(_read_rates(reader, label) for label in reader.table("rates"))
    provenance = dict(reader.table("provenance"))
    if provenance and not rates:
        reader.problems.append("a calibrated host has no [rates.*] table: calibrate it again with 'janus calibrate'")
    written = str(values.get("date", provenance.get("date", "")))
    if "date" in values and not YEAR.search(written):
        reader.problems.append(f'date is {values["date"]!r}: name at least the year, as in date = "2025"')
    machine = Machine(
        name=reader.text("name"),
        description=reader.text("description"),
        device_name=reader.text("device_name"),
        nodes=reader.whole("nodes"),
        devices_per_node=reader.whole("devices_per_node"),
        memory_bytes_per_node=reader.required("device.memory_bytes_per_node"),
        memory_bytes_per_s=reader.required("device.memory_bytes_per_s"),
        second_memory_bytes_per_node=reader.optional("device.second_memory_bytes_per_node") or 0.0,
        second_memory_bytes_per_s=reader.optional("device.second_memory_bytes_per_s"),
        collectives=read_collectives(reader), start_up_s=_read_start_up(reader),
        peaks=peaks, network=network, rates=rates, fabric=fabric, transport=transport,
        sources=reader.sources,
        dates={**dict.fromkeys(reader.sources, written), **reader.dates} if written else reader.dates,
        quality=reader.quality,
        provenance=provenance,
    )  # fmt: skip
    return FileVerdict(machine=None if reader.problems else machine, problems=tuple(reader.problems))


def machine_from_mapping(values: Mapping[str, Any], origin: str) -> Machine:
    """A Machine of the nested values of a machine file. Raises UserError naming ``origin`` and the number."""
    verdict = read_machine(values)
    if verdict.machine is None:
        others = len(verdict.problems) - 1
        more = f" ({others} more: 'janus machines check {origin}')" if others else ""
        raise UserError(f"{origin}: {verdict.problems[0]}{more}")
    return verdict.machine


def catalogue_names() -> list[str]:
    """Names of the machines that come with the program."""
    return sorted(path.stem for path in CATALOGUE.glob("*.toml"))


def machine_path(name_or_path: str | Path) -> Path:
    """The file of a machine of the catalogue by name, or of anything with a slash or ending in .toml by path.

    Raises UserError for an unknown name (with the nearest known).
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text or isinstance(name_or_path, Path):
        return Path(text)
    path = CATALOGUE / f"{text}.toml"
    if not path.exists():
        names = catalogue_names()
        near = difflib.get_close_matches(text, names, n=1)
        repair = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}, or a path ending in .toml"
        raise UserError(f"no machine {text!r} in the catalogue: {repair}")
    return path


def load_machine(name_or_path: str | Path) -> Machine:
    """A machine of the catalogue by name, or any machine file by path (anything with a slash or ending in .toml).

    Raises UserError for an unknown name (with the nearest known), a missing or malformed file.
    """
    path = machine_path(name_or_path)
    return machine_from_mapping(read_toml(path), str(path))


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_inline(entry) for entry in value)}]"
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
