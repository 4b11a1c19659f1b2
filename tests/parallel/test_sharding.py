"""Sharded parameters against one process: exact results, counted traffic, lifetimes of what is gathered, misuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from janus.kernels.wanted import without_parameter_gradients
from janus.model.build import build_model
from janus.model.potential import Prediction, evaluate_potential
from janus.parallel.axis import LoneAxis
from janus.parallel.gathered import GatheredBuffers
from janus.parallel.gradients import GradientSums
from janus.parallel.ledger import Ledger, in_phase
from janus.parallel.pieces import leaves
from janus.parallel.sharding import AbsentParameter, ShardedParameters
from janus.train.ema import WeightAverage
from tests.model.conftest import batch_of
from tests.parallel.sharded_runs import (
    CONFIGS,
    SHARES,
    Run,
    Trace,
    config_of,
    merged,
    model_of,
    run_alone,
    structures,
    whole_values,
    worst_difference,
)
from tests.parallel.thread_ranks import ThreadWorld, run_on_threads

# float64 sums in another order; seen 1e-14 (gradients) and 5e-15 (values)
GRADIENT_TOLERANCE, VALUE_TOLERANCE = 1e-10, 1e-9
CASES = [
    (1, {}),
    (2, {}),
    (2, {"keep": None}),
    (2, {"recompute": True}),
    (3, {"keep": 1}),
    (3, {"recompute": True, "keep": None}),
    (4, {}),
    (4, {"recompute": True, "shard_degree": 2}),
    (4, {"shard_degree": 2}),
]


@pytest.fixture(scope="module")
def alone() -> dict[str, Trace]:
    return {family: run_alone(config_of(family)) for family in CONFIGS}


class PoisonedBuffers(GatheredBuffers):
    """Fills a buffer with NaN before it is freed: whoever still reads it shows."""

    def _free(self, block: int) -> None:
        for buffer in self._blocks[block]:
            if buffer.is_live:
                buffer.tensor().fill_(torch.nan)
        super()._free(block)


def same_predictions(family: str, shares: list[list[list[int]]], found: list[list[Prediction]]) -> None:
    """Energies, forces and stresses of every structure, wherever it was computed, against one process."""
    config = config_of(family)
    whole = evaluate_potential(model_of(config), batch_of(config, *structures()), create_graph=False)
    starts = torch.tensor([0, *(len(atoms) for atoms in structures())]).cumsum(0).tolist()
    seen = []
    for rank_shares, predictions in zip(shares, found, strict=True):
        for share, prediction in zip(rank_shares, predictions, strict=True):
            atoms = [atom for i in share for atom in range(starts[i], starts[i + 1])]
            for mine, expected in (
                (prediction.energy, whole.energy[share]), (prediction.stress, whole.stress[share]),
                (prediction.forces, whole.forces[atoms]),
            ):  # fmt: skip
                assert mine.shape == expected.shape
                assert torch.linalg.norm(mine - expected) <= 1e-10 * (1 + torch.linalg.norm(expected))
            seen += share
    assert sorted(seen) == list(range(len(starts) - 1))


@pytest.mark.parametrize(("num_ranks", "options"), CASES, ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_training_equals_one_process(alone, family, num_ranks, options):
    """Different and uneven structures per rank, ranks without any, two micro-batches, five steps."""
    config = config_of(family)

    def work(world: ThreadWorld) -> tuple[Trace, int]:
        run = Run.start(world, config, SHARES[num_ranks], **options)
        return run.train(5), run.sharded.buffers.peak_blocks

    results = run_on_threads(num_ranks, work)
    traces = [trace for trace, _ in results]
    same_predictions(family, SHARES[num_ranks], [trace.predictions for trace in traces])
    assert worst_difference(merged([t.gradients for t in traces]), alone[family].gradients) <= GRADIENT_TOLERANCE
    assert worst_difference(merged([t.values for t in traces]), alone[family].values) <= VALUE_TOLERANCE
    for trace, peak in results:
        assert trace.norms == pytest.approx(alone[family].norms, rel=1e-12)
        assert peak == {1: 1, 2: 2, None: 3}[options.get("keep", 2)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_nothing_reads_a_buffer_that_has_been_freed(alone, family, recompute, monkeypatch):
    monkeypatch.setattr("tests.parallel.sharded_runs.GatheredBuffers", PoisonedBuffers)
    traces = run_on_threads(
        2, lambda world: Run.start(world, config_of(family), SHARES[2], recompute=recompute).train(2)
    )
    assert worst_difference(merged([t.gradients for t in traces]), alone[family].gradients) <= GRADIENT_TOLERANCE
    assert traces[0].norms == pytest.approx(alone[family].norms[:2], rel=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_gate_tables_in_the_root(alone, recompute):
    """A parameter that blocks use but the root holds: present in the backward too, where blocks run again."""
    config = config_of("matris-moe")
    gates = ["message_update.experts.gate.table", "feature_update.experts.gate.table"]

    def work(world: ThreadWorld) -> Trace:
        exclude = dict.fromkeys(range(config.num_blocks), gates)
        run = Run.start(world, config, SHARES[2], recompute=recompute, exclude=exclude)
        root = next(unit for unit in run.sharded.units if unit.block is None)
        assert {f"blocks.0.{gate}" for gate in gates} <= {member.name for member in root.members}
        return run.train(5)

    traces = run_on_threads(2, work)
    assert worst_difference(merged([t.gradients for t in traces]), alone["matris-moe"].gradients) <= GRADIENT_TOLERANCE
    assert worst_difference(merged([t.values for t in traces]), alone["matris-moe"].values) <= VALUE_TOLERANCE


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("keep", [2, None])
@pytest.mark.parametrize("family", CONFIGS)
def test_calls_and_bytes_are_the_documented_ones(family, keep, recompute):
    num_blocks, num_ranks, num_steps = 4, 3, 1
    micro_batches = len(SHARES[num_ranks][0])
    config = config_of(family, num_blocks)

    def work(world: ThreadWorld) -> tuple[Ledger, list[int], int]:
        run = Run.start(world, config, SHARES[num_ranks], keep=keep, recompute=recompute)
        run.train(num_steps)
        units = {unit.block: unit.shard_bytes for unit in run.sharded.units}
        return world.ledger, [units[block] for block in range(num_blocks)], units[None]

    model = model_of(config)
    in_blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    in_root = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("blocks."))
    for ledger, block_bytes, root_bytes in run_on_threads(num_ranks, work):
        assert block_bytes == [8 * -(-numel // num_ranks) for numel in in_blocks]
        assert root_bytes == 8 * -(-in_root // num_ranks)
        inner = (0, 0) if keep is None else (sum(block_bytes[:-2]), sum(block_bytes[2:]))  # descending, ascending
        descending, ascending = inner
        again, m = 0 if keep is None else num_blocks - 2, micro_batches
        first = num_blocks + 1
        calls = {
            ("FE", "all_gather"): (first + (m - 1) * again, sum(block_bytes) + root_bytes + (m - 1) * ascending),
            ("FF", "all_gather"): (m * again, m * descending),
            ("BF", "all_gather"): (m * again, m * ascending),
            ("BE", "all_gather"): (m * again, m * descending),
            ("BE", "reduce_scatter"): (m * (num_blocks + 1), m * (sum(block_bytes) + root_bytes)),
            ("BF", "reduce_scatter"): (m * num_blocks, m * sum(block_bytes)) if recompute else (0, 0),
        }
        expected = {
            ("shard", *entry): (num_steps * count, num_steps * (num_ranks - 1) * size)
            for entry, (count, size) in calls.items()
            if count
        }
        counted = {
            (entry.axis, entry.phase, entry.collective): (ledger.calls[entry], ledger.sent_bytes[entry])
            for entry in ledger.calls
            if entry.axis == "shard"
        }
        assert counted == expected
        total = sum(count for (_, _, name), (count, _) in counted.items() if name == "all_gather")
        assert total == num_steps * (1 + (num_blocks if keep is None else 2 + 4 * m * (num_blocks - 2)))


class WatchedBuffers(GatheredBuffers):
    """Samples whose memory is alive whenever autograd saves or asks; looks for copies of parameters among the saved."""

    def __init__(self, keep: int | None) -> None:
        super().__init__(keep)
        self.made: list[tuple[int, StorageWeakRef]] = []
        self.most_alive, self.copies = 0, 0
        self.parameter_sums: dict[int, Tensor] = {}

    def know(self, model: nn.Module) -> None:
        for block in model.blocks:
            for parameter in block.parameters():
                known = self.parameter_sums.get(parameter.numel(), torch.empty(0, dtype=torch.float64))
                self.parameter_sums[parameter.numel()] = torch.cat([known, parameter.detach().sum()[None]])

    def _watch(self, tensor: Tensor, buffer: Any) -> None:
        super()._watch(tensor, buffer)
        self.made.append((buffer.block, StorageWeakRef(tensor.untyped_storage())))
        self._sample()

    def _sample(self) -> None:
        self.made = [(block, weak) for block, weak in self.made if not weak.expired()]
        self.most_alive = max(self.most_alive, len({block for block, _ in self.made}))

    def _pack(self, tensor: Tensor) -> Any:
        self._sample()
        saved = super()._pack(tensor)
        if isinstance(saved, Tensor) and saved.is_floating_point() and saved.numel() in self.parameter_sums:
            close = (self.parameter_sums[saved.numel()] - saved.sum()).abs() < 1e-12
            self.copies += int(close.any())
        return saved

    def _unpack(self, saved: Any) -> Tensor:
        tensor = super()._unpack(saved)
        self._sample()
        return tensor


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_at_most_two_blocks_are_ever_gathered(family, recompute, monkeypatch):
    """By the lifetimes of the memory itself, whoever holds it; and autograd saves no copy of a block's parameter."""
    monkeypatch.setattr("tests.parallel.sharded_runs.GatheredBuffers", WatchedBuffers)
    config = config_of(family, 4)

    def work(world: ThreadWorld) -> WatchedBuffers:
        run = Run.start(world, config, SHARES[2], recompute=recompute)
        buffers: Any = run.sharded.buffers
        buffers.know(model_of(config))
        with run.sharded.step():
            for batch in run.batches:
                run.backward(run.evaluate(batch))
            assert len({block for block, _ in buffers.alive()}) == 2
        buffers._sample()
        return buffers

    for buffers in run_on_threads(2, work):
        assert buffers.most_alive == 2
        assert buffers.peak_blocks == 2
        assert buffers.made == []
        assert buffers.copies == 0


def test_copies_and_lifetimes_would_be_seen(monkeypatch):
    """The two instruments of the test above find what they look for when it is there."""
    monkeypatch.setattr("tests.parallel.sharded_runs.GatheredBuffers", WatchedBuffers)
    config = config_of("matris", 4)

    def work(world: ThreadWorld) -> WatchedBuffers:
        run = Run.start(world, config, [[[0]]])
        buffers: Any = run.sharded.buffers
        buffers.know(model_of(config))
        kept = []

        def spoiled(block, function, *tensors):
            def inner(*arguments):
                weight = block.line_attention.target_logits.weight
                kept.append(weight)  # holds the whole buffer
                return (arguments[0] @ weight.T.contiguous(), *function(*arguments)[1:])

            return run.sharded.run_block(block, inner, *tensors)

        with run.sharded.step(), run.sharded.around(run.model):
            evaluate_potential(run.model, run.batches[0], create_graph=True, run_block=spoiled)
        return buffers

    buffers = run_on_threads(1, work)[0]
    assert buffers.most_alive == 4
    assert buffers.copies == 4


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_evaluation_follows_the_parameters(family, recompute):
    """Without a step around it; after an update; with averaged weights swapped in and out. Never a stale buffer."""
    config = config_of(family)

    def work(world: ThreadWorld) -> list[tuple[Prediction, dict[str, Tensor]]]:
        run = Run.start(world, config, SHARES[2], recompute=recompute)
        parameters = leaves(run.pieces)
        average = WeightAverage(parameters, 0.5)
        found = []

        def look() -> None:
            found.append((run.evaluate(run.batches[0], create_graph=False), whole_values(run.pieces, Tensor.detach)))

        look()
        run.train(1)
        look()
        average.update(0)
        with average.applied():
            look()
            assert run.sharded.buffers.alive() == []
        look()
        return found

    ranks = run_on_threads(2, work)
    energies = []
    assert [len(found) for found in ranks] == [4, 4]
    for per_rank in zip(*ranks, strict=True):
        model = model_of(config)
        model.load_state_dict(merged([values for _, values in per_rank]), strict=False)
        for rank, (prediction, _) in enumerate(per_rank):
            batch = batch_of(config, *(structures()[i] for i in SHARES[2][rank][0]))
            expected = evaluate_potential(model, batch, create_graph=False)
            assert not prediction.forces.requires_grad
            assert torch.allclose(prediction.energy, expected.energy, rtol=1e-12)
            assert torch.allclose(prediction.forces, expected.forces, rtol=1e-10, atol=1e-10)
            assert torch.allclose(prediction.stress, expected.stress, rtol=1e-10, atol=1e-10)
        energies.append(per_rank[0][0].energy[0].item())
    assert energies[1] == energies[3]
    assert len({round(energy, 9) for energy in energies}) == 3


def test_parameters_changed_inside_a_step_are_noticed():
    def work(world: ThreadWorld) -> None:
        run = Run.start(world, config_of("matris"), SHARES[2])
        with run.sharded.step():
            before = run.evaluate(run.batches[0], create_graph=False)
            with torch.no_grad():
                for parameter in leaves(run.pieces).values():
                    parameter.mul_(1.1)
            with pytest.raises(AssertionError, match="changed after they were gathered"):
                run.evaluate(run.batches[0], create_graph=False)
            run.sharded.invalidate()
            after = run.evaluate(run.batches[0], create_graph=False)
        assert not torch.allclose(before.energy, after.energy)

    run_on_threads(2, work)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("family", CONFIGS)
def test_pieces_cover_every_element_once_and_no_padding(family, num_ranks):
    config = config_of(family)
    model = model_of(config)

    def work(world: ThreadWorld) -> tuple[dict[str, Tensor], int, int]:
        run = Run.start(world, config, SHARES[num_ranks])
        kept = sum(unit.shard_bytes for unit in run.sharded.units) // 8
        return whole_values(run.pieces, Tensor.detach), sum(p.parameter.numel() for p in run.pieces.values()), kept

    ranks = run_on_threads(num_ranks, work)
    expected = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    found = merged([values for values, _, _ in ranks])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    total = sum(p.numel() for p in expected.values())
    assert sum(numel for _, numel, _ in ranks) == total  # each element on one rank
    num_units = config.num_blocks + 1
    assert total <= sum(kept for _, _, kept in ranks) < total + num_units * num_ranks


def test_no_rank_ever_holds_the_whole_model():
    """Blocks are sharded as they are built: when the next one arrives, the memory of the last is gone."""

    def work(world: ThreadWorld) -> tuple[int, int]:
        sharded = ShardedParameters(world.axis("shard"), LoneAxis("copies"))
        storages: list[StorageWeakRef] = []
        most_alive = 0

        def shard_block(index: int, block: nn.Module) -> None:
            nonlocal most_alive
            storages.extend(StorageWeakRef(p.untyped_storage()) for p in block.parameters())
            most_alive = max(most_alive, sum(not weak.expired() for weak in storages))
            sharded.add_block(index, block)

        model = build_model(config_of("matris", 4), on_block=shard_block)
        sharded.add_root(model)
        assert sum(not weak.expired() for weak in storages) == 0
        assert all(isinstance(p, AbsentParameter) for p in model.parameters())
        assert sum(p.untyped_storage().nbytes() for p in leaves(sharded.pieces).values()) > 0
        return most_alive, len(storages)

    # one rank after another: the generator that initialises models is the process's
    most_alive, num_parameters = run_on_threads(1, work)[0]
    assert 0 < most_alive <= num_parameters // 4 + 4


def test_absent_parameters_describe_themselves_and_refuse_to_be_used():
    model = model_of(config_of("matris"))
    numels = {name: (p.shape, p.numel(), p.dtype) for name, p in model.named_parameters()}
    sharded = ShardedParameters(LoneAxis("shard"), LoneAxis("copies"))
    for index, block in enumerate(model.blocks):
        sharded.add_block(index, block)
    sharded.add_root(model)
    assert {name: (p.shape, p.numel(), p.dtype) for name, p in model.named_parameters()} == numels
    assert all(p.device.type == "meta" for p in model.parameters())
    weight = model.blocks[1].line_attention.target_logits.weight
    rows = torch.ones(2, 8, dtype=torch.float64)
    for use in (lambda: rows @ weight.T, lambda: nn.functional.linear(rows, weight), lambda: weight + 1,
                weight.clone, lambda: weight.add_(1), lambda: torch.stack([weight])):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"is sharded over ranks and was used outside"):
            use()
    with pytest.raises(RuntimeError, match=r"blocks\.1\.line_attention\.target_logits\.weight is sharded"):
        model.blocks[1].line_attention.target_logits(rows)
    batch = batch_of(config_of("matris"), structures()[0])
    with pytest.raises(RuntimeError, match=r"is sharded over ranks"):
        evaluate_potential(model, batch, create_graph=False, run_block=sharded.run_block)


class TwoUses(nn.Module):
    """One matrix in two places, a scale and a frozen vector: 4 + 1 trainable numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False).double(), nn.Linear(2, 2, bias=False).double()
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.full((1,), 2.0, dtype=torch.float64))
        self.fixed = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)

    def forward(self, rows: Tensor) -> tuple[Tensor]:
        return (self.second(torch.tanh(self.first(rows))) * self.scale + self.fixed,)


@pytest.mark.parametrize("recompute", [False, True])
def test_shared_and_frozen_parameters_and_ranks_without_a_piece(recompute):
    """Five numbers over eight ranks: three ranks hold padding only and still take part."""
    plain = TwoUses()
    rows = torch.tensor([[0.3, -0.7], [1.1, 0.2], [-0.4, 0.9]], dtype=torch.float64)

    def force_loss(run_block) -> Tensor:
        x = rows.clone().requires_grad_()
        with without_parameter_gradients():
            (force,) = torch.autograd.grad(run_block(x).sum(), [x], create_graph=True)
        return force.square().sum()

    force_loss(lambda x: plain(x)[0]).backward()
    blocks = [TwoUses() for _ in range(8)]

    def work(world: ThreadWorld) -> dict[str, Tensor]:
        block = blocks[world.rank]
        sharded = ShardedParameters(world.axis("shard"), LoneAxis("copies"), recompute=recompute)
        sharded.add_block(0, block)
        assert isinstance(block.fixed, nn.Parameter)
        assert not isinstance(block.fixed, AbsentParameter)
        assert len(sharded.pieces) == int(world.rank < 5)
        with sharded.step():
            force_loss(lambda x: sharded.run_block(block, block, x)[0]).backward()
        assert list(GradientSums(sharded.pieces, sharded, bucket_bytes=1).finish()) == [0]
        return whole_values(sharded.pieces, lambda leaf: leaf.grad)

    found = merged(run_on_threads(8, work))
    assert found.keys() == {"blocks.0.first.weight", "blocks.0.scale"}
    assert torch.allclose(found["blocks.0.first.weight"], 8 * plain.first.weight.grad, rtol=1e-13)
    assert torch.allclose(found["blocks.0.scale"], 8 * plain.scale.grad, rtol=1e-13)


def test_a_force_pass_that_makes_gradients_of_parameters_is_noticed():
    """Under recomputation they would be added to the loss's: silently wrong."""
    block = TwoUses()
    sharded = ShardedParameters(LoneAxis("shard"), LoneAxis("copies"), recompute=True)
    sharded.add_block(0, block)
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    with sharded.step(), in_phase("FF"), pytest.raises(AssertionError, match="force pass made gradients"):
        torch.autograd.grad(sharded.run_block(block, block, x)[0].sum(), [x], create_graph=True)


def test_a_gradient_replaced_from_outside_is_noticed():
    def work(world: ThreadWorld) -> None:
        run = Run.start(world, config_of("matris"), SHARES[2])
        with run.sharded.step():
            run.backward(run.evaluate(run.batches[0]))
        for parameter in leaves(run.pieces).values():
            parameter.grad = torch.zeros_like(parameter)
        with pytest.raises(AssertionError, match="was replaced by another tensor"):
            run.sharded.units[0].gradient()

    run_on_threads(2, work)
