"""The ranks of a job and the collectives among them: gloo on CPU, NCCL on GPU, nothing at all for one process.

Every collective of the trainer goes through ``Communicator``. Bytes on the wire per rank, n ranks, b bytes:
all-reduce 2(n-1)/n b (ring), broadcast b, gather_objects (n-1) b. It does not own how ranks find each other
(``rendezvous.py``) nor what happens when one of them dies (``watchdog.py``).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist

from janus.errors import UserError
from janus.parallel.rendezvous import Place, find_place

DeviceChoice = Literal["auto", "cpu", "cuda"]


class PeerLostError(RuntimeError):
    """A collective failed: most often because another rank is gone. The watchdog knows which one."""


class Communicator:
    """This process among all ranks. World size 1: every collective returns at once and no process group exists.

    transport: "gloo", "nccl" or "none". collectives_entered and entered_at serve the watchdog:
    which rank has not reached the collective that the others wait in.
    """

    def __init__(self, place: Place, device: torch.device, transport: str) -> None:
        self.rank, self.world_size = place.rank, place.world_size
        self.local_rank, self.local_size = place.local_rank, place.local_size
        self.launcher, self.store = place.launcher, place.store
        self.device, self.transport = device, transport
        self.host = socket.gethostname()
        self.collectives_entered = 0
        self.entered_at: float | None = None

    @contextmanager
    def _collective(self, name: str) -> Iterator[None]:
        self.collectives_entered += 1
        self.entered_at = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            raise PeerLostError(f"{name} failed: {error}") from error
        finally:
            self.entered_at = None

    def _all_reduce(self, tensor: torch.Tensor, operation: Any, name: str) -> torch.Tensor:
        if self.world_size > 1:
            with self._collective(name):
                dist.all_reduce(tensor, op=operation)
        return tensor

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; returns the tensor."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM, "all_reduce_sum")

    def all_reduce_max(self, tensor: torch.Tensor) -> torch.Tensor:
        """Largest value over ranks, in place; returns the tensor."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX, "all_reduce_max")

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        """The source rank's values into every rank's tensor, in place; returns the tensor."""
        if self.world_size > 1:
            with self._collective("broadcast"):
                dist.broadcast(tensor, src=source)
        return tensor

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_reduce_sum(torch.zeros(1))

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in rank order, on every rank. Always over the CPU; nothing is unpickled."""
        text = json.dumps(value).encode()
        if self.world_size == 1:
            return [json.loads(text)]
        length = self.all_reduce_max(torch.tensor([len(text)]))
        mine = torch.frombuffer(bytearray(text.ljust(int(length))), dtype=torch.uint8)
        pieces = [torch.empty_like(mine) for _ in range(self.world_size)]
        with self._collective("gather_objects"):
            dist.all_gather(pieces, mine)
        return [json.loads(bytes(piece.numpy())) for piece in pieces]

    def together(self, action: Callable[[], Any]) -> Any:
        """Run an action on every rank; if it is a user's mistake anywhere, raise the first rank's on all of them.

        Returns this rank's result.
        """
        result, mistake = None, None
        try:
            result = action()
        except UserError as error:
            mistake = str(error)
        first = next((text for text in self.gather_objects(mistake) if text is not None), None)
        if first is not None:
            raise UserError(first)
        return result

    def leave(self, exit_code: int) -> NoReturn:
        """End the process, all ranks at one moment: a launcher that sees one rank end badly kills those still there.

        The interpreter is not torn down: with gloo's threads alive that aborts one exit in five or so (torch 2.13).
        """
        sys.stdout.flush()
        sys.stderr.flush()
        if self.world_size > 1:
            self.barrier()
        os._exit(exit_code)


def _pick_device(choice: DeviceChoice, place: Place) -> torch.device:
    """The device of this rank. Raises UserError where GPUs are asked for and there are too few."""
    available = torch.cuda.device_count() if choice != "cpu" and torch.cuda.is_available() else 0
    if choice == "cpu" or (choice == "auto" and available == 0):
        return torch.device("cpu")
    if available == 0:
        raise UserError("device 'cuda' was asked for but torch sees no GPU: use device 'cpu' or a CUDA build of torch")
    # One GPU visible to each of several ranks means that the launcher has bound them already.
    bound = available == 1 and len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1
    index = 0 if bound and os.environ.get("CUDA_VISIBLE_DEVICES") else place.local_rank
    if index >= available:
        raise UserError(
            f"{place.local_size} ranks were started on host {socket.gethostname()} with {available} GPUs: "
            f"start at most {available} per host or use device 'cpu'"
        )
    return torch.device("cuda", index)


def _agreed_device(choice: DeviceChoice, place: Place) -> torch.device:
    """_pick_device on every rank; a mistake on one is raised on all, before any collective could wait for it."""
    if place.world_size == 1:
        return _pick_device(choice, place)
    mistake, device = "", torch.device("cpu")
    try:
        device = _pick_device(choice, place)
    except UserError as error:
        mistake = str(error)
        place.store.set("janus_mistake", mistake)
    if place.store.add("janus_arrived", 1) == place.world_size:
        place.store.set("janus_all_arrived", "yes")
    place.store.wait(["janus_all_arrived"])
    if place.store.check(["janus_mistake"]):
        raise UserError(place.store.get("janus_mistake").decode())
    return device


def connect(*, device: DeviceChoice = "auto", timeout_s: float = 1800.0) -> Communicator:
    """Join the job that mpiexec, srun or torchrun started, or be a job of one process.

    timeout_s: longest wait of one collective. Raises UserError for an inconsistent launch or missing GPUs.
    """
    place = find_place()
    chosen = _agreed_device(device, place)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if place.world_size == 1:
        return Communicator(place, chosen, "none")
    transport = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if transport == "nccl" else "gloo",
        store=dist.PrefixStore("janus_group", place.store),
        rank=place.rank, world_size=place.world_size, timeout=timedelta(seconds=timeout_s),
    )  # fmt: skip
    return Communicator(place, chosen, transport)
