"""Which executor a declaration asks for. Each executor is a file of its own, imported when it is chosen."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from scaling_studies.executors.base import Executor
    from scaling_studies.study import ExecutorSettings

CLASSES = {
    "local": "LocalExecutor", "slurm": "SlurmExecutor", "pbs": "PbsExecutor", "flux": "FluxExecutor",
    "lsf": "LsfExecutor",
}  # fmt: skip


def executor_for(settings: ExecutorSettings) -> Executor:
    """The executor of these settings. Raises UserError for an unknown kind."""
    if settings.kind not in CLASSES:
        raise UserError(f"executor kind is {settings.kind!r}: use one of {', '.join(CLASSES)}")
    options: dict[str, Any] = {
        "max_in_flight": settings.max_in_flight, "poll_s": settings.poll_s, "setup": tuple(settings.setup),
        "directives": tuple(settings.directives),
    }  # fmt: skip
    if settings.kind == "slurm":
        options["arrays"] = settings.arrays
    module = importlib.import_module(f"scaling_studies.executors.{settings.kind}")
    executor: Executor = getattr(module, CLASSES[settings.kind])(**options)
    return executor
