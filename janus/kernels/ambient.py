"""Values that hold while a block of code runs, as autograd's own threads see them too.

Backward passes on GPU run in threads that the engine makes, which inherit nothing from the thread that called
``backward``: a plain context variable has its default there. Such threads (Python did not start them) see what was set
last in the process, while the caller waits. Threads that Python started see only what they set themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Ambient(Generic[Value]):
    """One value. default: where no block set another."""

    def __init__(self, default: Value) -> None:
        self._default = self._last_set = default
        self._here = threading.local()

    def get(self) -> Value:
        """The value that holds here."""
        if hasattr(self._here, "value"):
            return self._here.value
        made_by_python = not isinstance(threading.current_thread(), threading._DummyThread)
        return self._default if made_by_python else self._last_set

    @contextmanager
    def holds(self, value: Value) -> Iterator[None]:
        """Inside, ``get`` gives this value."""
        before, nested = self.get(), hasattr(self._here, "value")
        self._here.value = self._last_set = value
        try:
            yield
        finally:
            self._last_set = before
            if nested:
                self._here.value = before
            else:
                del self._here.value
