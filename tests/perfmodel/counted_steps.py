"""What real training steps execute, rank by rank and phase by phase: products, fused loops, other kernels, bytes.

Ranks are threads. Every dispatched operator and every compiled loop is counted under FE, FF, BF or BE; what the
stand-in for a network does is not. In a backward, an operator belongs to BF or BE by where its autograd node was made.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from janus.kernels import loops
from janus.parallel.axis import Pending
from janus.parallel.ledger import BACKWARD, current_phase
from janus.train.timing import PhaseTimer
from tests.parallel.thread_ranks import ThreadAxis

_aten = torch.ops.aten
# no kernel: views, and memory that is only asked for
_FREE = {
    _aten.view, _aten.t, _aten.transpose, _aten.slice, _aten.select, _aten.split, _aten.split_with_sizes, _aten.expand,
    _aten.unsqueeze, _aten.squeeze, _aten.detach, _aten.alias, _aten.permute, _aten.as_strided, _aten._unsafe_view,
    _aten._reshape_alias, _aten.unbind, _aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty,
    _aten.lift_fresh, _aten.is_same_size, _aten.unflatten, _aten.flatten, _aten.chunk, _aten.diagonal, _aten.unfold,
    _aten.resize_, _aten.set_, _aten._local_scalar_dense, _aten.new_empty_strided, _aten.set_data,
}  # fmt: skip
# loop -> kind, pass, which argument has its rows x channels
LOOPS = {
    "gathered_sum": ("gather", "forward", 0), "segment_sum": ("gather", "forward", 1),
    "product_gather": ("weighted_sum", "forward", 0), "weighted_segment_sum": ("weighted_sum", "forward", 1),
    "silu": ("silu", "forward", 0), "silu_backward": ("silu", "backward", 0),
    "silu_double_backward": ("silu", "double", 0),
    "gated_norm": ("gated_norm", "forward", 0), "gated_norm_backward": ("gated_norm", "backward", 0),
    "gated_norm_double_backward": ("gated_norm", "double", 0),
    "attention_sums": ("attention_sums", "forward", 1), "attention_sums_backward": ("attention_sums", "backward", 0),
    "attention_sums_double_backward": ("attention_sums", "double", 0),
    "column_products": ("columns", "forward", 1),
}  # fmt: skip


@dataclass
class Counted:
    """One phase on one rank. products, grouped: [calls, FLOPs, bytes]; fused: [calls, elements] by kind and pass;
    plain: [calls, bytes], of everything else; plain_ops: calls and bytes by operator.
    """

    products: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    grouped: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    fused: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    plain: list[float] = field(default_factory=lambda: [0.0, 0.0])
    plain_ops: dict[str, list[float]] = field(default_factory=dict)


_here = threading.local()


def _nbytes(tensors: Any) -> float:
    """Bytes of all tensors, of an expanded one those that are there."""
    leaves = [leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
    return float(sum(min(leaf.nbytes, leaf.untyped_storage().nbytes()) for leaf in leaves))


class MarkingTimer(PhaseTimer):
    """A phase timer that tells ``Counting`` which autograd nodes are made before FF, and which in it."""

    def __init__(self, counting: Counting) -> None:
        super().__init__(torch.device("cpu"))
        self._counting = counting

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if name == "FF":
            node = (torch.zeros((), requires_grad=True) * 1).grad_fn
            self._counting.first_of_forces = node._sequence_nr()
        with super().__call__(name):
            yield


class Counting(TorchDispatchMode):
    """Counts into ``phases`` what this thread executes inside FE, FF and the backward of a training step."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: dict[str, Counted] = {}
        self.first_of_forces: int | None = None  # number of the first autograd node made in FF of this micro-batch

    def __enter__(self) -> Any:
        _here.counting = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _here.counting = None

    def phase(self) -> Counted | None:
        name = current_phase()
        if name == BACKWARD:
            node = torch._C._current_autograd_node()
            if node is None or self.first_of_forces is None:
                return None
            name = "BE" if node._sequence_nr() < self.first_of_forces else "BF"
        if name not in ("FE", "FF", "BF", "BE") or getattr(_here, "silent", 0):
            return None
        return self.phases.setdefault(name, Counted())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _FREE:
            return result
        counted = self.phase()
        if counted is None:
            return result
        formula = flop_registry.get(packet)
        moved = _nbytes((args, kwargs)) + (0 if "out" in (kwargs or {}) else _nbytes(result))
        if formula is not None:
            target = counted.grouped if _inside_grouped() else counted.products
            target[1] += formula(*args, **(kwargs or {}), out_val=result)
            target[0], target[2] = target[0] + 1, target[2] + moved
        else:
            named = counted.plain_ops.setdefault(str(packet), [0.0, 0.0])
            for target in (counted.plain, named):
                target[0], target[1] = target[0] + 1, target[1] + moved
        return result


def _inside_grouped() -> bool:
    """Whether a grouped product is what runs."""
    frame = sys._getframe(2)
    for _ in range(6):
        if frame is None:
            return False
        if frame.f_code.co_filename.endswith("grouped.py"):
            return True
        frame = frame.f_back
    return False


def _counted_loop(name: str, loop: Callable[..., Any]) -> Callable[..., Any]:
    kind, which, place = LOOPS[name]

    def run(*arrays: Any) -> Any:
        counting = getattr(_here, "counting", None)
        counted = counting.phase() if counting is not None else None
        if counted is not None:
            if kind == "columns":  # of two arrays, for the gradient of a scale: plain arithmetic
                counted.plain[0] += 1
                counted.plain[1] += arrays[1].nbytes + arrays[2].nbytes
                return loop(*arrays)
            entry = counted.fused.setdefault((kind, which), [0.0, 0.0])
            entry[0], entry[1] = entry[0] + 1, entry[1] + arrays[place].size
        return loop(*arrays)

    return run


@contextmanager
def _silent() -> Iterator[None]:
    _here.silent = getattr(_here, "silent", 0) + 1
    try:
        yield
    finally:
        _here.silent -= 1


@contextmanager
def loops_and_network_known() -> Iterator[None]:
    """Inside, compiled loops are counted, and what threads do in place of a network is not."""
    meet = ThreadAxis._meet

    def quiet(axis: ThreadAxis, *arguments: Any) -> Pending:
        with _silent():
            pending = meet(axis, *arguments)

        def wait() -> None:
            with _silent():
                pending.wait()

        return Pending(wait)

    with (
        mock.patch.object(ThreadAxis, "_meet", quiet),
        mock.patch.multiple(loops, **{name: _counted_loop(name, getattr(loops, name)) for name in LOOPS}),
    ):
        yield


def names_of(counted: Counted) -> Sequence[tuple[str, list[float]]]:
    """Plain operators, those that move most first."""
    return sorted(counted.plain_ops.items(), key=lambda item: -item[1][1])
