"""``janus rehearse``: one real rank of a layout of any size on this host, written down, and played on any machine.

It owns the request and the order of things; not the rehearsing (``janus/rehearse.py``) nor the playing
(``perfmodel/rehearsal.py``). Exit codes: 0 done, 2 a user's mistake.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from janus.cli.train import OVERRIDE, read_plan
from janus.errors import UserError
from janus.layout import Layout
from janus.parallel.launcher import find_launcher
from janus.train.config import TrainConfig, load_train_config

if TYPE_CHECKING:
    from janus.parallel.communication import Communicator
    from janus.rehearse import Rehearsal, RehearsalJob
    from janus.train.dataset import Subset
    from perfmodel.machine import Machine
    from perfmodel.rehearsal import Rehearsal as RecordedRehearsal

EXAMPLES = """examples:
  janus rehearse --plan plan.json --data alloys.store                      a rank of the heaviest unit of a plan
  janus rehearse --data alloys.store --model matris-moe-tiny --world-size 64 --rank 5 --batch.structures=512 \\
      --parallel.unit=8 --parallel.shard_degree=8 --parallel.graph_degree=4 --parallel.expert_degree=8
  janus rehearse --config run.toml --world-size 327680 --blocks 2 --no-optimizer --replay lineshine
  janus rehearse replay rehearsal.json --machine lineshine --compute modelled --trace step.trace.json
  janus rehearse replay rehearsal.json --machine lineshine --compute scaled --host host.toml --json

One process: not under mpiexec. Any setting can be given as --SECTION.FIELD=VALUE, as for 'janus train'. Nothing is
trained and no checkpoint is written. A batch larger than the data is drawn with replacement, and the file says so.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _add_replay_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compute", choices=("measured", "scaled", "modelled"), default="measured",
                        help="compute seconds in a replay: as measured here (default); measured x predicted there / "
                             "predicted here (needs --host); as predicted there")  # fmt: skip
    parser.add_argument("--host", metavar="HOST.toml", help="this host's machine file (janus calibrate)")
    parser.add_argument("--slowest", type=float, metavar="X",
                        help="compute of the slowest rank / this one's (default: by work)")  # fmt: skip
    parser.add_argument("--noise", type=float, default=0.0, metavar="D",
                        help="relative deviation of all ranks' computing (default 0)")  # fmt: skip
    parser.add_argument("--no-overlap", action="store_true", help="wait for every collective at once")
    parser.add_argument("--one-stream", action="store_true", help="all collectives in one stream, not one per axis")
    parser.add_argument("--trace", type=Path, metavar="FILE.json", help="write the replay as a trace (ui.perfetto.dev)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def build_parser() -> argparse.ArgumentParser:
    """Options of ``janus rehearse``."""
    parser = _Parser(
        prog="janus rehearse",
        description="Run one rank of a layout without the others: kernels, memory and the list of its collectives are "
        "real, the network is not there. 'janus rehearse replay FILE' plays the list on a machine.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--data", metavar="PATH", help="a store, or any file that ASE reads")
    parser.add_argument("--model", metavar="PRESET", help="a name from 'janus model list'")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings")
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="a plan made by 'janus plan'")
    parser.add_argument("--world-size", type=int, metavar="N", help="ranks of the job (default: the plan's)")
    parser.add_argument("--rank", type=int, metavar="R", help="rank to rehearse (default: one of the heaviest unit)")
    parser.add_argument("--step", type=int, default=0, metavar="S", help="step of the run (default 0)")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="steps to measure (default 3)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: run.device")
    parser.add_argument("--blocks", type=int, metavar="K",
                        help="rehearse K blocks, and K-1, and draw the others out in a straight line")  # fmt: skip
    parser.add_argument("--no-optimizer", action="store_true", help="leave the update and its memory out")
    parser.add_argument("--max-memory-gb", type=float, metavar="GB", help="most to use (default: what is free)")
    parser.add_argument("--out", type=Path, default=Path("rehearsal.json"), metavar="FILE.json",
                        help="file to write (default rehearsal.json)")  # fmt: skip
    parser.add_argument("--replay", metavar="MACHINE", help="play it at once on a machine (name or file)")
    parser.add_argument("--one-depth", action="store_true", help=argparse.SUPPRESS)  # nothing is drawn out
    _add_replay_options(parser)
    return parser


def build_replay_parser() -> argparse.ArgumentParser:
    """Options of ``janus rehearse replay``."""
    parser = _Parser(
        prog="janus rehearse replay", description="Play a rehearsal on a machine of the catalogue or a machine file.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("file", type=Path, metavar="FILE.json", help="what 'janus rehearse' wrote")
    parser.add_argument(
        "--machine", required=True, metavar="MACHINE", help="a name of the catalogue, or a machine file"
    )
    _add_replay_options(parser)
    return parser


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options, resolved settings of the job, and its layout."""

    options: argparse.Namespace
    config: TrainConfig
    layout: Layout


def read_request(arguments: list[str]) -> Request:
    """Raises UserError. Never imports torch."""
    options, words = build_parser().parse_known_args(arguments)
    unknown = [word for word in words if not OVERRIDE.fullmatch(word)]
    if unknown:
        raise UserError(f"unknown option {unknown[0]!r}: settings are written --SECTION.FIELD=VALUE")
    plan = read_plan(options.plan) if options.plan is not None else {}
    overlay: dict[str, Any] = {}
    if options.model is not None:
        overlay["model"] = {"preset": options.model}
    if options.data is not None:
        overlay["data"] = {"path": options.data}
    if options.device is not None:
        overlay["run"] = {"device": options.device}
    config = load_train_config(options.config, plan.get("train", {}), overlay, overrides=words)
    for name, least in (("steps", 1), ("step", 0), ("blocks", 1), ("world_size", 1), ("max_memory_gb", 1e-9)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be {'above 0' if least else '0 or more'}")
    if options.blocks is not None and options.blocks > config.model.num_blocks:
        raise UserError(f"--blocks is {options.blocks} but the model has {config.model.num_blocks}: use fewer")
    _check_replay(options, options.replay)
    return Request(options=options, config=config, layout=config.parallel.layout(_world_size(options, plan, config)))


def _world_size(options: argparse.Namespace, plan: dict[str, Any], config: TrainConfig) -> int:
    planned = plan.get("world_size")
    if options.world_size is not None:
        if planned is not None and planned != options.world_size:
            raise UserError(
                f"--world-size is {options.world_size} but the plan is for {planned} ranks: keep one of them"
            )
        return int(options.world_size)
    if planned is not None:
        return int(planned)
    if config.parallel.replicas is None:
        raise UserError("the number of ranks is not known: add --world-size N, --plan, or --parallel.replicas=N")
    return config.parallel.unit * config.parallel.replicas


def _check_replay(options: argparse.Namespace, machine: str | None) -> None:
    if machine is None and options.trace is not None:
        raise UserError("--trace is of a replay: add --replay MACHINE")
    if options.slowest is not None and options.slowest < 1:
        raise UserError(f"--slowest is {options.slowest}: the slowest rank takes at least as long, use 1 or more")
    if options.compute == "scaled" and options.host is None:
        raise UserError("--compute scaled needs --host HOST.toml, the calibrated file of the host that rehearsed")


def main(arguments: list[str]) -> int:
    """Rehearse, or replay. Returns 0. Raises UserError."""
    if arguments[:1] == ["replay"]:
        options = build_replay_parser().parse_args(arguments[1:])
        _check_replay(options, options.machine)
        from perfmodel.rehearsal import read_rehearsal

        document = {"rehearsal": str(options.file)} | _replay_document(read_rehearsal(options.file), options,
                                                                        options.machine)  # fmt: skip
        if options.json:
            print(json.dumps(document, indent=1))
        return 0
    request = read_request(arguments)
    if find_launcher(os.environ) != "single":
        raise UserError("a rehearsal is one process: start it without mpiexec, srun or torchrun")
    document = rehearse(request, arguments)
    _write(request.options.out, document)
    if not request.options.json:
        from janus.cli.rehearsal_tables import print_rehearsal

        print_rehearsal(document, request.options.out)
    if request.options.replay is not None and not request.options.one_depth:
        from perfmodel.rehearsal import rehearsal_of

        document["replay"] = _replay_document(rehearsal_of(document), request.options, request.options.replay)
    if request.options.json:
        print(json.dumps(document, indent=1))
    return 0


def _write(path: Path, document: dict[str, Any]) -> None:
    from janus.train.atomic import write_text_atomically

    try:
        write_text_atomically(path, json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written ({error.strerror}): name another file") from None


def rehearse(request: Request, arguments: list[str]) -> dict[str, Any]:
    """Build, run and describe: the content of rehearsal.json. Raises UserError before anything large is built.

    arguments: the request as it was written, for the other depth of a rehearsal of fewer blocks.
    """
    import torch

    from janus.cli.rehearsal_document import depth_of, document_of
    from janus.parallel.communication import connect
    from janus.train.progress import ProgressLine
    from janus.train.session import set_matmul_precision, set_threads

    options, config = request.options, request.config
    communicator = connect(device=config.run.device, transport="auto")
    set_threads(config.run.threads, communicator.local_size)
    set_matmul_precision(config.run.tf32)
    torch.manual_seed(config.run.seed)
    subset = _training(config, communicator)
    deepest = min(options.blocks or config.model.num_blocks, config.model.num_blocks)
    job = _job(replace(config, model=replace(config.model, num_blocks=deepest)), request, subset)
    with ProgressLine("rehearsing", job.num_steps) as progress:
        progress.say(f"building the micro-batches of a rank of {request.layout.world_size}")
        ready = _prepared(job, options, communicator)
        fewer = None
        if 1 < deepest < config.model.num_blocks and not options.one_depth:
            progress.say(f"rehearsing {deepest - 1} blocks first, in a process of their own")
            fewer = depth_of(_rehearsed_apart(arguments, deepest - 1, ready.rank))
        found = ready.run(progress.say, progress.advance)
    data = {
        "path": str(config.data.path), "fingerprint": subset.store.fingerprint, "step": options.step,
        "structures": len(job.batch), "drawn": _batch(config, subset, options.step)[1],
    }  # fmt: skip
    return document_of(config, job, found, fewer, data, communicator)


def _rehearsed_apart(arguments: list[str], blocks: int, rank: int) -> dict[str, Any]:
    """The same rehearsal with other blocks by another process, which leaves no memory behind: what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rehearsal.json"
        words = [*arguments, "--blocks", str(blocks), "--rank", str(rank), "--out", str(out), "--one-depth"]
        done = subprocess.run(
            [sys.executable, "-m", "janus", "rehearse", *words], stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise UserError(
                f"the rehearsal of {blocks} blocks ended with exit code {done.returncode} (its message is above)"
            )
        return json.loads(out.read_text(encoding="utf-8"))


def _training(config: TrainConfig, communicator: Communicator) -> Subset:
    """The training structures, as a run would open them, but for the size of the batch."""
    from janus.train.dataset import open_subsets

    smallest = replace(config, batch=replace(config.batch, structures=1), run=replace(config.run, validate_every=0))
    return open_subsets(smallest, communicator)[0]


def _batch(config: TrainConfig, subset: Subset, step: int) -> tuple[list[int], str]:
    """Structures of the global batch, and how they were drawn."""
    from janus.train.sampler import Sampler

    wanted = config.batch.structures
    if wanted <= len(subset.indices):
        return Sampler(subset.store.work, subset.indices, wanted, config.run.seed).batch(step), "as the trainer"
    drawn = np.random.default_rng([config.run.seed, step]).choice(subset.indices, wanted)
    return drawn.tolist(), f"with replacement: the data have {len(subset.indices)} structures, a step takes {wanted}"


def _job(config: TrainConfig, request: Request, subset: Subset) -> RehearsalJob:
    import torch

    from janus.rehearse import RehearsalJob
    from janus.train.loss import denominators_of

    batch, _ = _batch(config, subset, request.options.step)
    return RehearsalJob(
        config=config, layout=request.layout, store=subset.store, work=subset.store.work, batch=batch,
        denominators=denominators_of(subset.store, batch),
        reference_energies=torch.as_tensor(subset.store.reference_energies), steps=request.options.steps,
        with_optimizer=not request.options.no_optimizer,
    )  # fmt: skip


def _prepared(job: RehearsalJob, options: argparse.Namespace, communicator: Communicator) -> Rehearsal:
    """The rank with its micro-batches. Raises UserError where its model and steps would not fit."""
    from janus.cli.rehearsal_document import counts_of, settings_of
    from janus.rehearse import Rehearsal, choose_rank
    from janus.rehearsed_memory import room_bytes
    from perfmodel.rehearsal_memory import rehearsal_need

    shares, rank = choose_rank(job, options.rank)
    ready = Rehearsal(job, shares, rank, communicator.device)
    counts = [counts_of(row) for row in ready.counts()]

    def need_gb(num_blocks: int, with_optimizer: bool) -> float:
        model = replace(job.config.model, num_blocks=num_blocks)
        settings = settings_of(job.config)
        need = rehearsal_need(model, job.layout, rank, counts, settings, with_optimizer=with_optimizer)
        return need.total_bytes / 1e9

    room_gb = room_bytes(communicator.device) / 1e9
    if options.max_memory_gb is not None:
        room_gb = min(room_gb, options.max_memory_gb)
    needed_gb = need_gb(job.config.model.num_blocks, job.with_optimizer)
    if needed_gb > room_gb:
        fitting = [k for k in range(1, job.config.model.num_blocks) if need_gb(k, False) <= room_gb]
        repair = (
            f"use --blocks {fitting[-1]} --no-optimizer" if fitting else "use smaller micro-batches (batch.max_work)"
        )
        raise UserError(
            f"rank {rank} of {job.layout.world_size} needs about {needed_gb:.1f} GB with {job.config.model.num_blocks} "
            f"blocks and {room_gb:.1f} GB may be used here: {repair}, or another host"
        )
    return ready


def _replay_document(rehearsal: RecordedRehearsal, options: argparse.Namespace, machine_name: str) -> dict[str, Any]:
    """Play, write the trace, print the table unless JSON was asked for."""
    from perfmodel.machine import load_machine
    from perfmodel.network.noise import Noise
    from perfmodel.network.trace import stream_trace
    from perfmodel.rehearsal import replay

    machine: Machine = load_machine(machine_name)
    found = replay(
        rehearsal, machine, compute=options.compute,
        host=None if options.host is None else load_machine(options.host), slowest_over_this=options.slowest,
        noise=Noise(compute_deviation=options.noise) if options.noise else None, overlap=not options.no_overlap,
        one_stream=options.one_stream, record=options.trace is not None,
    )  # fmt: skip
    if options.trace is not None:
        _write(options.trace, stream_trace(found.spans))
    if not options.json:
        from janus.cli.rehearsal_tables import print_replay

        print_replay(found, rehearsal.layout)
    return found.to_mapping()
