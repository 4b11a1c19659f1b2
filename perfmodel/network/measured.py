"""Reads tables of collectives measured on real machines. It owns the two layouts of columns and what their bytes mean.

It does not know which schedule an algorithm's name stands for (``measured_names``) nor what anything should cost.

Layouts, told apart by their columns:
- ``pico`` (HLC-Lab/pico, MIT): one row per algorithm and size, ``median_us`` of the slowest rank's time over the
  iterations; ``bytes`` is the size m of ``perfmodel.network.schedule`` (all-to-all: all that one rank sends, its own
  part included; all-gather: the gathered result; else the buffer of one rank).
- ``crab`` (HLC-Lab/CRAB, MIT): ``msgsize_bytes`` per pair of ranks for the all-to-all, and the gathered result for the
  all-gather (so inferred: (n - 1) / n of it over the time is the bandwidth of the NIC); one rank per node.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus.errors import UserError

PICO_COLUMNS = ("system", "collective", "nodes", "ranks_per_node", "ranks", "bytes", "algorithm", "median_us")
CRAB_COLUMNS = ("system", "benchmark", "victim_nodes", "msgsize_bytes", "baseline_median_max_us")
COLLECTIVE_NAMES = {
    "ALLREDUCE": "all_reduce", "ALLGATHER": "all_gather", "REDUCE_SCATTER": "reduce_scatter",
    "ALLTOALL": "all_to_all", "BCAST": "broadcast",
}  # fmt: skip
CRAB_BENCHMARKS = {"a2a_comm_only": ("all_to_all", "linear"), "agtr_comm_only": ("all_gather", "ring")}
SPLIT_BY_RANKS = ("all_gather", "reduce_scatter", "all_to_all")
ITEM_BYTES = 4  # int32: less than one item per rank is a call that moves nothing


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured time. size_bytes: the collective's m. stack: the software that was timed (``mpi``: of the host's
    memory, ``mpi-gpu``, ``nccl``, ``crab``). torus: shape of the job's allocation, empty where the file names none.
    line: in the file, the header is line 1."""

    file: str
    line: int
    system: str
    stack: str
    collective: str
    name: str
    num_nodes: int
    ranks_per_node: int
    size_bytes: float
    measured_s: float
    torus: tuple[int, ...] = ()
    notes: str = ""

    @property
    def num_ranks(self) -> int:
        """Ranks of the collective."""
        return self.num_nodes * self.ranks_per_node


class _Row:
    """One line of a table; turns its texts into numbers or into errors that name file, line and column."""

    def __init__(self, path: Path, line: int, values: dict[str, str | None]) -> None:
        self.path, self.line, self.values = path, line, values

    def text(self, column: str) -> str:
        value = (self.values.get(column) or "").strip()
        if not value:
            raise self.error(column, "is empty: every measured row needs it")
        return value

    def optional(self, column: str) -> str:
        return (self.values.get(column) or "").strip()

    def number(self, column: str) -> float:
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            raise self.error(column, f"is '{text}': a number is needed") from None
        if not math.isfinite(value) or value <= 0:
            raise self.error(column, f"is {text}: it must be a finite number above 0")
        return value

    def count(self, column: str) -> int:
        value = self.number(column)
        if value != int(value):
            raise self.error(column, f"is {self.text(column)}: a whole number is needed")
        return int(value)

    def error(self, column: str, problem: str) -> UserError:
        return UserError(f"{self.path}, line {self.line}, column '{column}' {problem}")


def read_measurements(path: Path) -> list[Measurement]:
    """The measured rows of a CSV file in either layout, in the file's order. Rows that moved nothing are left out
    (fewer than one item per rank, where a collective splits its buffer by ranks; a single rank).

    Raises UserError naming file, line and column of what cannot be read.
    """
    lines = _lines(path)
    reader = csv.DictReader(lines)
    convert = _layout(path, reader.fieldnames or ())
    measurements = []
    for values in reader:
        row = _Row(path, reader.line_num, values)
        if None in values:
            raise UserError(f"{path}, line {row.line} has more fields than the header names: repair or quote the line")
        one = convert(row)
        if one is not None:
            measurements.append(one)
    if not measurements:
        raise UserError(f"{path} has no measured rows below its header: give a table with at least one")
    return measurements


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a CSV file of measured collectives") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a text file ({error}): give a CSV file") from None


def _layout(path: Path, columns: Sequence[str]) -> Callable[[_Row], Measurement | None]:
    if set(PICO_COLUMNS) <= set(columns):
        return _pico
    if set(CRAB_COLUMNS) <= set(columns):
        return _crab
    nearest = min((PICO_COLUMNS, CRAB_COLUMNS), key=lambda known: len(set(known) - set(columns)))
    missing = ", ".join(name for name in nearest if name not in columns)
    raise UserError(
        f"{path}, line 1 lacks the columns {missing}: a table needs either {', '.join(PICO_COLUMNS)} "
        f"or {', '.join(CRAB_COLUMNS)}"
    )


def _pico(row: _Row) -> Measurement | None:
    nodes, per_node, ranks = row.count("nodes"), row.count("ranks_per_node"), row.count("ranks")
    if ranks != nodes * per_node:
        raise row.error("ranks", f"is {ranks}: {nodes} nodes with {per_node} ranks each make {nodes * per_node}")
    collective = row.text("collective")
    collective = COLLECTIVE_NAMES.get(collective.upper(), collective.lower())
    size_bytes, measured_s = row.number("bytes"), 1e-6 * row.number("median_us")
    if ranks == 1 or (collective in SPLIT_BY_RANKS and size_bytes < ITEM_BYTES * ranks):
        return None
    notes = row.optional("notes")
    notes = "" if notes == "null" else notes
    return Measurement(
        file=str(row.path), line=row.line, system=row.text("system").lower(), collective=collective,
        stack=_stack(row.optional("gpu"), notes, row.text("algorithm")),
        name=row.text("algorithm"), num_nodes=nodes, ranks_per_node=per_node, size_bytes=size_bytes,
        measured_s=measured_s, torus=_torus(row), notes=notes,
    )  # fmt: skip


def _stack(gpu: str, notes: str, name: str) -> str:
    if "nccl" in notes or "nccl" in name:
        return "nccl"
    return "mpi-gpu" if gpu.lower() in ("yes", "true", "1") else "mpi"


def _torus(row: _Row) -> tuple[int, ...]:
    text = row.optional("torus")
    if text in ("", "null"):
        return ()
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise row.error("torus", f"is '{text}': a shape like 4x4x4 is needed, or nothing")
    shape = tuple(int(part) for part in parts)
    if math.prod(shape) != row.count("nodes"):
        raise row.error("torus", f"is '{text}': that is {math.prod(shape)} nodes, the row has {row.count('nodes')}")
    return shape


def _crab(row: _Row) -> Measurement | None:
    benchmark = row.text("benchmark")
    collective, name = CRAB_BENCHMARKS.get(benchmark, (benchmark, benchmark))
    nodes = row.count("victim_nodes")
    size_bytes = row.number("msgsize_bytes") * (nodes if collective == "all_to_all" else 1)
    measured_s = 1e-6 * row.number("baseline_median_max_us")
    if nodes == 1:
        return None
    return Measurement(
        file=str(row.path), line=row.line, system=row.text("system").lower(), stack="crab", collective=collective,
        name=name, num_nodes=nodes, ranks_per_node=1, size_bytes=size_bytes, measured_s=measured_s,
    )  # fmt: skip
