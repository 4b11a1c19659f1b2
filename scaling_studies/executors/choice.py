"""Which executor a declaration asks for. Each executor is a file of its own, imported when chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.errors import UserError

if TYPE_CHECKING:
    from scaling_studies.executors.base import Executor
    from scaling_studies.study import ExecutorSettings

KINDS = ("local", "slurm", "pbs", "flux", "lsf")


def executor_for(settings: ExecutorSettings) -> Executor:
    """The executor of these settings. Raises UserError for an unknown kind."""
    shared = {
        "max_in_flight": settings.max_in_flight, "poll_s": settings.poll_s, "setup": tuple(settings.setup),
        "directives": tuple(settings.directives),
    }  # fmt: skip
    if settings.kind == "local":
        from scaling_studies.executors.local import LocalExecutor

        return LocalExecutor(**shared)
    if settings.kind == "slurm":
        from scaling_studies.executors.slurm import SlurmExecutor

        return SlurmExecutor(**shared, arrays=settings.arrays)
    if settings.kind == "pbs":
        from scaling_studies.executors.pbs import PbsExecutor

        return PbsExecutor(**shared)
    if settings.kind == "flux":
        from scaling_studies.executors.flux import FluxExecutor

        return FluxExecutor(**shared)
    if settings.kind == "lsf":
        from scaling_studies.executors.lsf import LsfExecutor

        return LsfExecutor(**shared)
    raise UserError(f"executor kind is {settings.kind!r}: use one of {', '.join(KINDS)}")
