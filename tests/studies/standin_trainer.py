"""A tiny executable that stands for ``janus train`` where the real one is too slow: it writes the same files.

Its behaviour is set by a file named ``behaviour`` in its working data folder: good, crash, hang, torn, wrong_work.
"""

import itertools
import json
import sys
import time
from pathlib import Path


def main() -> int:
    words = sys.argv[1:]
    plain = dict(itertools.pairwise(words))
    settings = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
    data, out = Path(plain["--data"]), Path(plain["--out"])
    behaviour = (data / "behaviour").read_text().strip()
    if behaviour == "crash":
        print("rank 0: the graph of structure 3 does not fit", file=sys.stderr)
        return 3
    if behaviour == "hang":
        time.sleep(600)
    plan = json.loads((data / "counts.json").read_text())
    if behaviour == "wrong_work":
        plan[0]["angles"] *= 2
    out.mkdir(parents=True)
    phases = {"data": 0.001, "FE": 0.01, "FF": 0.02, "BF_BE": 0.03, "sync": 0.002, "optimizer": 0.003}
    with (out / "steps.jsonl").open("w") as stream:
        for step in range(int(settings["run.steps"])):
            ranks = [{"rank": rank, **entry, "phase_s": phases} for rank, entry in enumerate(plan)]
            stream.write(json.dumps({"step": step, "loss": 1.0 / (step + 1), "step_s": 0.07, "ranks": ranks}) + "\n")
    run = {
        "schema": "janus.run/1", "status": "done", "world_size": len(plan), "layout": {"unit": 1},
        "provenance": {"git_revision": "n/a", "threads_per_rank": [1]}, "start_up_s": 1.0, "loop_s": 0.5, "wall_s": 1.5,
        "peak_memory_bytes": [1000 + rank for rank in range(len(plan))],
    }  # fmt: skip
    text = json.dumps(run)
    (out / "run.json").write_text(text[: len(text) // 2] if behaviour == "torn" else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
