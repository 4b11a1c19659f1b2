"""Every kind of executor is made from its settings, and keeps them."""

from types import SimpleNamespace

import pytest

from janus.errors import UserError
from scaling_studies.executors.choice import CLASSES, executor_for
from scaling_studies.study import ExecutorSettings


@pytest.mark.parametrize("kind", CLASSES)
def test_each_kind_is_made_with_its_settings(kind, make_attempt):
    in_flight = 1 if kind == "local" else 3
    settings = ExecutorSettings(
        kind=kind, ranks_per_node=2, max_in_flight=in_flight, poll_s=2.5, setup=("module load x",),
        directives=() if kind == "local" else ("--site=1",), arrays=kind == "slurm",
    )  # fmt: skip
    executor = executor_for(settings)
    assert (executor.name, executor.max_in_flight, executor.poll_s) == (kind, in_flight, 2.5)
    text = executor.render(make_attempt())
    assert "\nmodule load x\n" in text
    assert ("--site=1" in text) == (kind != "local")


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="use one of local, slurm, pbs, flux, lsf"):
        executor_for(SimpleNamespace(kind="cobalt"))
