"""``python -m scaling_studies.job_facts begin|end FOLDER [CODE]``: when, where and how a job's script began and ended.

A job script calls it, so that the attempt's own folder tells its fate even after the scheduler has forgotten the job.
It owns ``begin.json`` and ``end.json``; it does not own how the facts are read (``janus.host_facts``) nor which of them
a record must have (``provenance``), nor the code's version (``code_version``). Standard library only: it costs the job
a fraction of a second. FOLDER is ``STUDY/attempts/TAG``: changes of the code are kept in ``STUDY/code``.

Both files are written once, atomically. ``begin`` of an attempt that has begun is refused with exit code 3, and ``end``
by another job than the one that began with exit code 4: a job that a scheduler starts again, or that was submitted
twice, can neither use the attempt's folder nor end it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from janus import host_facts
from janus.errors import UserError
from scaling_studies import code_version
from scaling_studies.atomic import write_new_atomically

SCHEMA = "janus.job/1"
BEGIN_FILE, END_FILE = "begin.json", "end.json"
BEGUN_ALREADY, OTHER_JOB = 3, 4  # exit codes
SECOND_START = "has begun already"  # in the log of a job that was started again
USAGE = "usage: python -m scaling_studies.job_facts begin|end ATTEMPT_FOLDER [EXIT_CODE]"


def collect(event: str, exit_code: int | None = None) -> dict[str, Any]:
    """The facts of this moment. exit_code: of the program that the job ran, None where it is not known."""
    job = host_facts.job_of()
    gpus = host_facts.gpus()
    facts = {
        "schema": SCHEMA, "event": event, "utc": datetime.datetime.now(datetime.UTC).isoformat(),
        "monotonic_s": time.monotonic(), "boot_id": host_facts.boot_id(), "host": platform.node(), **job,
        "identity": _identity(job), "operating_system": host_facts.operating_system(),
        "cpu": host_facts.cpu_name(), "clocks": host_facts.cpu_clocks(), "gpus": gpus,
        "driver": host_facts.gpu_driver(gpus), "modules": host_facts.modules(),
        "environment": host_facts.settings(), "load_average": host_facts.load_average(),
    }  # fmt: skip
    return facts | ({"exit_code": exit_code} if event == "end" else {})


def _identity(job: dict[str, Any]) -> str:
    """What tells one start of a job from any other: the scheduler's id and restart, or process session, host, boot."""
    if job["scheduler"] != "none":
        return f"{job['scheduler']} {job['job_id']} start {job['restarts']}"
    return f"process session {os.getsid(0)} on {platform.node()}, boot {host_facts.boot_id()}"


def code_facts(study: Path) -> dict[str, Any]:
    """Which code and libraries the job starts from; diff and list of libraries are kept in the study's folder."""
    state = code_version.source_state()
    state.keep(study)
    return {"version": state.version, "revision": state.revision, "diff": state.diff,
            "distributions": code_version.keep_distributions(study)}  # fmt: skip


def begin(folder: Path) -> int:
    """Write begin.json. Returns an exit code; raises UserError where it cannot be written."""
    try:
        facts = collect("begin") | {"code": code_facts(folder.absolute().parent.parent)}
        write_new_atomically(folder / BEGIN_FILE, _json(facts))
    except FileExistsError:
        before = read_facts(folder / BEGIN_FILE) or {}
        print(f"job_facts: {folder.name} {SECOND_START} ({before.get('utc')}, {before.get('identity')}): an attempt "
              "is never started twice, so this job ends here", file=sys.stderr)  # fmt: skip
        return BEGUN_ALREADY
    return 0


def end(folder: Path, exit_code: int | None) -> int:
    """Write end.json, unless another job began the attempt. Returns an exit code; raises UserError."""
    facts = collect("end", exit_code)
    before = read_facts(folder / BEGIN_FILE)
    if before is not None and before.get("identity") != facts["identity"]:
        print(f"job_facts: {folder.name} was begun by {before.get('identity')}, not by this job "
              f"({facts['identity']}): its end is not written", file=sys.stderr)  # fmt: skip
        return OTHER_JOB
    try:
        write_new_atomically(folder / END_FILE, _json(facts))
    except FileExistsError:
        print(f"job_facts: {folder.name} has ended already: its end is kept as it is", file=sys.stderr)
    return 0


def read_facts(path: Path) -> dict[str, Any] | None:
    """Facts that were written; None where the file is missing or is not one of this schema."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(facts, dict) and facts.get("schema") == SCHEMA and isinstance(facts.get("utc"), str)
    return facts if is_whole else None


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Exit code: 0 written, 2 a mistake or no room, 3 begun already, 4 not the job that began."""
    if len(arguments) not in (2, 3) or arguments[0] not in ("begin", "end"):
        print(USAGE, file=sys.stderr)
        return 2
    event, folder = arguments[0], Path(arguments[1])
    try:
        if event == "begin":
            return begin(folder)
        return end(folder, int(arguments[2]) if len(arguments) == 3 else None)
    except ValueError:
        print(f"job_facts: exit code {arguments[2]!r} is not a number. {USAGE}", file=sys.stderr)
    except UserError as error:
        print(f"job_facts: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
