"""A tiny executable that stands for ``janus train`` where the real one is too slow: it writes the same files.

Its behaviour is set by a file named ``behaviour`` in its working data folder: good, crash, hang, torn, wrong_work.
"""

import itertools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from janus.cli.train import read_request
from tests.studies.attempt_folders import write_run


def main() -> int:
    words = sys.argv[1:]
    plain = dict(itertools.pairwise(words))
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
    _, config, _ = read_request(words)
    write_run(out, config, plan)
    if behaviour == "torn":
        text = (out / "run.json").read_text()
        (out / "run.json").write_text(text[: len(text) // 2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
