"""Plays what one rehearsed rank did on another machine: its compute intervals, its collectives priced there, overlap.

A rehearsal (``janus rehearse``) is the list of the collectives of one real rank of a layout, with the seconds that it
computed before each start and before each wait. Here every interval becomes an operation of the compute stream and
every collective one of its axis's stream, after the interval that ended with its start; what follows its wait needs it.
It does not own streams (``network/streams``), prices (``prices``), rates of computing (``compute_time``) or measuring
(``janus/rehearse.py``).

Compute seconds are as measured, or those times what the target's rates predict over what this host's rates predict
("scaled"), or as the target's rates predict, divided among intervals as measured ("modelled"). Communication is always
predicted. A rehearsal of fewer blocks is played at two depths and drawn out in a straight line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig, from_mapping
from janus.errors import UserError
from janus.layout import AxisName, Layout
from perfmodel.compute_time import compute_seconds, optimizer_seconds, ranks_per_node, rates_for
from perfmodel.machine import Machine, Rates
from perfmodel.network.noise import Noise
from perfmodel.network.streams import COMPUTE, Operation, Span, simulate_streams
from perfmodel.network.training_step import representatives, represented_groups
from perfmodel.prices import FabricPrices, Prices, prices_for, size_of
from perfmodel.products import Counts
from perfmodel.step_work import RunSettings
from perfmodel.traffic_parameters import kept_pieces

SCHEMA = "janus.rehearsal/1"
Compute = Literal["measured", "scaled", "modelled"]
TIMED_PHASES = ("data", "FE", "FF", "BF_BE", "sync", "optimizer", "outside")
REPRESENTED_UNITS = 8


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """One depth of a rehearsal: what the rank did in its typical step. num_blocks: rehearsed ones.

    micro_batches: rows of this rank; calls, events: as ``janus.parallel.rehearsed_axis.Timeline`` wrote them; phase_s:
    seconds computed, by the trainer's phases; largest_work, work: edges + angles of the heaviest data group and ours.
    """

    model: ModelConfig
    layout: Layout
    rank: int
    settings: RunSettings
    with_optimizer: bool
    threads: int
    device_name: str
    num_blocks: int
    micro_batches: tuple[Counts, ...]
    calls: tuple[Mapping[str, Any], ...] = field(repr=False)
    events: tuple[Mapping[str, Any], ...] = field(repr=False)
    phase_s: Mapping[str, float]
    work: float
    largest_work: float
    fewer: Rehearsal | None = field(default=None, repr=False)

    @property
    def compute_s(self) -> float:
        """Seconds that the rank computed."""
        return sum(self.phase_s.values())


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A rehearsal on a machine. Seconds of one step.

    step_s: until the slowest rank is done; compute_s: of the rehearsed rank; exposed_s: by axis, what it waits for a
    collective with nothing left to compute; late_s: of that, waiting for slower ranks; transfer_s: by axis, all seconds
    of collectives, hidden or not; rest_s: waits at the end of the step for slower ranks' computing.
    phase_s: of the rehearsed rank, with what it waits in each. notes: what was assumed. extrapolated: whether drawn out
    from fewer blocks. spans: for a trace, of the rehearsed depth.
    """

    machine: str
    compute: Compute
    step_s: float
    compute_s: float
    exposed_s: dict[str, float]
    late_s: float
    rest_s: float
    transfer_s: dict[str, float]
    phase_s: dict[str, float]
    collectives: list[dict[str, Any]]
    notes: list[str]
    extrapolated: bool = False
    spans: tuple[Span, ...] = field(default=(), repr=False)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values; predicted throughout, but for compute seconds where they are "measured"."""
        return {
            "machine": self.machine, "compute": self.compute, "communication": "predicted",
            "extrapolated_blocks": self.extrapolated, "step_s": self.step_s, "compute_s": self.compute_s,
            "exposed_s": self.exposed_s, "exposed_total_s": sum(self.exposed_s.values()), "late_s": self.late_s,
            "rest_s": self.rest_s, "transfer_s": self.transfer_s, "phase_s": self.phase_s,
            "collectives": self.collectives, "notes": self.notes,
        }  # fmt: skip


def read_rehearsal(path: Path) -> Rehearsal:
    """A file that ``janus rehearse`` wrote. Raises UserError when it is missing or something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no rehearsal {path}: make one with 'janus rehearse'") from None
    except (OSError, ValueError) as error:
        raise UserError(f"rehearsal {path} cannot be read ({error}): make it again with 'janus rehearse'") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else None
        raise UserError(f"{path} has schema {found!r}, not {SCHEMA!r}: make it again with 'janus rehearse'")
    return rehearsal_of(document)


def rehearsal_of(document: Mapping[str, Any]) -> Rehearsal:
    """From the file's content. Raises UserError where a part is missing."""
    try:
        fewer = None if document["fewer_blocks"] is None else _depth(document, document["fewer_blocks"], None)
        return _depth(document, document, fewer)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the rehearsal lacks {error}: make it again with 'janus rehearse'") from None


def _depth(document: Mapping[str, Any], depth: Mapping[str, Any], fewer: Rehearsal | None) -> Rehearsal:
    step, shares = depth["step"], document["work"]
    return Rehearsal(
        model=from_mapping(ModelConfig, document["model"], "model"), layout=Layout(**document["layout"]),
        rank=document["rank"], settings=RunSettings(**document["settings"]),
        with_optimizer=document["with_optimizer"], threads=document["threads"], device_name=document["device_name"],
        num_blocks=depth["num_blocks"], micro_batches=tuple(_counts(one) for one in depth["micro_batches"]),
        calls=tuple(step["calls"]), events=tuple(step["events"]), phase_s=step["phase_s"],
        work=shares["rank"], largest_work=shares["largest"], fewer=fewer,
    )  # fmt: skip


def _counts(row: Mapping[str, Any]) -> Counts:
    names = [name for name in Counts.__dataclass_fields__ if name in row]
    return Counts(**{name: row[name] for name in names})


def replay(
    rehearsal: Rehearsal,
    machine: Machine,
    *,
    compute: Compute = "measured",
    host: Machine | None = None,
    prices: Prices | None = None,
    slowest_over_this: float | None = None,
    noise: Noise | None = None,
    overlap: bool = True,
    one_stream: bool = False,
    record: bool = False,
) -> Replay:
    """The rehearsed step on a machine.

    compute: see the module; "scaled" needs host, the calibrated host of the rehearsal. slowest_over_this: compute
    seconds of the slowest rank over the rehearsed one's (None: by the work of the heaviest data group, 1 where that is
    the rehearsed one). noise: of all ranks' computing. overlap: False: every collective is waited for at once.
    one_stream: one stream for all collectives. record: keep spans. Raises UserError where the machine lacks rates, a
    fabric or nodes.
    """
    depths = [one for one in (rehearsal, rehearsal.fewer) if one is not None]
    rates: Rates | None = None
    notes: list[str] = []
    if machine.rates or compute != "measured":
        rates, notes = rates_for(machine, ranks_per_node(machine, rehearsal.layout.world_size), rehearsal.threads)
    if prices is None:
        transport = rehearsal.settings.transport
        prices = FabricPrices(machine) if rates is None else prices_for(machine, rates=rates, transport=transport)
    played = []
    for depth in depths:
        factors, said = compute_factors(depth, machine, compute, host, rates)
        played.append(_played(
            depth, machine, compute, factors, prices, slowest_over_this, noise, overlap, one_stream, record
        ))  # fmt: skip
        where = f"{depth.num_blocks} blocks: " if len(depths) > 1 and compute != "measured" else ""
        notes += [where + note for note in said if where + note not in notes]
    notes += [note for note in prices.notes if note not in notes]
    result = played[0]
    if len(played) == 2:
        result, sentence = drawn_out(played[0], played[1], depths[0], depths[1])
        notes.append(sentence)
    result.notes[:] = notes
    return result


def compute_factors(
    rehearsal: Rehearsal, machine: Machine, compute: Compute, host: Machine | None, rates: Rates | None
) -> tuple[dict[str, float], list[str]]:
    """What measured compute seconds of each phase are multiplied by, and how that was found."""
    if compute == "measured":
        said = (
            f"compute as measured on {rehearsal.device_name}, {rehearsal.threads} threads: not that of {machine.name}"
        )
        return dict.fromkeys(TIMED_PHASES, 1.0), [said]
    assert rates is not None, machine.name
    target = predicted_seconds(rehearsal, rates)
    if compute == "modelled":
        base = {phase: rehearsal.phase_s.get(phase, 0.0) for phase in target}
        said = f"compute as the rates of {machine.name} predict, divided among intervals as measured"
    else:
        if host is None:
            raise UserError(
                "compute 'scaled' needs the machine file of the host that rehearsed: make one with 'janus calibrate' "
                "and pass it with --host"
            )
        _require_rehearsed_on(rehearsal, host)
        host_rates, _ = rates_for(host, 1, rehearsal.threads)
        base = predicted_seconds(rehearsal, host_rates)
        said = f"measured compute x predicted on {machine.name} / predicted on {host.name}"
    whole = sum(target.values()) / max(sum(base.values()), 1e-12)
    factors = {phase: target[phase] / base[phase] if base[phase] > 0 else whole for phase in target}
    rest = {phase: whole for phase in TIMED_PHASES if phase not in factors}
    shown = ", ".join(f"{phase} {factor:.3g}" for phase, factor in factors.items())
    return factors | rest, [f"{said}: {shown}, other phases {whole:.3g}"]


def _require_rehearsed_on(rehearsal: Rehearsal, host: Machine) -> None:
    """Raise UserError where a calibrated file names another device than the one that rehearsed."""
    devices = [str(host.provenance[key]) for key in ("cpu", "gpu") if host.provenance.get(key) is not None]
    known = rehearsal.device_name != "n/a"
    if known and host.is_calibrated_host and not any(rehearsal.device_name in device for device in devices):
        raise UserError(
            f"{host.name} was calibrated on {' and '.join(devices) or 'an unnamed device'}, the rehearsal ran on "
            f"{rehearsal.device_name}: give the machine file of the host that rehearsed"
        )


def predicted_seconds(rehearsal: Rehearsal, rates: Rates) -> dict[str, float]:
    """Of FE, FF, BF_BE and the optimizer, for the rehearsed depth."""
    settings, model = rehearsal.settings, _at_depth(rehearsal)
    seconds, _ = compute_seconds(
        model, rehearsal.micro_batches, rates, dtype=settings.dtype, recompute=settings.recompute
    )
    if rehearsal.with_optimizer:
        numel, tensors = kept_pieces(model, rehearsal.layout, rehearsal.rank, settings.expert_strategy)
        seconds = seconds | {
            "optimizer": optimizer_seconds(
                numel, tensors, rates, dtype=settings.dtype, clips=settings.clips, averages=settings.averages
            )
        }
    return seconds


def _at_depth(rehearsal: Rehearsal) -> ModelConfig:
    return replace(rehearsal.model, num_blocks=rehearsal.num_blocks)


def program_of(
    rehearsal: Rehearsal, call_s: Sequence[float], factors: Mapping[str, float], *, overlap: bool, one_stream: bool
) -> list[Operation]:
    """The operations of the rank. call_s: seconds of each call. A wait is an operation of compute that takes none."""
    operations: list[Operation] = []
    sent: dict[int, int] = {}
    last: tuple[int, ...] = ()

    def compute(name: str, seconds: float, after: tuple[int, ...]) -> None:
        nonlocal last
        operations.append(Operation(name=name, stream=COMPUTE, seconds=seconds, after=(*last, *after)))
        last = (len(operations) - 1,)

    for event in rehearsal.events:
        during, number = event["during"], event["call"]
        if event["compute_s"] > 0:
            compute(during, event["compute_s"] * factors[during], ())
        if event["at"] == "mark":
            continue
        call = rehearsal.calls[number]
        name = f"{call['phase']} {call['axis']} {call['collective']}"
        if event["at"] == "start":
            stream = "communication" if one_stream else call["axis"]
            operations.append(
                Operation(name=name, stream=stream, seconds=call_s[number], axis=call["axis"], after=last)
            )
            sent[number] = len(operations) - 1
        if event["at"] == "wait" or not overlap:
            compute(f"{during}: wait for {name}", 0.0, (sent[number],))
    return operations


def _played(
    rehearsal: Rehearsal, machine: Machine, compute: Compute, factors: Mapping[str, float], prices: Prices,
    slowest_over_this: float | None, noise: Noise | None, overlap: bool, one_stream: bool, record: bool,
) -> Replay:  # fmt: skip
    call_s = _call_seconds(rehearsal, prices)
    program = program_of(rehearsal, call_s, factors, overlap=overlap, one_stream=one_stream)
    slowest = slowest_over_this
    if slowest is None:
        slowest = max(1.0, rehearsal.largest_work / rehearsal.work) if rehearsal.work else 1.0
    groups, factor = _ranks_played(rehearsal.layout, slowest, noise)
    outcome = simulate_streams(program, groups, factor, record=True)
    waits = _waits(program, [span for span in outcome.spans if span.rank == 0])
    phase_s = dict.fromkeys(TIMED_PHASES, 0.0)
    for operation in program:
        if operation.axis is None:
            phase_s[operation.name.partition(":")[0]] += operation.seconds * float(factor[0])
    for phase, _, waited_s, _ in waits:
        phase_s[phase] += waited_s
    exposed_s: dict[str, float] = {}
    for _, axis, waited_s, _ in waits:
        exposed_s[axis] = exposed_s.get(axis, 0.0) + waited_s
    return Replay(
        machine=machine.name, compute=compute, step_s=outcome.step_s, compute_s=float(outcome.compute_s[0]),
        exposed_s=exposed_s, late_s=sum(late_s for *_, late_s in waits),
        rest_s=outcome.step_s - float(outcome.finish_s[0]), transfer_s=outcome.transfer_s, phase_s=phase_s,
        collectives=_table(rehearsal, call_s), notes=[], spans=outcome.spans if record else (),
    )  # fmt: skip


def _call_seconds(rehearsal: Rehearsal, prices: Prices) -> list[float]:
    """Of every call, all groups of its axis at once; sized by the larger of what the rank sends and receives."""
    seconds = np.zeros(len(rehearsal.calls))
    kinds: dict[tuple[AxisName, str], list[int]] = {}
    for number, call in enumerate(rehearsal.calls):
        kinds.setdefault((call["axis"], call["collective"]), []).append(number)
    for (axis, collective), numbers in kinds.items():
        ranks = rehearsal.calls[numbers[0]]["ranks"]
        moved = [max(rehearsal.calls[n]["sent_bytes"], rehearsal.calls[n]["received_bytes"]) for n in numbers]
        sizes, place = np.unique(size_of(collective, moved, ranks), return_inverse=True)
        seconds[numbers] = prices.seconds(rehearsal.layout, axis, collective, sizes)[place]
    return seconds.tolist()


def _ranks_played(
    layout: Layout, slowest: float, noise: Noise | None
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.float64]]:
    """Groups by axis and compute factors of the ranks that are played, the rehearsed one first.

    Without noise: the rehearsed rank, and one that is slower where there is one, in one group of every axis. With it:
    some whole units, the slowest among them.
    """
    names = ("shard", "graph", "expert", "shard_copies", "expert_copies", "world")
    if noise is None:
        factor = np.array([1.0] if slowest <= 1 else [1.0, slowest])
        return {name: np.zeros(len(factor), np.int64) for name in names}, factor
    everyone = noise.compute_factor(layout.world_size)
    units = representatives(everyone, layout, REPRESENTED_UNITS)
    ranks = np.array([[layout.rank_at(int(unit), place) for place in range(layout.unit)] for unit in units]).ravel()
    groups = represented_groups(layout, len(units)) | {"world": np.zeros(len(ranks), np.int64)}
    return groups, everyone[ranks]


def _waits(program: Sequence[Operation], spans: Sequence[Span]) -> list[tuple[str, str, float, float]]:
    """(phase, axis, seconds, of these for slower ranks) of every wait of a rank that found its result missing."""
    computed = [operation for operation in program if operation.stream == COMPUTE]
    ran = [span for span in spans if span.stream == COMPUTE]
    late: dict[str, list[Span]] = {}
    for span in spans:
        if span.stream != COMPUTE:
            late.setdefault(span.stream, []).append(span)
    on_stream: dict[int, Span] = {}
    for number, operation in enumerate(program):
        if operation.stream != COMPUTE:
            on_stream[number] = late[operation.stream].pop(0)
    waits = []
    for before, operation, span in zip([None, *ran[:-1]], computed, ran, strict=True):
        gap_s = span.begin_s - (before.end_s if before is not None else 0.0)
        awaited = [number for number in operation.after if program[number].axis is not None]
        if gap_s > 0 and awaited:
            axis = program[awaited[0]].axis
            assert axis is not None
            late_s = min(gap_s, on_stream[awaited[0]].waited_s)
            waits.append((operation.name.partition(":")[0], axis, gap_s, late_s))
    return waits


def _table(rehearsal: Rehearsal, call_s: Sequence[float]) -> list[dict[str, Any]]:
    """Rows by phase, axis and collective: calls, bytes sent, predicted seconds."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for call, seconds in zip(rehearsal.calls, call_s, strict=True):
        key = (call["phase"], call["axis"], call["collective"])
        row = rows.setdefault(key, {
            "phase": key[0], "axis": key[1], "collective": key[2], "ranks": call["ranks"], "calls": 0, "sent_bytes": 0,
            "seconds": 0.0,
        })  # fmt: skip
        row["calls"] += 1
        row["sent_bytes"] += call["sent_bytes"]
        row["seconds"] += seconds
    return [rows[key] for key in sorted(rows)]


def drawn_out(more: Replay, less: Replay, deep: Rehearsal, shallow: Rehearsal) -> tuple[Replay, str]:
    """What the model's number of blocks would take: a straight line through two depths. And what to say of it.

    Raises UserError where the deeper rehearsal was not the slower one.
    """
    if more.compute_s <= less.compute_s:
        raise UserError(
            f"the rehearsal of {deep.num_blocks} blocks computed {more.compute_s:.3g} s and that of "
            f"{shallow.num_blocks} {less.compute_s:.3g} s, so the host was busy: rehearse again with more --steps, or "
            "replay with --compute modelled"
        )
    times = (deep.model.num_blocks - deep.num_blocks) / (deep.num_blocks - shallow.num_blocks)

    def line(above: float, below: float) -> float:
        return above + times * (above - below)

    def lines(above: Mapping[str, float], below: Mapping[str, float]) -> dict[str, float]:
        return {name: max(0.0, line(above.get(name, 0.0), below.get(name, 0.0))) for name in {**above, **below}}

    compute_s = line(more.compute_s, less.compute_s)
    drawn = Replay(
        machine=more.machine, compute=more.compute, step_s=max(compute_s, line(more.step_s, less.step_s)),
        compute_s=compute_s, exposed_s=lines(more.exposed_s, less.exposed_s),
        late_s=max(0.0, line(more.late_s, less.late_s)), rest_s=max(0.0, line(more.rest_s, less.rest_s)),
        transfer_s=lines(more.transfer_s, less.transfer_s), phase_s=lines(more.phase_s, less.phase_s),
        collectives=more.collectives, notes=[], extrapolated=True, spans=more.spans,
    )  # fmt: skip
    said = (
        f"{deep.model.num_blocks} blocks drawn out from rehearsals of {shallow.num_blocks} and {deep.num_blocks}; "
        f"the list of collectives is that of {deep.num_blocks}"
    )
    held = deep.settings.gathered_blocks
    if deep.layout.shard_degree > 1 and held and shallow.num_blocks < held <= deep.model.num_blocks - 1:
        said += f"; blocks beyond {held} are gathered once per phase, which so few blocks do not show"
    return drawn, said
