"""The compiled loops where nothing can be written."""

from __future__ import annotations

import os
import subprocess
import sys


def test_loops_compile_without_a_cache_folder() -> None:
    """A numba that finds no folder for its cache must not stop the operators from being compiled."""
    script = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"  # what numba does when every candidate folder is read-only
        "import numpy as np\n"
        "from janus.kernels import loops\n"
        "total = np.zeros((2, 3)); loops.segment_sum(total, np.ones((4, 3)), np.array([0, 0, 1, 0]))\n"
        "print(total[:, 0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.stdout.strip() == "[3.0, 1.0]", done.stderr
