"""Counts the live tensors of a real training step, by the rows that they have: what perfmodel/live_rows.py states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from janus.config import ModelConfig
from janus.kernels import pool
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.potential import evaluate_potential
from tests.perfmodel.real_steps import crystal_batch

LOOK_EVERY = 8  # dispatched operators: looking at every one would take most of the time
ITEM_BYTES = 4


def distinct_batch(config: ModelConfig) -> GraphBatch:
    """Small crystals whose numbers of atoms, edges, pairs, bonds and angles all differ."""
    return crystal_batch(config, (("Cu", (3, 1, 1)), ("Al", (1, 1, 2)), ("Cu", (1, 2, 1)), ("Al", (1, 1, 1))))


class LiveTensors(TorchDispatchMode):
    """Storages made inside and still alive. rows: number of rows -> row kind.

    numbers: what is alive now, in numbers of 4 bytes per row of each kind; most: that of all looks inside ``watching``
    at which the bytes of rows were most.
    """

    def __init__(self, rows: dict[int, str], known: list[Tensor]) -> None:
        super().__init__()
        self._rows = rows
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._found: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._dispatched, self.watches = 0, False
        self.most: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                self.add(tensor)
        self._dispatched += 1
        if self.watches and self._dispatched % LOOK_EVERY == 0:
            self.look()
        return result

    def add(self, tensor: Tensor, *, anew: bool = False) -> None:
        """A tensor that was just made. anew: it replaces what is known of its storage."""
        storage = tensor.untyped_storage()
        known = self._found.get(storage._cdata)
        if storage._cdata not in self._known and (anew or known is None or known[0].expired()):
            rows = len(tensor) if tensor.dim() else 0
            self._found[storage._cdata] = (StorageWeakRef(storage), rows, storage.nbytes())

    def numbers(self) -> Counter[str]:
        self._found = {key: entry for key, entry in self._found.items() if not entry[0].expired()}
        numbers: Counter[str] = Counter()
        for _, rows, size in self._found.values():
            if rows in self._rows:
                numbers[self._rows[rows]] += size / ITEM_BYTES / rows  # type: ignore[assignment]
        return numbers

    def look(self) -> None:
        """Keep what is alive if it is more than ever before."""
        now = self.numbers()
        if self._bytes(now) > self._bytes(self.most):
            self.most = now

    def _bytes(self, numbers: Counter[str]) -> float:
        return sum(rows * numbers[kind] for rows, kind in self._rows.items())


def live_tensors(
    config: ModelConfig, batch: GraphBatch, rows: dict[str, int], *, recompute: bool
) -> dict[str, Counter[str]]:
    """Numbers per row alive at the end of FE and of FF, and at the peak of the backward ("peak")."""
    assert len(set(rows.values())) == len(rows), f"row counts must differ: {rows}"
    model = build_model(config)
    known = [tensor for tensor in vars(batch).values() if isinstance(tensor, Tensor)]
    live = LiveTensors({number: kind for kind, number in rows.items()}, [*model.parameters(), *model.buffers(), *known])
    found: dict[str, Counter[str]] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        yield
        found[name] = live.numbers()

    with live, _pool_watched_by(live):
        prediction = evaluate_potential(model, batch, create_graph=True, phase=phase, recompute=recompute)
        loss = sum(term.square().sum() for term in (prediction.energy, prediction.forces, prediction.stress))
        live.watches = True
        loss.backward()  # type: ignore[union-attr]
    return found | {"peak": live.most}


@contextmanager
def _pool_watched_by(live: LiveTensors) -> Iterator[None]:
    """The pool's tensors are made outside of torch's dispatcher."""
    original = pool._pool.empty

    def empty(shape: Any, dtype: torch.dtype) -> Tensor:
        tensor = original(shape, dtype)
        live.add(tensor, anew=True)
        return tensor

    pool._pool.empty = empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        pool._pool.empty = original  # type: ignore[method-assign]
