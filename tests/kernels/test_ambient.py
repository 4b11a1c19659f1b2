"""Values that autograd's own threads see."""

from __future__ import annotations

import _thread
import threading

from janus.kernels.ambient import Ambient


def seen_by_foreign_thread(ambient: Ambient[str]) -> str:
    """What a thread sees that, like those of the autograd engine, was not started through ``threading``."""
    seen, done = [], threading.Event()

    def look() -> None:
        seen.append(ambient.get())
        with ambient.holds("inside foreign"):
            seen.append(ambient.get())
        seen.append(ambient.get())
        done.set()

    _thread.start_new_thread(look, ())
    assert done.wait(10)
    assert seen[1] == "inside foreign"
    assert seen[2] == seen[0]
    return seen[0]


def seen_by_python_thread(ambient: Ambient[str]) -> str:
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(ambient.get()))
    thread.start()
    thread.join()
    return seen[0]


def test_blocks_nest_and_end() -> None:
    ambient = Ambient("default")
    with ambient.holds("outer"):
        with ambient.holds("inner"):
            assert ambient.get() == "inner"
        assert ambient.get() == "outer"
        assert seen_by_foreign_thread(ambient) == "outer"
    assert ambient.get() == "default"
    assert seen_by_foreign_thread(ambient) == "default"


def test_a_thread_of_the_engine_sees_the_callers_value_and_an_independent_thread_does_not() -> None:
    ambient = Ambient("default")
    with ambient.holds("set"):
        assert seen_by_foreign_thread(ambient) == "set"
        assert seen_by_python_thread(ambient) == "default"
        assert ambient.get() == "set"
