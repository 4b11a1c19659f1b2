"""janus train on the command line: what it prints, what it records, and one sentence for every mistake."""

import json
import subprocess

import pytest
from train_runs import BIN, TINY, environment, launch, make_store

from janus.cli.main import main
from janus.config import read_toml
from janus.data.store import write_store
from janus.data.structure import Structure
from janus.layout import Layout
from janus.train.steplog import read_step_log
from scaling_studies.code_version import trainer_version
from scaling_studies.job_facts import collect
from scaling_studies.provenance import missing, of_attempt


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("command") / "ten.store")


def test_summary_steps_and_checkpoints_of_a_run(store, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--batch.structures=4", "--data.validation_fraction=0.2", "--run.validate_every=3"]
    assert main(["train", "--data", str(store.path), "--out", str(out), *TINY, *words, "--steps", "6", "--json"]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary == json.loads((out / "run.json").read_text())
    assert (summary["schema"], summary["status"], summary["steps_done"]) == ("janus.run/1", "done", 6)
    assert summary["layout"] == Layout().to_mapping()
    assert (summary["num_training"], summary["num_validation"]) == (8, 2)
    assert summary["matmul_precision"] == "ieee"
    assert summary["peak_memory_bytes"][0] > 1e8
    assert summary["wall_s"] >= summary["start_up_s"] + summary["loop_s"] > 0
    assert summary["validation"]["forces"]["count"] > 0
    lines = list(read_step_log(out / "steps.jsonl"))
    assert [line["step"] for line in lines] == list(range(6))
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 2, 2]
    rank = lines[0]["ranks"][0]
    assert set(rank["phase_s"]) == {"data", "FE", "FF", "BF_BE", "sync", "optimizer"}
    assert all(rank["phase_s"][phase] > 0 for phase in ("FE", "FF", "BF_BE", "optimizer"))
    assert sum(rank["phase_s"].values()) <= lines[0]["step_s"]
    assert "validation after 6 steps" in printed.err
    assert (out / "checkpoints" / "best").exists()


def test_counts_of_a_step_are_those_of_the_store(store, tmp_path):
    out = tmp_path / "run"
    words = ["--batch.structures=10", "--batch.max_work=2000"]
    assert main(["train", "--data", str(store.path), "--out", str(out), *TINY, *words, "--steps", "1"]) == 0
    rank = next(read_step_log(out / "steps.jsonl"))["ranks"][0]
    for name in ("atoms", "edges", "bonds", "angles"):
        assert rank[name] == getattr(store, f"num_{name}").sum()
    assert rank["structures"] == 10
    assert rank["micro_batches"] > 1


def test_experts_are_counted_on_two_ranks_of_torchrun(store, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--data", str(store.path), "--out", str(out), "--model", "matris-moe-tiny"]
    start = [str(BIN / "torchrun"), "--nproc-per-node", "2", "-m", "janus", *arguments]
    done = subprocess.run(
        [*start, "--steps", "2", "--batch.structures=10", "--json"],
        capture_output=True, text=True, timeout=120, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["world_size"], summary["provenance"]["launcher"]) == (2, "torchrun")
    require_whole_provenance(summary, out)
    line = next(read_step_log(out / "steps.jsonl"))
    assert [rank["rank"] for rank in line["ranks"]] == [0, 1]
    top_k = 2
    tokens = {"message": sum(rank["edges"] for rank in line["ranks"]),
              "feature": sum(rank["atoms"] for rank in line["ranks"])}  # fmt: skip
    assert len(line["tokens_per_expert"]) == 4
    for layer, loads in line["tokens_per_expert"].items():
        assert len(loads) == 8
        assert sum(loads) == top_k * tokens[layer.split()[-1]]


def require_whole_provenance(summary, out):
    """With the facts of a job around it, a run says all that a campaign requires."""
    code = {"revision": "abc", "diff": "def", "distributions": "012"}
    known = of_attempt(summary, read_toml(out / "config.toml"), collect("begin"), collect("end", 0), code, order_seed=0)
    assert missing(known) == []
    assert known["code_version"] == trainer_version()
    assert known["seeds"] == {"run": 0, "data": 0, "order": 0}
    (host,) = summary["provenance"]["hosts"]
    assert all(place.startswith(f"{host} cores ") and place.endswith(" cpu") for place in known["placement"])
    assert len(known["placement"]) == 2
    assert known["library_versions"]["gloo"].startswith("part of torch")


def test_the_loss_goes_down(store, tmp_path):
    out = tmp_path / "run"
    words = ["--optimizer.learning_rate=0.01", "--batch.structures=10", "--schedule.warmup_steps=5"]
    assert main(["train", "--data", str(store.path), "--out", str(out), *TINY, *words, "--steps", "60"]) == 0
    losses = [line["loss"] for line in read_step_log(out / "steps.jsonl")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def plan_file(tmp_path, **changes):
    plan = {"schema": "janus.plan/1", "world_size": 1, "train": {"batch": {"max_work": 777}}} | changes
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    return str(path)


def test_a_plan_is_laid_over_the_settings(store, tmp_path):
    out = tmp_path / "run"
    words = ["--data", str(store.path), "--out", str(out), "--plan", plan_file(tmp_path), *TINY]
    assert main(["train", *words, "--steps", "1"]) == 0
    assert read_toml(out / "config.toml")["batch"]["max_work"] == 777


def bare_molecules(tmp_path):
    import numpy as np

    hydrogen = Structure(numbers=np.array([1, 1], dtype=np.int32), positions=np.eye(3)[:2], cell=np.zeros((3, 3)),
                         pbc=np.zeros(3, dtype=bool), energy=-1.0, forces=np.zeros((2, 3)))  # fmt: skip
    return str(write_store(tmp_path / "h2.store", [hydrogen], cutoff_angstrom=5.0, line_cutoff_angstrom=3.5).path)


MISTAKES = {
    "missing data": (["--data", "nowhere.xyz"], "nowhere.xyz"),
    "no data": ([], "name the structures with --data PATH"),
    "unknown model": (["--model", "matris-tny"], "did you mean 'matris-tiny'"),
    "unknown option": (["--stepz", "3"], "did you mean '--steps'"),
    "unknown setting": (["--run.stepz=3"], "did you mean 'steps'"),
    "no steps": (["--steps", "0"], "run.steps is 0"),
    "empty batch": (["--batch.structures=0"], "batch.structures is 0"),
    "batch above data": (["--data", "STORE", "--batch.structures=11"], "use at most 10"),
    "missing labels": (["--data", "MOLECULES"], "set loss.stress to 0"),
    "validation without data": (["--data", "STORE", "--run.validate_every=5"], "data.validation_fraction"),
    "other world size": (["--data", "STORE", "--plan", "PLAN4"], "the plan is for 4 ranks but 1 were started"),
    "not a plan": (["--data", "STORE", "--plan", "PLANX"], "not 'janus.plan/1'"),
    "missing plan": (["--data", "STORE", "--plan", "nowhere.json"], "no file nowhere.json"),
    "missing settings": (["--config", "nowhere.toml"], "no file nowhere.toml"),
    "sharded": (["--data", "STORE", "--parallel.unit=2"], "the layout needs 2 ranks"),
    "nothing to resume": (["--data", "STORE", "--resume"], "holds no run"),
    "both": (["--data", "STORE", "--resume", "--force"], "both given"),
    "two optimizers": (["--data", "STORE", "--steps", "3", "--run.epochs=2"], "both set"),
    "word": (["--steps", "many"], "invalid int value"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(store, tmp_path, capsys, name):
    words, expected = MISTAKES[name]
    paths = {"STORE": str(store.path)}
    if "MOLECULES" in words:
        paths["MOLECULES"] = bare_molecules(tmp_path)
    if "PLAN4" in words:
        paths["PLAN4"] = plan_file(tmp_path, world_size=4)
    if "PLANX" in words:
        paths["PLANX"] = plan_file(tmp_path, schema="other")
    out = tmp_path / "run"
    arguments = [paths.get(word, word) for word in words]
    assert main(["train", "--out", str(out), *arguments, "--batch.structures=1" if name == "missing labels" else
                 "--run.keep=1"]) == 2  # fmt: skip
    printed = capsys.readouterr()
    assert expected in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""
    assert not out.exists()


def test_a_folder_that_holds_a_run_is_left_alone_unless_forced(store, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "--data", str(store.path), "--out", str(out), *TINY, "--steps", "1"]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(arguments) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*arguments, "--force", "--batch.structures=99"]) == 2  # a mistake beside --force loses nothing
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main([*arguments, "--force", "--run.seed=1"]) == 0
    assert (out / "config.toml").read_bytes() != before[out / "config.toml"]


def test_a_mistake_is_printed_once_by_many_ranks(store, tmp_path):
    arguments = ["train", "--data", str(store.path), "--out", str(tmp_path / "run"), "--batch.structures=0"]
    done = launch(2, "-m", "janus", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("batch.structures is 0") == 1
    assert "Traceback" not in done.stderr


def test_help_has_examples_for_each_launcher(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for launcher in ("mpiexec -n 2 janus train", "srun -n 8 janus train", "torchrun --nproc-per-node 4 -m janus"):
        assert launcher in text
