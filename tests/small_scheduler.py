"""A scheduler in one file: it starts each job at once on this host and answers as PBS, Flux or LSF do.

It is called by the names of their programs (links to this file); jobs are files in a folder ``jobs`` beside them.
A file ``down`` there makes every program complain as one whose server is away. ``mpiexec`` starts one rank.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(sys.argv[0]).parent
JOBS = HERE / "jobs"
NAME = re.compile(r"^#(?:PBS -N |flux: --job-name=|BSUB -J )(\S+)", re.MULTILINE)
DOWN = {"flux": "Unable to connect to Flux: broker socket was not found", "b": "LSF is down. Please wait ..."}


def submit(script):
    """Start a script apart from this process and return its number."""
    number = str(len(list(JOBS.glob("*.json"))) + 1)
    path = JOBS / f"{number}.sh"
    path.write_text(script)
    words = ["sh", "-c", f'trap : TERM; bash "{path}"; echo $? > "{JOBS}/{number}.code"']
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    (JOBS / f"{number}.json").write_text(json.dumps({"name": NAME.search(script)[1], "pid": process.pid}))
    return number


def jobs():
    """Number, name and exit code (None while it runs) of every job."""
    for path in sorted(JOBS.glob("*.json")):
        code = path.with_suffix(".code")
        ended = code.exists() and code.read_text().strip()
        yield path.stem, json.loads(path.read_text())["name"], int(ended) if ended else None


def end(numbers):
    for number in numbers:
        os.killpg(json.loads((JOBS / f"{number}.json").read_text())["pid"], signal.SIGTERM)


def pbs(program, words):
    if program == "qsub":
        print(submit(Path(words[-1]).read_text()) + ".pbs")
    elif program == "qselect":
        print("\n".join(f"{number}.pbs" for number, name, _ in jobs() if name == words[-1]))
    elif program == "qdel":
        end(word.removesuffix(".pbs") for word in words)
    else:
        for number, name, code in jobs():
            if f"{number}.pbs" in words:
                state = "R" if code is None else f"F\n    Exit_status = {code}"
                print(f"Job Id: {number}.pbs\n    Job_Name = {name}\n    job_state = {state}\n")


def flux(words):
    if words[0] == "batch":
        print(submit(Path(words[-1]).read_text()))
    elif words[0] == "run":
        os.environ |= {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "1", "FLUX_TASK_LOCAL_ID": "0"}
        os.execvp("bash", words[words.index("bash") :])
    elif words[0] == "cancel":
        end(words[1:])
    else:
        wanted = {word.removeprefix("--name=") for word in words[2:]}
        print(json.dumps({"jobs": [
            {"id": int(number), "name": name, "exception": {"occurred": False}} | ({"state": "RUN"} if code is None else
             {"state": "INACTIVE", "result": "FAILED" if code else "COMPLETED", "returncode": code})
            for number, name, code in jobs() if number in wanted or name in wanted
        ]}))  # fmt: skip


def lsf(program, words):
    if program == "bsub":
        print(f"Job <{submit(sys.stdin.read())}> is submitted to default queue <normal>.")
    elif program == "bkill":
        end(words)
    else:
        records = [
            {
                "JOBID": number,
                "JOB_NAME": name,
                "STAT": "RUN" if code is None else "EXIT" if code else "DONE",
                "EXIT_CODE": str(code or ""),
            }
            for number, name, code in jobs()
            if number in words or name in words
        ]
        print(json.dumps({"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records}))  # fmt: skip


def main():
    program, words = Path(sys.argv[0]).name, sys.argv[1:]
    if program == "mpiexec":
        os.execvp("bash", words[words.index("bash") :])
    if (HERE / "down").exists():
        family = "flux" if program == "flux" else program[0]
        print(DOWN.get(family, "cannot connect to server pbs (errno=15010)"), file=sys.stderr)
        return 255
    if program == "flux":
        flux(words)
    elif program.startswith("q"):
        pbs(program, words)
    else:
        lsf(program, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
