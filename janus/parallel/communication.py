"""The ranks of a job: their control plane, and the axes over which they exchange tensors.

Tensors of the step travel over axes (``axis.py``), by gloo or MPI on CPU and NCCL on GPU; everything else (agreement,
barriers, small values) by the collectives of ``Communicator``, which are gloo's also where MPI carries the axes. One
process: nothing at all. Bytes on the wire per rank, n ranks, b bytes: all-reduce 2(n-1)/n b (ring), broadcast b,
gather_objects (n-1) b. It does not own how ranks find each other (``rendezvous.py``) nor what happens when one of them
dies (``watchdog.py``).
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist

from janus.errors import UserError
from janus.parallel.axis import Axis, LoneAxis
from janus.parallel.departure import depart
from janus.parallel.ledger import Ledger
from janus.parallel.rendezvous import Place, find_place
from janus.parallel.waiting import PeerLostError, Waiting

__all__ = ["Communicator", "MistakeOfAllRanksError", "PeerLostError", "connect"]

DeviceChoice = Literal["auto", "cpu", "cuda"]
TransportChoice = Literal["auto", "gloo", "nccl", "mpi"]
DEFAULT_TIMEOUT_S = 1800.0


class MistakeOfAllRanksError(UserError):
    """A user's mistake that every rank knows of; ``communicator`` is there to end them together."""

    def __init__(self, sentence: str, communicator: Communicator) -> None:
        super().__init__(sentence)
        self.communicator = communicator


class Communicator:
    """This process among all ranks. World size 1: every collective returns at once and no process group exists.

    transport: of the axes, "gloo", "nccl", "mpi" or "none". ledger: what this rank sends over its axes. waiting: serves
    the watchdog, which looks for the rank that has not reached a collective that the others wait in.
    """

    def __init__(
        self, place: Place, device: torch.device, transport: str, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.rank, self.world_size = place.rank, place.world_size
        self.local_rank, self.local_size = place.local_rank, place.local_size
        self.launcher, self.store = place.launcher, place.store
        self.device, self.transport = device, transport
        self.host = socket.gethostname()
        self.ledger, self.waiting = Ledger(), Waiting()
        self._mpi, self._timeout = place.mpi, timedelta(seconds=timeout_s)

    def make_axis(self, name: str, groups: Sequence[Sequence[int]], *, transport: str | None = None) -> Axis:
        """This rank's axis. groups: a partition of all ranks, each ascending; all ranks call it alike.

        transport: None for the job's own; "gloo" is there too where MPI is (to compare the two).
        """
        transport = self.transport if transport is None else transport
        assert transport in (self.transport, "gloo"), (transport, self.transport)
        members = sorted(rank for group in groups for rank in group)
        assert members == list(range(self.world_size)), f"axis {name}: {groups} divides no {self.world_size} ranks"
        assert all(list(group) == sorted(group) for group in groups), f"axis {name}: {groups} is not ascending"
        number, ranks = next((number, list(group)) for number, group in enumerate(groups) if self.rank in group)
        with self.waiting.entering(f"make_axis {name}"):
            if transport == "mpi":
                return self._mpi_axis(name, number, ranks)
            if self.world_size > 1:
                return self._torch_axis(name, number, groups)
        return LoneAxis(name, self.rank, self.ledger)

    def _mpi_axis(self, name: str, number: int, ranks: list[int]) -> Axis:
        from janus.parallel.mpi_axis import MpiAxis

        part = self._mpi.Split(color=number, key=self.rank)
        if len(ranks) > 1:
            crowded = self.local_size > (os.cpu_count() or 1)  # not those it is bound to: one each where all is well
            return MpiAxis(name, ranks, ranks.index(self.rank), self.ledger, self.waiting, part, crowded=crowded)
        part.Free()
        return LoneAxis(name, self.rank, self.ledger)

    def _torch_axis(self, name: str, number: int, groups: Sequence[Sequence[int]]) -> Axis:
        from janus.parallel.torch_axis import TorchAxis

        # every rank makes every group, in one order
        made = [dist.new_group(list(group), timeout=self._timeout) if len(group) > 1 else None for group in groups]
        ranks, group = list(groups[number]), made[number]
        if group is None:
            return LoneAxis(name, self.rank, self.ledger)
        return TorchAxis(name, ranks, ranks.index(self.rank), self.ledger, self.waiting, group)

    def _all_reduce(self, tensor: torch.Tensor, operation: Any, name: str) -> torch.Tensor:
        if self.world_size > 1:
            with self.waiting.entering(name):
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
            with self.waiting.entering("broadcast"):
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
        with self.waiting.entering("gather_objects"):
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
        if self._mpi is not None:
            from mpi4py import MPI

            MPI.Finalize()
            depart(exit_code)
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


def _first_mistake(mistake: str | None, place: Place) -> str | None:
    """A mistake that any rank has made, on all of them, before a collective could wait for the one that made it."""
    if mistake is not None:
        place.store.set("janus_mistake", mistake)
    if place.store.add("janus_arrived", 1) == place.world_size:
        place.store.set("janus_all_arrived", "yes")
    place.store.wait(["janus_all_arrived"])
    return place.store.get("janus_mistake").decode() if place.store.check(["janus_mistake"]) else None


def _transport_for(choice: TransportChoice, device: torch.device, place: Place) -> str:
    """What carries the axes' tensors. Raises UserError where this device or launch does not have it."""
    fitting = ("nccl",) if device.type == "cuda" else ("gloo", "mpi")
    if choice == "auto":
        return fitting[0]
    if choice not in fitting:
        raise UserError(
            f"transport {choice!r} does not carry tensors on device {device.type!r}: "
            f"use {' or '.join(repr(name) for name in fitting)}, or another device"
        )
    if choice == "mpi" and place.mpi is None and place.world_size > 1:
        raise UserError(
            f"transport 'mpi' needs ranks started by mpiexec or srun, not {place.launcher}: use transport 'gloo'"
        )
    return choice


def connect(
    *, device: DeviceChoice = "auto", timeout_s: float = DEFAULT_TIMEOUT_S, transport: TransportChoice = "auto"
) -> Communicator:
    """Join the job that mpiexec, srun or torchrun started, or be a job of one process.

    timeout_s: longest wait of one collective. transport: of the axes; auto: NCCL on GPU, gloo on CPU. Raises UserError
    for an inconsistent launch, and for missing GPUs or a transport that this device or launcher does not have: with
    many ranks on all of them, as MistakeOfAllRanksError.
    """
    place = find_place(with_mpi=transport == "mpi")
    mistake, chosen, carrier = None, torch.device("cpu"), "gloo"
    try:
        chosen = _pick_device(device, place)
        carrier = _transport_for(transport, chosen, place)
    except UserError as error:
        if place.world_size == 1:
            raise
        mistake = str(error)
    if place.world_size > 1:
        mistake = _first_mistake(mistake, place)
    if mistake is not None:
        chosen, carrier = torch.device("cpu"), "gloo"
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if place.world_size == 1:
        return Communicator(place, chosen, "none")
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if carrier == "nccl" else "gloo",
        store=dist.PrefixStore("janus_group", place.store),
        rank=place.rank, world_size=place.world_size, timeout=timedelta(seconds=timeout_s),
    )  # fmt: skip
    communicator = Communicator(place, chosen, carrier, timeout_s=timeout_s)
    if mistake is not None:
        raise MistakeOfAllRanksError(mistake, communicator)
    return communicator
