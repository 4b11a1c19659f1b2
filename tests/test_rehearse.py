"""A rehearsed rank against the same rank of a real job: every row of its ledger, its weights, what it must not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from janus.cli.main import main
from janus.parallel.fs3d import Axes, distribute
from janus.parallel.lean_experts import LeanExperts
from janus.rehearse import Rehearsal, RehearsalJob, Rehearsed, _Stepper, choose_rank
from janus.train.checkpoint_save import save_checkpoint
from janus.train.loss import denominators_of_labels
from janus.train.verify import work_of
from tests.parallel.thread_ranks import run_on_threads
from tests.perfmodel import test_traffic as real
from tests.train_runs import make_store

CPU = torch.device("cpu")


def job_of(case: real.Case, **options: Any) -> RehearsalJob:
    structures = real.structures_of(case.structures)
    everything = real._loader(case, structures, None).load_micro_batch(range(len(structures)))
    return RehearsalJob(
        config=case.config, layout=case.layout, store=structures, work=work_of(structures, case.config),
        batch=list(range(len(structures))), denominators=denominators_of_labels(everything.labels),
        **({"steps": 1, "warm_up": 0, "measures_memory": False} | options),
    )  # fmt: skip


def rehearsal_of(case: real.Case, rank: int, **options: Any) -> Rehearsal:
    job = job_of(case, **options)
    return Rehearsal(job, choose_rank(job, rank)[0], rank, CPU)


def rehearsed(case: real.Case, rank: int) -> Rehearsed:
    torch.set_num_threads(1)
    return rehearsal_of(case, rank).run()


# layouts of one, two and three axes, both families; ranks with and without work
COMPARED = {
    "data": [1],
    "shard, replicas without work": [3],
    "graph in half the unit": [0, 3],
    "expert, weights": [2],
    "graph and expert": [1],
    "all three, recomputed": [3],
    "few lent experts freed": [0],
}


@pytest.mark.parametrize("name", list(COMPARED))
def test_rows_equal_those_of_a_real_rank(name: str) -> None:
    """And hence the formulas (tests/perfmodel/test_traffic.py); numbers stay finite."""
    case = real.CASES[name]
    ran = real.ran_steps(case)
    for rank in COMPARED[name]:
        found = rehearsed(case, rank)
        assert found.typical.traffic == ran[rank].rows
        assert found.is_finite
        assert [row["edges"] for row in found.micro_batches] == [batch.num_edges for batch in ran[rank].batches]


def test_calls_add_up_to_the_ledger_and_each_is_waited_for() -> None:
    step = rehearsed(real.CASES["all three"], 2).typical
    sums: dict[tuple[str, str, str], list[int]] = {}
    for call in step.calls:
        total = sums.setdefault((call["phase"], call["axis"], call["collective"]), [0, 0])
        total[0] += 1
        total[1] += call["sent_bytes"]
    assert sums == {
        (row["phase"], row["axis"], row["collective"]): [row["calls"], row["sent_bytes"]] for row in step.traffic
    }
    at = {kind: [event["call"] for event in step.events if event["at"] == kind] for kind in ("start", "wait")}
    assert at["start"] == list(range(len(step.calls)))
    assert sorted(at["wait"]) == at["start"]
    assert sum(event["compute_s"] for event in step.events) == pytest.approx(step.compute_s)


def test_forward_phase_is_that_of_the_real_rank() -> None:
    """Ghosts are where they are: FE starts from the true geometry, so distances are those of the real job."""
    case = real.CASES["graph in half the unit"]
    rehearsal = rehearsal_of(case, 1)
    part = rehearsal.unit.micro_batches[0]
    whole = real._loader(case, real.structures_of("single"), None).load_micro_batch([0]).batch
    owned = part.part.batch.halo.owned
    here = torch.cat([whole.positions[owned], part.ghosts])
    batch = part.part.batch
    cell = batch.cell[batch.structure_of_atom[batch.centre]]
    vectors = here[batch.neighbour] + (batch.image[:, None] @ cell)[:, 0] - here[batch.centre]
    assert len(part.ghosts) > 0
    assert vectors.norm(dim=1).max() <= real.CUTOFFS["cutoff_angstrom"]
    assert vectors.norm(dim=1).min() > 1.5


@pytest.mark.parametrize("name", ["all three", "expert, weights", "shard"])
def test_weights_are_those_of_the_real_rank_and_stay(name: str) -> None:
    """Experts that live elsewhere are never in memory, and yet the numbers drawn are the same; a step changes none."""
    case, rank = real.CASES[name], 1
    stepper = _Stepper(rehearsal_of(case, rank))
    stepper.step()

    def build(world: Any) -> dict[str, torch.Tensor]:
        axes = Axes(**{name: world.axis(name, case.layout.groups(name)) for name in Axes.__dataclass_fields__})
        with real._building:
            made = distribute(case.config, case.layout, real.ThreadPlace(world.rank, CPU), axes=axes)
        return {name: piece.parameter.detach() for name, piece in made.pieces.items()}

    wanted = run_on_threads(case.layout.world_size, build)[rank]
    assert list(stepper.model.pieces) == list(wanted)
    for name, piece in stepper.model.pieces.items():
        assert torch.equal(piece.parameter, wanted[name]), name


@pytest.mark.parametrize("strategy", ["tokens", "weights"])
def test_experts_of_others_are_never_written(strategy: Any) -> None:
    """Of a whole matrix only this rank's part is filled, with the numbers that it would have anyway."""
    torch.manual_seed(5)
    wanted, after = torch.empty(9, 8, 16).uniform_(-0.5, 0.5), torch.rand(3)  # inner of 9 experts, h 4, d 16
    torch.manual_seed(5)
    with LeanExperts(real.MOE, strategy, 4, 1):
        whole = torch.zeros(9, 8, 16).uniform_(-0.5, 0.5)
        other = torch.rand(3)
    kept = torch.zeros(9, 128, dtype=torch.bool)
    kept[(slice(3, 5), slice(None)) if strategy == "tokens" else (slice(None), slice(32, 64))] = True
    assert torch.equal(whole, torch.where(kept.view(9, 8, 16), wanted, 0.0))
    assert torch.equal(other, after)


@pytest.mark.parametrize("name", ["graph in half the unit", "all three", "data"])
def test_the_rank_with_most_work_is_chosen(name: str) -> None:
    case = real.CASES[name]
    job = job_of(case)
    shares, chosen = choose_rank(job, None)

    def work(rank: int) -> int:
        batches = [one.part.batch for one in Rehearsal(job, shares, rank, CPU).unit.micro_batches]
        return sum(batch.num_edges + batch.num_angles for batch in batches)

    mine = [case.layout.coordinates(rank).data for rank in range(case.layout.world_size)]
    group = [rank for rank, data in enumerate(mine) if data == mine[chosen]]
    assert work(chosen) == max(work(rank) for rank in group) > 0


def test_it_cannot_save(tmp_path: Path) -> None:
    case = real.CASES["shard"]
    rehearsal = rehearsal_of(case, 0)
    stepper = _Stepper(rehearsal)
    with pytest.raises(RuntimeError, match="neither trains nor saves"):
        save_checkpoint(
            tmp_path / "checkpoints", step=1, config=case.config, facts={}, pieces=stepper.model.pieces, parts={},
            whole={}, communicator=rehearsal.communicator, background=False, keep=1, best=False,
        )  # fmt: skip
    assert not list(tmp_path.rglob("*.safetensors"))


LAYOUT = ["--parallel.unit=4", "--parallel.shard_degree=4", "--parallel.graph_degree=2", "--parallel.expert_degree=4"]
SMALL = ["--model", "matris-moe-tiny", "--model.width=16", "--model.num_heads=2", "--model.angle_width=8",
         "--model.cutoff_angstrom=4.0", "--model.line_cutoff_angstrom=3.0"]  # fmt: skip


def test_the_command_writes_a_file_that_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4096 ranks of which one exists; the batch is larger than the data, and the file says so."""
    make_store(tmp_path / "ten.store")
    out, trace, plan = (tmp_path / name for name in ("r.json", "t.json", "plan.json"))
    planned = {"data": {"path": str(tmp_path / "ten.store")}, "batch": {"structures": 4096}}
    plan.write_text(json.dumps({"schema": "janus.plan/1", "world_size": 4096, "train": planned}))
    words = [
        "--plan", str(plan), *SMALL, *LAYOUT, "--model.num_blocks=4", "--steps", "1", "--blocks", "2",
        "--device", "cpu", "--out", str(out),
    ]  # fmt: skip
    assert main(["rehearse", *words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    assert document["data"]["drawn"].startswith("with replacement")
    assert (document["num_blocks"], document["fewer_blocks"]["num_blocks"]) == (2, 1)
    assert document["drawn_out"]["num_blocks"] == 4
    assert document["step"]["traffic"]
    words = ["rehearse", "replay", str(out), "--machine", "lineshine", "--compute", "modelled"]
    assert main([*words, "--trace", str(trace), "--json"]) == 0
    played = json.loads(capsys.readouterr().out)
    assert played["extrapolated_blocks"]
    assert played["compute"] == "modelled"
    assert played["step_s"] >= played["compute_s"] > 0
    assert json.loads(trace.read_text())["traceEvents"]
    assert main(words) == 0
    assert "exposed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "x.store"], "the number of ranks is not known"),
        (["--data", "x.store", "--world-size", "6", "--parallel.unit=4"], "the layout needs 4 ranks"),
        (["--data", "x.store", "--world-size", "4", "--stepps", "1"], "unknown option"),
        (["--data", "x.store", "--world-size", "4", "--steps", "0"], "--steps is 0"),
        (["--data", "x.store", "--world-size", "4", "--blocks", "9"], "--blocks is 9"),
        (["--data", "x.store", "--world-size", "4", "--trace", "t.json"], "add --replay"),
        (["--data", "none.store", "--world-size", "4"], "none.store"),
        (["replay", "none.json", "--machine", "lineshine"], "no rehearsal none.json"),
        (["replay", "none.json", "--machine", "lineshine", "--compute", "scaled"], "--compute scaled needs --host"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["rehearse", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "\n" not in said


def test_what_does_not_fit_is_refused_before_it_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_store(tmp_path / "ten.store")
    words = ["--data", str(tmp_path / "ten.store"), "--model", "matris-moe-l", *LAYOUT, "--world-size", "4",
             "--device", "cpu", "--max-memory-gb", "1"]  # fmt: skip
    assert main(["rehearse", *words]) == 2
    assert "needs about" in capsys.readouterr().err
    assert main(["rehearse", *words, "--rank", "4"]) == 2
    assert "--rank is 4" in capsys.readouterr().err
