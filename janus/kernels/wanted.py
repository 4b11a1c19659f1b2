"""Which gradients the running backward may be asked for. Python operators cannot see what the engine will use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from janus.kernels.ambient import Ambient

_parameters_wanted = Ambient(True)


@contextmanager
def without_parameter_gradients() -> Iterator[None]:
    """Inside, a backward is for inputs only (the force pass): operators leave out gradients of parameters."""
    with _parameters_wanted.holds(False):
        yield


def parameter_gradients_wanted() -> bool:
    """Whether the running backward may be asked for gradients of parameters."""
    return _parameters_wanted.get()
