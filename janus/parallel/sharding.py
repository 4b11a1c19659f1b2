"""Parameters divided over the shard axis, block by block, and gathered just in time in every phase of a step.

A *sharded unit* is the parameters of one block, or of the root (everything outside blocks), flattened into one buffer
that is padded to a multiple of the axis's size. This rank keeps one contiguous range of it, as one leaf per parameter
that the range meets. While a block runs, its module's parameters are views of the gathered buffer, made by an autograd
node whose backward reduce-scatters their gradients into the leaves' ``grad``; autograd saves notes instead of the
views (``gathered.py``). Outside, they are placeholders without memory that refuse to be used.

Shard axis of n ranks, b bytes of a unit on each, L >= 2 blocks, m micro-batches per step, two blocks held:

    all-gather      (n-1) b per call: root 1 call, blocks 2 + 4 m (L-2) calls per step (``gathered.py``)
    reduce-scatter  (n-1) b per call: (L+1) m calls in BE; with recomputation L m more in BF

Without recomputation the autograd engine holds the gradients that BF has made of all blocks, whole, until BE reaches
them; with it, whole parameters and whole gradients live only within a block's call. It does not own the sum over the
ranks with equal shards (``gradients.py``) nor the update.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from janus.kernels import pool
from janus.model.recompute import recomputed_with
from janus.parallel.axis import Axis, Pending
from janus.parallel.gathered import GatheredBuffer, GatheredBuffers
from janus.parallel.ledger import backward_phase, remember_phase
from janus.parallel.pieces import Piece

_DESCRIBING_METHODS = {"size", "stride", "dim", "numel", "element_size", "is_floating_point", "__len__"}
_DESCRIBING_ATTRIBUTES = {"shape", "dtype", "device", "requires_grad", "ndim", "is_leaf", "layout", "grad", "itemsize",
                          "nbytes", "is_meta"}  # fmt: skip


class AbsentParameter(nn.Parameter):
    """Stands where a sharded parameter was: its shape and dtype, no memory. Any computation with it raises."""

    janus_name = ""

    @classmethod
    def of(cls, name: str, parameter: nn.Parameter) -> AbsentParameter:
        absent = cls(torch.empty_like(parameter, device="meta"))
        absent.janus_name = name
        return absent

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = getattr(function, "__name__", "")
        attribute = getattr(getattr(function, "__self__", None), "__name__", "") if asked == "__get__" else ""
        if asked in _DESCRIBING_METHODS or attribute in _DESCRIBING_ATTRIBUTES:
            return super().__torch_function__(function, types, args, kwargs or {})
        name = next((arg.janus_name for arg in args if isinstance(arg, AbsentParameter)), "a parameter")
        raise RuntimeError(
            f"{name} is sharded over ranks and was used outside the run of its block: "
            "run blocks through run_block, the rest of the model inside around"
        )

    def __repr__(self, **_: Any) -> str:
        return f"AbsentParameter({self.janus_name!r})"


@dataclass(kw_only=True)
class _Member:
    """One parameter of a unit: its range of the flattened unit and the places in modules where it is used."""

    name: str
    shape: torch.Size
    start: int
    stop: int
    places: list[tuple[nn.Module, str]] = field(default_factory=list)

    def put(self, tensor: Tensor) -> None:
        for module, attribute in self.places:
            module._parameters[attribute] = tensor  # type: ignore[assignment]


class ShardedUnit:
    """This rank's range of one block's (or the root's: block None) parameters, and how the whole is restored.

    pieces: one per parameter that the range meets, possibly none; the padding is in no piece.
    """

    def __init__(
        self, block: int | None, places: dict[str, list[tuple[nn.Module, str]]], shard: Axis, copies: Axis
    ) -> None:
        self.block, self.shard, self.copies = block, shard, copies
        parameters = {name: module._parameters[attribute] for name, [(module, attribute), *_] in places.items()}
        first = next(iter(parameters.values()))
        assert all((p.dtype, p.device) == (first.dtype, first.device) for p in parameters.values()), list(parameters)
        self.members: list[_Member] = []
        start = 0
        for name, parameter in parameters.items():
            stop = start + parameter.numel()
            self.members.append(_Member(name=name, shape=parameter.shape, start=start, stop=stop, places=places[name]))
            start = stop
        self.numel, self.shard_numel = start, -(-start // shard.size)
        self._flat = first.detach().new_zeros(self.shard_numel)
        # what ties the gather's node to the graph: gradients reach the pieces by ``add_gradient``, on all ranks alike
        self.anchor = nn.Parameter(first.detach().new_empty(0))
        self.pieces = [piece for member in self.members if (piece := self._piece(member, parameters[member.name]))]
        self._absent = [AbsentParameter.of(name, parameter) for name, parameter in parameters.items()]
        self._gradient: Tensor | None = None
        self._version = -1
        self.withdraw()

    def _piece(self, member: _Member, parameter: Tensor) -> Piece | None:
        begin = self.shard.index * self.shard_numel
        start, stop = max(member.start, begin), min(member.stop, begin + self.shard_numel)
        if start >= stop:
            return None
        mine = self._flat[start - begin : stop - begin]
        chunk = (start - member.start, stop - member.start)
        mine.copy_(parameter.detach().reshape(-1)[chunk[0] : chunk[1]])
        return Piece(
            name=member.name, shape=tuple(member.shape), parameter=nn.Parameter(mine), chunks=(chunk,),
            owners=self.shard, copies=self.copies,
        )  # fmt: skip

    @property
    def shard_bytes(self) -> int:
        """Bytes of this rank's range, padding included."""
        return self._flat.nbytes

    def restore(self, phase: str) -> tuple[Tensor, Pending]:
        """Start to gather the whole unit."""
        for piece in self.pieces:
            assert piece.parameter.untyped_storage()._cdata == self._flat.untyped_storage()._cdata, piece.name
        self._version = self._flat._version
        whole = _room(self.shard_numel * self.shard.size, self._flat)
        return whole, self.shard.all_gather(whole, self._flat, phase)

    def present(self, whole: Tensor, owner: ShardedParameters) -> None:
        """Make the gathered values the module's parameters."""
        assert self._version == self._flat._version, (
            f"parameters of block {self.block} changed after they were gathered: invalidate() was not called"
        )
        for member, tensor in zip(self.members, _Gather.apply(self.anchor, whole, self, owner), strict=True):
            member.put(tensor)

    def withdraw(self) -> None:
        """Put placeholders where the parameters were."""
        for member, absent in zip(self.members, self._absent, strict=True):
            member.put(absent)

    def reduce(self, gradients: Sequence[Tensor | None], phase: str) -> _Reduction:
        """Start the sum over the shard axis of whole gradients; None: zero."""
        whole = _room(self.shard_numel * self.shard.size, self._flat)
        whole[self.numel :].zero_()
        for member, gradient in zip(self.members, gradients, strict=True):
            part = whole[member.start : member.stop]
            part.zero_() if gradient is None else part.view(member.shape).copy_(gradient)
        summed = torch.empty_like(self._flat)
        return _Reduction(self, summed, self.shard.reduce_scatter(summed, whole, phase), whole, phase)

    def add_gradient(self, summed: Tensor) -> None:
        """Add to the pieces' ``grad``, which are views of one buffer; where they were cleared, it starts anew."""
        gradient = self.gradient()
        if gradient is not None:
            gradient += summed
            return
        self._gradient = summed
        begin = self.shard.index * self.shard_numel
        starts = {member.name: member.start for member in self.members}
        for piece in self.pieces:
            start = starts[piece.name] + piece.chunks[0][0] - begin
            piece.parameter.grad = summed[start : start + piece.parameter.numel()]

    def fill_gradient(self) -> None:
        """A gradient of zero, where none has come."""
        self.add_gradient(torch.zeros_like(self._flat))

    def gradient(self) -> Tensor | None:
        """The buffer of which the pieces' ``grad`` are views; None before a gradient has come since they were cleared.

        A rank without pieces has padding only, always zero, which nothing clears.
        """
        for piece in self.pieces:
            if piece.parameter.grad is None:
                return None
            mine = self._gradient is not None and _shares_memory(piece.parameter.grad, self._gradient)
            assert mine, f"the gradient of {piece.name} was replaced by another tensor"
        return self._gradient


@dataclass(frozen=True)
class _Reduction:
    """A reduce-scatter under way. whole: its input, kept until it is done."""

    unit: ShardedUnit
    summed: Tensor
    pending: Pending
    whole: Tensor
    phase: str


class _Gather(Function):
    """The gathered buffer -> every parameter of the unit. Backward: their sum over ranks, to the pieces, not autograd.

    The force pass must not come here: it is asked for positions and strain, and runs under
    ``without_parameter_gradients``, without which recomputation would ask for more. Second derivatives never do.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, whole: Tensor, unit: ShardedUnit, owner: ShardedParameters) -> Any:
        ctx.unit, ctx.owner = unit, owner
        ctx.set_materialize_grads(False)
        # detached: views that autograd does not know as views of one another
        return tuple(whole[member.start : member.stop].view(member.shape).detach() for member in unit.members)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None, None]:
        phase = backward_phase("FE")
        assert phase != "FF", f"the force pass made gradients of the parameters of block {ctx.unit.block}"
        ctx.owner.collect(ctx.unit.reduce(gradients, phase))
        return None, None, None, None


def _room(numel: int, like: Tensor) -> Tensor:
    """Uninitialised memory [numel]; on a CPU from the pool that lends freed blocks again."""
    return pool.empty(numel, like=like) if like.device.type == "cpu" else like.new_empty(numel)


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


class ShardedParameters:
    """The sharded units of a model on this rank; a runner of blocks for ``evaluate_potential``.

    shard: the ranks that share the parameters; copies: those with an equal shard. recompute: blocks run through
    second-order activation checkpointing, the gather inside. on_reduced: called in the backward with a unit and a phase
    once the sum over the shard axis is in the unit's gradient, in the order in which the sums were started.
    """

    def __init__(
        self, shard: Axis, copies: Axis, buffers: GatheredBuffers | None = None, *, recompute: bool = False
    ) -> None:
        self.shard, self.copies, self.recompute = shard, copies, recompute
        self.buffers = buffers if buffers is not None else GatheredBuffers()
        self.units: list[ShardedUnit] = []
        self.on_reduced: Callable[[ShardedUnit, str], None] | None = None
        self._block_units: dict[nn.Module, tuple[ShardedUnit, GatheredBuffer]] = {}
        self._root: ShardedUnit | None = None
        self._root_whole: tuple[Tensor, Pending] | None = None
        self._reduction: _Reduction | None = None
        self._in_step = False

    @property
    def pieces(self) -> dict[str, Piece]:
        """What this rank keeps, by the parameter's name in the undistributed model."""
        return {piece.name: piece for unit in self.units for piece in unit.pieces}

    def add_block(
        self, index: int, block: nn.Module, *, exclude: Collection[str] = (), prefix: str | None = None
    ) -> None:
        """Shard a block's trainable parameters but those named in ``exclude`` (as the block names them).

        prefix: of their names in the whole model; None: "blocks.INDEX.". All ranks add the same blocks.
        """
        places = _places(block, f"blocks.{index}." if prefix is None else prefix, exclude)
        if not places:
            return
        unit = ShardedUnit(index, places, self.shard, self.copies)
        self._block_units[block] = unit, self.buffers.add(index, unit.restore)
        self.units.append(unit)

    def add_root(self, model: nn.Module, *, exclude: Collection[str] = ()) -> None:
        """Shard every trainable parameter of the model that no block has taken, but those named in ``exclude``."""
        assert self._root is None, "the root was added already"
        places = _places(model, "", exclude)
        if places:
            self._root = ShardedUnit(None, places, self.shard, self.copies)
            self.units.append(self._root)

    @contextmanager
    def step(self, *, training: bool = True) -> Iterator[None]:
        """Around all forwards and backwards of a step, on all ranks; parameters change outside only.

        At the end gradients are complete on this shard and no gathered buffer is left. After an exception the ranks no
        longer agree on what they have gathered: the job must end.
        """
        assert not self._in_step, "a step is open already"
        self._in_step = True
        # backward on the calling thread, also on accelerators: phases and gathered blocks belong to it
        with self.buffers.hooks(), torch.autograd.set_multithreading_enabled(False):
            self._start_root()
            if training and self._block_units:
                self.buffers.prefetch(min((buffer for _, buffer in self._block_units.values()), key=_block), "FE")
            yield
        self.settle()
        self.invalidate()
        self._in_step = False

    @contextmanager
    def around(self, model: nn.Module | None = None) -> Iterator[None]:
        """Around one evaluation of the model: its root parameters are present. Outside a step it is a step by itself.

        Inside a step they stay until the next evaluation, for recomputation wants them in the backward.
        """
        if not self._in_step:
            with self.step(training=False):
                with self.around(model):
                    yield
            return
        if self._root is not None:
            self._start_root()
            assert self._root_whole is not None
            whole, pending = self._root_whole
            pending.wait()
            self._root.present(whole, self)
        yield

    def run_block(
        self, block: nn.Module, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """function(*tensors), which uses the block's parameters, with these gathered."""
        entry = self._block_units.get(block)
        run = function if entry is None else partial(self._run_gathered, *entry, function)
        if not self.recompute:
            return run(*tensors)
        held = [p for p in block.parameters() if p.requires_grad and not isinstance(p, AbsentParameter)]
        anchors = [] if entry is None else [entry[0].anchor]
        return recomputed_with([*held, *anchors], run, *tensors, remember=remember_phase)

    def _run_gathered(
        self, unit: ShardedUnit, buffer: GatheredBuffer, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        unit.present(self.buffers.use(buffer), self)
        try:
            return function(*tensors)
        finally:
            unit.withdraw()

    def collect(self, reduction: _Reduction) -> None:
        """Take over a reduce-scatter that has just started; the one before it is completed now."""
        before, self._reduction = self._reduction, reduction
        self._complete(before)

    def settle(self) -> None:
        """Complete the last reduce-scatter."""
        before, self._reduction = self._reduction, None
        self._complete(before)

    def invalidate(self) -> None:
        """Forget what is gathered: called inside a step when parameters have changed."""
        self.buffers.drop()
        if self._root_whole is not None:
            self._root_whole[1].wait()
            self._root_whole = None
        if self._root is not None:
            self._root.withdraw()

    def _start_root(self) -> None:
        if self._root is not None and self._root_whole is None:
            self._root_whole = self._root.restore("FE")

    def _complete(self, reduction: _Reduction | None) -> None:
        if reduction is None:
            return
        reduction.pending.wait()
        reduction.unit.add_gradient(reduction.summed)
        if self.on_reduced is not None:
            self.on_reduced(reduction.unit, reduction.phase)


def _block(buffer: GatheredBuffer) -> int:
    return buffer.block


def _places(module: nn.Module, prefix: str, exclude: Collection[str]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where each trainable parameter is used, by its first name; shared parameters are used in several places."""
    unknown = set(exclude) - {name for name, _ in module.named_parameters(remove_duplicate=False)}
    assert not unknown, f"no parameters {sorted(unknown)} to leave out"
    names: dict[nn.Parameter, str] = {}
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    for path, part in module.named_modules():
        for attribute, parameter in part._parameters.items():
            name = f"{path}.{attribute}" if path else attribute
            if parameter is None or not parameter.requires_grad or name in exclude:
                continue
            if not isinstance(parameter, AbsentParameter):
                places.setdefault(names.setdefault(parameter, prefix + name), []).append((part, attribute))
    return places
