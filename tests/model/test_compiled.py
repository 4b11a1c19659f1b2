"""Compiled energies, forces and stress against the fused operators, to second order, for changing batches.

By default torch's tracing alone is tested (backend "eager": which operators are in the graph, which sizes are fixed);
the code generator takes minutes and is marked slow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ase
import ase.build
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from janus.config import ModelConfig
from janus.errors import UserError
from janus.kernels import operators
from janus.model import compiled
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.compiled import CompiledPotential, fits, require_compiler
from janus.model.geometry import Geometry
from janus.model.matris import BlockRunner
from janus.model.potential import Prediction, evaluate_potential
from janus.train.config import load_train_config
from tests.model.conftest import batch_of, disturbed
from tests.train_runs import launch

SCRIPT = Path(__file__).with_name("compiled_on_ranks.py")
SMALL = ModelConfig(num_blocks=1, width=8, cutoff_angstrom=4.0, line_cutoff_angstrom=3.2)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _model(config: ModelConfig = SMALL) -> nn.Module:
    return disturbed(build_model(config, seed=3, dtype=torch.float64))


def _crystal(a: float, seed: int, repeat: tuple[int, int, int] = (1, 1, 1)) -> ase.Atoms:
    atoms = ase.build.bulk("NaCl", "rocksalt", a=a, cubic=True).repeat(repeat)
    atoms.rattle(0.1, seed=seed)
    return atoms


def _batches(config: ModelConfig = SMALL) -> list[GraphBatch]:
    """Of two structures, of three and of one."""
    molecule, ring = ase.build.molecule("CH3CH2OH"), ase.build.molecule("C6H6")
    return [
        batch_of(config, _crystal(5.2, 1), molecule),
        batch_of(config, _crystal(5.3, 2, (1, 1, 2)), _crystal(5.5, 4), ring),
        batch_of(config, _crystal(5.1, 3)),
    ]


Gradients = dict[str, Tensor]


def _evaluated(model: nn.Module, batch: GraphBatch, evaluate: Any) -> tuple[Prediction, Gradients]:
    """Prediction, and gradients of a loss of energies, forces and stresses."""
    model.zero_grad()
    prediction = evaluate(batch)
    loss = (prediction.forces - 0.1).square().sum() + prediction.energy.sum() + 10 * prediction.stress.square().sum()
    if prediction.magnetic_moments is not None:
        loss = loss + prediction.magnetic_moments.square().sum()
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return prediction, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trained.items()}


def _fused(model: nn.Module, batch: GraphBatch) -> tuple[Prediction, Gradients]:
    return _evaluated(model, batch, lambda batch: evaluate_potential(model, batch, create_graph=True))


def _largest_error(found: Gradients, wanted: Gradients) -> float:
    """Largest error of a parameter's gradient, relative to its norm."""
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).norm() / (wanted[name].norm() + 1e-12)) for name in wanted)


def _require_equal(found: tuple[Prediction, Gradients], wanted: tuple[Prediction, Gradients]) -> None:
    for name in ("energy", "forces", "stress", "magnetic_moments"):
        torch.testing.assert_close(getattr(found[0], name), getattr(wanted[0], name), rtol=1e-10, atol=1e-10)
    assert _largest_error(found[1], wanted[1]) < 1e-10


def _check_all_batches(config: ModelConfig, backend: str) -> None:
    model = _model(config)
    evaluate = CompiledPotential(model, backend=backend)
    for batch in _batches(config):
        _require_equal(_evaluated(model, batch, evaluate), _fused(model, batch))
    assert counters["stats"]["unique_graphs"] == 1  # compiled for the first batch, used for all
    assert not counters["graph_break"]


@pytest.mark.parametrize("compat", [False, True])
def test_one_graph_serves_batches_of_all_sizes(compat: bool) -> None:
    config = ModelConfig(num_blocks=1, width=8, cutoff_angstrom=4.0, line_cutoff_angstrom=3.2, compat=compat)
    _check_all_batches(config, "eager")


@pytest.mark.slow
def test_gradients_of_the_differentiated_graph() -> None:
    """The compiler's own second differentiation, without its code generator."""
    _check_all_batches(SMALL, "aot_eager")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_generated_code() -> None:
    _check_all_batches(SMALL, "inductor")


def test_batches_that_the_graph_cannot_hold_are_evaluated_without_it() -> None:
    model = _model()
    evaluate = CompiledPotential(model, backend="eager")
    alone = ase.Atoms("He", cell=[20, 20, 20], pbc=True)
    pair = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    for atoms in (alone, pair):
        batch = batch_of(SMALL, atoms)
        assert not fits(batch)
        found, wanted = evaluate(batch), evaluate_potential(model, batch, create_graph=True)
        assert torch.equal(found.energy, wanted.energy)
        assert torch.equal(found.forces, wanted.forces)
    assert not fits(GraphBatch.collate([], []))
    assert counters["stats"]["unique_graphs"] == 0


def _silu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(torch.nn.functional.silu(x), weight, bias)


class _SiluLinear(torch.autograd.Function):
    """silu(x) weight^T + bias with native operators in its backward: right to all orders outside of a graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _silu_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        logistic = torch.sigmoid(x)
        slope = logistic * (1 + x * (1 - logistic))
        bias = cotangent.sum(0)
        return (cotangent @ weight) * slope, cotangent.T @ (x * logistic), bias


def test_replicas_sum_the_gradients_of_their_graphs() -> None:
    """Micro-batches of several sizes on two ranks, some too small for the graph."""
    done = launch(2, str(SCRIPT), timeout_s=250)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["graphs"] == [1, 1]
    assert measured["passes"], measured
    assert len(measured["gradients"]) > 50


class _TwoBody(nn.Module):
    """A potential of pairs alone: a perceptron of the distance. last: its last product, silu(x) weight^T + bias."""

    def __init__(self, last: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.inner = nn.Parameter(torch.randn(8, 1, generator=generator, dtype=torch.float64))
        self.outer = nn.Parameter(torch.randn(4, 8, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.register_buffer("reference_energies", torch.zeros(94, dtype=torch.float64))
        self.last = last

    def atom_features(self, batch: GraphBatch, geometry: Geometry, run_block: BlockRunner) -> Tensor:
        pairs = self.last(geometry.distance[:, None] @ self.inner.T, self.outer, self.bias)
        return operators.segment_sum(pairs[batch.pair_of_edge], batch.centre, batch.num_atoms)

    def atom_energies(self, atoms: Tensor) -> Tensor:
        return atoms.square().sum(1)


def test_an_autograd_function_in_the_graph_would_be_seen() -> None:
    """It loses its second order without an error. The comparison above notices, and the graph is refused."""
    batch = _batches()[0]
    right, wrong = _TwoBody(_silu_linear), _TwoBody(_SiluLinear.apply)
    wanted = _fused(right, batch)
    _require_equal(_fused(wrong, batch), wanted)
    _require_equal(_evaluated(right, batch, CompiledPotential(right, backend="eager")), wanted)
    with pytest.raises(Exception, match=r"an autograd\.Function in a compiled graph has no second order"):
        CompiledPotential(wrong, backend="eager")(batch)
    torch._dynamo.reset()
    with patch.object(compiled, "_native_only", lambda backend: backend):
        prediction, gradients = _evaluated(wrong, batch, CompiledPotential(wrong, backend="eager"))
    torch.testing.assert_close(prediction.forces, wanted[0].forces, rtol=1e-10, atol=1e-10)
    assert _largest_error(gradients, wanted[1]) > 0.1


def test_what_compiling_needs_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(UserError, match=r"a C\+\+ compiler .* is not there"):
            require_compiler("cpu")
        require_compiler("cpu", "eager")
    monkeypatch.delattr(torch._dynamo.config, "trace_autograd_ops")
    with pytest.raises(UserError, match=r"install torch 2\.13, or set run\.compile to false"):
        CompiledPotential(_model(), backend="eager")


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--parallel.unit=2", "--parallel.shard_degree=2"], "parallel.shard_degree is 2"),
        (["--parallel.unit=2", "--parallel.graph_degree=2"], "parallel.graph_degree is 2"),
        (["--model=matris-moe-tiny", "--parallel.unit=2", "--parallel.expert_degree=2"], "parallel.expert_degree is 2"),
        (["--model=matris-moe-tiny"], "model.family is 'matris-moe'"),
        (["--run.recompute=true"], "run.compile and run.recompute are both true"),
    ],
)
def test_what_cannot_be_compiled_is_refused(words: list[str], rule: str) -> None:
    load_train_config(overrides=words)
    with pytest.raises(UserError, match=rule):
        load_train_config(overrides=[*words, "--run.compile=true"])
