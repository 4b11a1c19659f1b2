"""Which gradients the running backward may be asked for. Python operators cannot see what the engine will use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_parameters_wanted: ContextVar[bool] = ContextVar("parameters_wanted", default=True)


@contextmanager
def without_parameter_gradients() -> Iterator[None]:
    """Inside, a backward is for inputs only (the force pass): operators leave out gradients of parameters."""
    token = _parameters_wanted.set(False)
    try:
        yield
    finally:
        _parameters_wanted.reset(token)


def parameter_gradients_wanted() -> bool:
    """Whether the running backward may be asked for gradients of parameters."""
    return _parameters_wanted.get()
