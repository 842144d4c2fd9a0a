"""Options that follow from the number of training rows where the user leaves them open."""

import pytest

from adaftr_fast.config import RunConfig
from adaftr_fast.config.fitted import FITTED, OF_ADAFTR, fitted
from adaftr_fast.errors import ConfigError


def options(config, *names):
    return [config.flat()[name] for name in names]


def test_a_complete_configuration_is_that_of_the_paper():
    assert RunConfig().for_log(5_000) == RunConfig()
    assert RunConfig(preset="data").for_log(5_000, "paper") == RunConfig()
    assert RunConfig.from_dict(RunConfig().to_dict()).preset == "paper"


@pytest.mark.parametrize("rows", [1, 100, 5_000, 300_000, 85_000_000])
def test_every_log_gets_options_that_can_train(rows):
    found = RunConfig(preset="fitted").for_log(rows)
    batch_size, epochs, steps = options(
        found, "training.batch_size", "training.max_epochs", "optimizer.decay_steps"
    )
    assert batch_size <= rows
    assert steps == epochs * (rows // batch_size)
    assert set(fitted(rows, {"model.name": "adaftr"})) == set(FITTED)
    assert found.for_log(1_000_000) == found  # a fitted configuration is complete


def test_the_model_is_mmoe_unless_an_option_names_adaftr():
    config = RunConfig(preset="fitted")
    assert config.flat().keys() >= OF_ADAFTR
    assert options(config.for_log(5_000), "model.name") == ["mmoe"]
    for model, name in (
        ({"name": "ple", "beta": 0.1}, "ple"),
        ({"embedding_dim": 4}, "mmoe"),
        ({"beta": 0.1}, "adaftr"),
        ({"backbone": "ple"}, "adaftr"),
        ({"tau": "scalar"}, "adaftr"),
    ):
        assert options(config.with_options(model=model).for_log(5_000), "model.name") == [name]


def test_adaftr_contrasts_in_blocks_unless_told_otherwise():
    config = RunConfig(preset="fitted").with_options(model={"name": "adaftr"})
    names = ("model.contrast_rows", "model.tau")
    assert options(config.for_log(5_000), *names) == [2, "fixed"]
    for model in ({"name": "mmoe"}, {"contrast": "mse"}, {"relatedness_updates": "all"}):
        assert options(config.with_options(model=model).for_log(5_000), *names) == [0, "adaptive"]
    assert options(config.with_options(model={"tau": "scalar"}).for_log(9), *names) == [0, "scalar"]


def test_small_logs_have_many_steps_and_large_ones_large_batches():
    small, large = (RunConfig(preset="data").for_log(rows) for rows in (5_000, 10_000_000))
    assert small.optimizer.decay_steps >= 500
    assert small.training.batch_size < large.training.batch_size == 1024
    assert small.training.max_epochs > large.training.max_epochs


def test_what_is_given_stays_and_the_rest_follows_it(tmp_path):
    (tmp_path / "run.toml").write_text("[training]\nbatch_size = 50\n[optimizer]\nlr = 0.0005\n")
    config = RunConfig.from_toml(tmp_path / "run.toml", preset="data")
    found = config.with_options(training={"max_epochs": 3}).for_log(1_000)
    assert options(found, "optimizer.lr", "training.batch_size") == [0.0005, 50]
    assert options(found, "training.patience", "optimizer.decay_steps") == [3, 60]
    warm = RunConfig(preset="fitted").with_options(optimizer={"warmup_steps": 10**6})
    assert warm.for_log(1_000).optimizer.decay_steps == 10**6 + 1
    (tmp_path / "run.toml").write_text('preset = "paper"\n')
    assert RunConfig.from_toml(tmp_path / "run.toml", preset="data").for_log(1_000) == RunConfig()
    (tmp_path / "run.toml").write_text('preset = "best"\n')
    with pytest.raises(ConfigError, match=r"run.toml: config\.preset: expected one of paper, fi"):
        RunConfig.from_toml(tmp_path / "run.toml")
