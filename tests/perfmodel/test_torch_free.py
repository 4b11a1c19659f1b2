"""The predictor imports neither torch nor compilers nor solvers: it runs on a login node, with a short start-up."""

import subprocess
import sys
from pathlib import Path

import perfmodel

MODULES = sorted(path.stem for path in Path(perfmodel.__file__).parent.glob("*.py") if path.stem != "__init__")


def test_no_module_imports_torch_or_the_trainer():
    lines = [f"import perfmodel.{name}" for name in MODULES]
    allowed = {"janus", "janus.config", "janus.presets", "janus.layout", "janus.packing", "janus.placement",
               "janus.errors"}  # fmt: skip
    code = "\n".join([
        "import sys", *lines,
        "from perfmodel.full_machine import predict_weak_scaling", "predict_weak_scaling(units=[1, 40960])",
        "heavy = [name for name in ('torch', 'numba', 'scipy', 'ase', 'pandas', 'mpi4py') if name in sys.modules]",
        "assert not heavy, heavy",
        "ours = {name for name in sys.modules if name.split('.')[0] == 'janus'}",
        f"assert ours <= {allowed!r}, ours",
    ])  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(MODULES) >= 12
