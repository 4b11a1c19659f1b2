"""The campaign files of examples/ are read, and say what their comments promise."""

from pathlib import Path

from scaling_studies.study import read_declaration

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_is_read():
    declared = {path.name: read_declaration(path) for path in EXAMPLES.iterdir()}
    jobs = sum(len(study.ranks) * study.repeats for study in declared["two_cores.toml"].studies)
    assert jobs == 36
    assert declared["two_cores.toml"].executor.kind == "local"
    assert declared["slurm.toml"].executor.kind == "slurm"
    assert declared["slurm.toml"].studies[0].unit == 8
