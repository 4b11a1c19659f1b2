"""The trainer's settings: defaults, overlays, words on the command line, rules."""

import re
import tomllib

import pytest

from janus.config import to_mapping, to_toml
from janus.errors import UserError
from janus.presets import preset
from janus.train.config import RunConfig, TrainConfig, load_train_config, merge, train_config


def test_settings_read_back_equal_from_toml():
    config = load_train_config(
        None, {"model": "matris-moe-tiny", "run": {"steps": 7}},
        overrides=["--data.path=a b.store", "--optimizer.betas=[0.8, 0.9]", "--model.experts.top_k=3"],
    )  # fmt: skip
    assert train_config(tomllib.loads(to_toml(to_mapping(config)))) == config
    assert config.model.experts.top_k == 3
    assert config.model.width == preset("matris-moe-tiny").width
    assert config.optimizer.betas == (0.8, 0.9)


def test_later_layers_win_and_a_preset_replaces_the_whole_model(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[model]\npreset = "matris-moe-tiny"\n[run]\nsteps = 5\nseed = 3\n')
    config = load_train_config(file, {"run": {"steps": 9}}, {"model": "matris-tiny"}, overrides=["--model.width=16"])
    assert (config.run.steps, config.run.seed) == (9, 3)
    assert config.model.family == "matris"
    assert config.model.width == 16
    assert config.model.experts is None


def test_a_full_model_table_stands_for_itself():
    model = to_mapping(preset("matris-moe-tiny"))
    assert load_train_config(None, {"model": model}).model == preset("matris-moe-tiny")


def test_merge_keeps_what_the_upper_layer_does_not_name():
    assert merge({"run": {"steps": 1, "seed": 2}}, {"run": {"steps": 3}}) == {"run": {"steps": 3, "seed": 2}}


def test_epochs_count_whole_batches():
    assert RunConfig(epochs=3).num_steps(10, 4) == 6
    assert RunConfig(epochs=3).num_steps(3, 4) == 3
    assert RunConfig(steps=5).num_steps(10, 4) == 5


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--batch.structures=0", "batch.structures is 0"),
        ("--batch.max_work=0", "batch.max_work is 0"),
        ("--batch.strctures=3", "did you mean 'structures'"),
        ("--bacth.structures=3", "did you mean 'batch'"),
        ("--model.preset=matris-tny", "did you mean 'matris-tiny'"),
        ("--loss.kind=l3", "use one of 'l1', 'l2', 'huber'"),
        ("--loss.forces=-1", "loss.forces is -1"),
        ("--optimizer.betas=[0.9]", "optimizer.betas"),
        ("--optimizer.ema_decay=1.0", "optimizer.ema_decay is 1.0"),
        ("--run.dtype=float16", "use one of 'float32', 'float64'"),
        ("--run.steps=0", "run.steps is 0"),
        ("--data.validation_fraction=1.5", "data.validation_fraction is 1.5"),
        ("--parallel.shard_degree=2", "does not divide the unit of 1"),
        ("--batch=3", "a section is a table"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(word, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        load_train_config(overrides=[word])


def test_the_layout_fills_the_ranks_that_were_started():
    config = TrainConfig()
    assert config.parallel.layout(4).replicas == 4
    sharded = load_train_config(overrides=["--parallel.unit=2", "--parallel.shard_degree=2"])
    assert sharded.parallel.layout(4).groups("shard") == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="needs 2 ranks"):
        sharded.parallel.layout(1)
    with pytest.raises(UserError, match="3 ranks"):
        load_train_config(overrides=["--parallel.replicas=3"]).parallel.layout(2)


def test_degrees_that_the_model_cannot_have_are_refused():
    unit = ["--parallel.unit=2", "--parallel.expert_degree=2"]
    with pytest.raises(UserError, match="the model has no experts"):
        load_train_config(overrides=unit)
    load_train_config(overrides=["--model=matris-moe-tiny", *unit])
    with pytest.raises(UserError, match="compat"):
        load_train_config(overrides=["--model.compat=true", "--parallel.unit=2", "--parallel.graph_degree=2"])
    with pytest.raises(UserError, match=r"parallel.gathered_blocks is 1: use 2 .* or 0 to keep all"):
        load_train_config(overrides=["--parallel.gathered_blocks=1"])


def test_steps_and_epochs_exclude_each_other():
    with pytest.raises(UserError, match="both set"):
        load_train_config(overrides=["--run.steps=3", "--run.epochs=3"])
