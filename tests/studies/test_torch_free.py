"""Studies and reports start without torch: they run on login nodes."""

import subprocess
import sys


def test_no_module_of_studies_and_reports_imports_torch():
    program = (
        "import importlib, pkgutil, sys\n"
        "import reports, scaling_studies, janus.cli.report\n"
        "import janus.cli.study_run, janus.cli.study_status, janus.cli.study_index\n"
        "for package in (scaling_studies, reports):\n"
        "    for module in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(f'{package.__name__}.{module.name}')\n"
        "print('torch' in sys.modules, len([name for name in sys.modules if name.startswith('reports.')]))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found, num_reports = result.stdout.split()
    assert found == "False"
    assert int(num_reports) >= 5
