"""``janus train``: reads the request, joins the job's ranks, runs, and turns every end into an exit code.

Exit codes: 0 done, 1 the run failed, 2 a user's mistake, 130 / 143 interrupted and saved. It owns no training.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from janus.config import read_toml
from janus.errors import UserError
from janus.parallel.launcher import find_launcher
from janus.train.config import TrainConfig, load_train_config

if TYPE_CHECKING:
    from janus.parallel.communication import Communicator
    from janus.parallel.watchdog import Watchdog
    from janus.train.session import TrainRequest

EXAMPLES = """examples:
  janus train --data alloys.store --out runs/first --steps 200
  janus train --data alloys.store --out runs/moe --model matris-moe-tiny --optimizer.learning_rate=3e-3
  mpiexec -n 2 janus train --data alloys.store --out runs/two --plan plan.json
  srun -n 8 janus train --config run.toml --out runs/eight
  torchrun --nproc-per-node 4 -m janus train --config run.toml --out runs/four
  mpiexec -n 8 janus train --data big.store --out runs/fs3d --parallel.unit=4 --parallel.shard_degree=4 \\
      --parallel.graph_degree=2 --run.verify=true
  janus train --out runs/first --resume

Any setting can be given as --SECTION.FIELD=VALUE; docs/training.md lists them all. Precedence: defaults, --config,
--plan, the options above, --SECTION.FIELD=VALUE.
"""
OVERRIDE = re.compile(r"--[a-z_]+\.[A-Za-z0-9_.]+=.*", re.DOTALL)


class _Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print and exit: with many ranks a mistake is printed once."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see janus train --help)")


def build_parser() -> argparse.ArgumentParser:
    """Options of ``janus train``."""
    parser = _Parser(
        prog="janus train",
        description="Train a potential, alone or on the ranks that mpiexec, srun or torchrun started.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--data", metavar="PATH", help="a store, or any file that ASE reads")
    parser.add_argument("--model", metavar="PRESET", help="a name from 'janus model list'")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings")
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="a plan made by 'janus plan'")
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out from its last checkpoint")
    parser.add_argument("--force", action="store_true", help="remove the run that --out holds, then start anew")
    parser.add_argument("--stop-after", type=int, metavar="N", help="save and end, resumable, after N steps in total")
    parser.add_argument("--json", action="store_true", help="print the run's summary (run.json) on stdout")
    return parser


def read_plan(path: Path) -> dict[str, Any]:
    """A plan file. Raises UserError when it is missing or not a plan."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--plan: no file {path}: make one with 'janus plan'") from None
    except OSError as error:
        raise UserError(f"--plan: {path} cannot be read ({error.strerror}): check the path") from None
    except ValueError as error:
        raise UserError(f"--plan: {path} is not valid JSON ({error}): make it again with 'janus plan'") from None
    if not isinstance(plan, dict) or plan.get("schema") != "janus.plan/1":
        found = plan.get("schema") if isinstance(plan, dict) else None
        raise UserError(f"--plan: {path} has schema {found!r}, not 'janus.plan/1': make it again with 'janus plan'")
    return plan


def _overlay(options: argparse.Namespace) -> dict[str, Any]:
    """The short options as nested settings."""
    overlay: dict[str, Any] = {}
    if options.model is not None:
        overlay["model"] = {"preset": options.model}
    if options.data is not None:
        overlay["data"] = {"path": options.data}
    if options.steps is not None:
        overlay["run"] = {"steps": options.steps}
    return overlay


def _split_overrides(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Words that argparse did not know: all must be --section.field=value."""
    for word in words:
        if not OVERRIDE.fullmatch(word):
            known = [option for action in parser._actions for option in action.option_strings]
            near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
            repair = f"did you mean {near[0]!r}?" if near else "settings are written --SECTION.FIELD=VALUE"
            raise UserError(f"unknown option {word!r}: {repair}")
    return words


def read_request(arguments: list[str]) -> tuple[argparse.Namespace, TrainConfig, Mapping[str, Any]]:
    """Options, resolved settings and the plan (empty without one). Raises UserError. Never imports torch."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    overrides = _split_overrides(parser, rest)
    if options.stop_after is not None and options.stop_after < 1:
        raise UserError(f"--stop-after is {options.stop_after}: it must be at least 1")
    plan = read_plan(options.plan) if options.plan is not None else {}
    layers = [plan.get("train", {}), _overlay(options)]
    if options.resume and (options.out / "config.toml").exists():
        layers.insert(0, read_toml(options.out / "config.toml"))
    return options, load_train_config(options.config, *layers, overrides=overrides), plan


def _check_plan(plan: Mapping[str, Any], world_size: int) -> None:
    planned = plan.get("world_size", world_size)
    if planned != world_size:
        raise UserError(
            f"--plan: the plan is for {planned} ranks but {world_size} were started: "
            f"start {planned} or plan again with --world-size {world_size}"
        )


def _planned(plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the plan predicted, for run.json; None without a plan."""
    prediction = plan.get("prediction")
    if not isinstance(prediction, Mapping):
        return None
    wanted = ("step_s", "phase_s", "memory_bytes", "flops_model", "flops_executed")
    return {"machine": plan.get("machine")} | {name: prediction.get(name) for name in wanted}


def main(arguments: list[str]) -> int:
    """Train. Returns the exit code; with many ranks the process ends in ``run_on_ranks`` instead."""
    mistake: UserError | None = None
    try:
        options, config, plan = read_request(arguments)
    except UserError as error:
        if find_launcher(os.environ) == "single":
            raise
        mistake, options, config, plan = error, argparse.Namespace(), TrainConfig(), {}
    from janus.parallel.job import join_job, run_on_ranks

    hang_timeout_s = config.run.hang_timeout_s
    communicator = join_job(
        "train", device=config.run.device if mistake is None else "cpu", transport=config.parallel.transport,
        timeout_s=hang_timeout_s + 60,
    )  # fmt: skip

    def work(watchdog: Watchdog) -> int:
        from janus.train.session import TrainRequest

        def make_request() -> TrainRequest:
            if mistake is not None:
                raise mistake
            _check_plan(plan, communicator.world_size)
            return TrainRequest(config=config, out=options.out, resume=options.resume, force=options.force,
                                stop_after=options.stop_after, planned=_planned(plan))  # fmt: skip

        document, exit_code = _train(communicator.together(make_request), communicator, watchdog)
        if options.json and communicator.rank == 0:
            print(json.dumps(document, indent=1))
        return exit_code

    return run_on_ranks("train", communicator, work, hang_timeout_s=hang_timeout_s)


def _train(request: TrainRequest, communicator: Communicator, watchdog: Watchdog) -> tuple[dict[str, Any], int]:
    """Set up and run: the final run.json and the exit code."""
    from janus.parallel.guardian import Guardian
    from janus.parallel.job import RunFailedError
    from janus.train.interrupt import InterruptFlag
    from janus.train.session import open_session, run_session

    session = open_session(request, communicator)
    watchdog.on_failure = session.mark_failed
    if communicator.world_size > 1:
        watchdog.before_exit = Guardian(session.folder.path, communicator.rank).dismiss
    with InterruptFlag(speak=communicator.rank == 0, before_exit=watchdog.before_exit) as flag:
        try:
            return run_session(session, flag)
        except UserError as error:  # from here on a mistake shows on one rank only, so that it is a failure
            raise RunFailedError(str(error)) from error
