import pytest

from adaftr_fast.cli.app import COMMANDS, parse
from adaftr_fast.config import ModelConfig, OptimizerConfig, RunConfig
from adaftr_fast.config.run import SECTIONS
from adaftr_fast.errors import ConfigError
from adaftr_fast.models import build_model


def test_an_integer_for_a_float_is_a_float_however_the_option_is_set():
    """As in TOML and JSON: equal configurations have equal identities, and a fixed temperature may
    be 1.
    """
    made = RunConfig(
        model=ModelConfig(tau="fixed", tau_fixed=1), optimizer=OptimizerConfig(lr=1, tables_lr=2)
    )
    read = RunConfig.from_dict(
        {"model": {"tau": "fixed", "tau_fixed": 1.0}, "optimizer": {"lr": 1, "tables_lr": 2}}
    )
    for config in (made, read):
        values = (config.model.tau_fixed, config.optimizer.lr, config.optimizer.tables_lr)
        assert [type(value) for value in values] == [float] * 3
        assert config.model.alpha == 1.0
    assert repr(made.identity()) == repr(read.identity())
    build_model(made.model, [3, 4], ["click", "conversion"])


@pytest.mark.parametrize("value", [None, True, "1"])
def test_a_value_that_is_no_number_is_refused_as_it_was_given(value):
    with pytest.raises(ConfigError, match=rf"model\.alpha: expected .*, got {value!r}"):
        ModelConfig(alpha=value)
    hidden = [8]
    config = ModelConfig(expert_hidden=hidden)
    hidden.append(-1)  # a list belongs to the configuration
    assert config.expert_hidden == [8]


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("training", {"batch_size": 0}, "batch_size: expected >= 1, got 0"),
        ("training", {"batch_size": 9, "accumulate": 2}, "expected a divisor of batch_size = 9"),
        ("training", {"seed": -1}, r"seed: expected a seed in \[0, .*\], got -1"),
        ("training", {"graph": "on"}, "graph: expected one of auto, off, got 'on'"),
        ("training", {"checkpoint_seconds": -1}, "expected a number of seconds >= 0, got -1"),
        ("training", {"monitor": "f1"}, "monitor: expected auc, gauc, .*, or TASK/ before one"),
        ("training", {"trackers": ["comet"]}, r"trackers\[0\]: expected one of tensorboard, wandb"),
        ("optimizer", {"schedule": "linear"}, "decay_steps: expected more than warmup_steps = 0"),
        ("optimizer", {"lr": -1.0}, "lr: expected a finite number >= 0, got -1.0"),
        ("optimizer", {"lr_end": 2.0}, r"lr_end: expected a fraction in \[0, 1\], got 2.0"),
        ("optimizer", {"beta1": 1.0}, r"beta1: expected a decay in \[0, 1\), got 1.0"),
    ],
)
def test_values_out_of_range_are_named(section, options, message):
    with pytest.raises(ConfigError, match=rf"^{section}\..*{message}"):
        SECTIONS[section](**options)


def test_a_dictionary_is_no_section():
    with pytest.raises(
        ConfigError, match=r"RunConfig: model must be a ModelConfig, got \{'name': 'mmoe'\}"
    ):
        RunConfig(model={"name": "mmoe"})


def test_a_file_names_an_own_model_by_class_as_the_command_line_does(tmp_path):
    (tmp_path / "run.toml").write_text('[model]\nclass = "nets:Net"\nembedding_dim = 4\n')
    read = RunConfig.from_toml(tmp_path / "run.toml").model
    assert (read.name, read.embedding_dim) == ("nets:Net", 4)
    with pytest.raises(ConfigError, match=r"^config\.model: expected name or class, got both$"):
        RunConfig.from_dict({"model": {"class": "nets:Net", "name": "mmoe"}})


def test_a_preset_stands_for_its_options_and_others_override_it(tmp_path):
    (tmp_path / "run.toml").write_text('[model]\npreset = "recommended"\nbeta = 0.5\n')
    expected = ModelConfig(
        tau="fixed", tau_fixed=0.05, contrast_epochs=2.0, contrast_rows=2, beta=0.5
    )
    assert RunConfig.from_toml(tmp_path / "run.toml").model == expected
    assert RunConfig().with_options(model={"beta": 0.5, "preset": "recommended"}).model == expected
    assert (
        RunConfig.from_dict({"model": {"preset": "recommended", "tau": "scalar"}}).model.tau
        == "scalar"
    )
    assert RunConfig().with_options(model={"class": "nets:Net"}).model.name == "nets:Net"
    wide = RunConfig().with_options(model={"preset": "ecomm_ads"}).model
    assert (wide.expert_hidden, wide.tower_hidden) == ([128], [128, 64, 32])
    with pytest.raises(
        ConfigError, match=r"model\.preset: expected one of recommended, ecomm_ads, got 'x'"
    ):
        RunConfig().with_options(model={"preset": "x"})


def test_on_the_command_line_options_after_a_preset_override_it(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text('[model]\npreset = "recommended"\ntau = "scalar"\n')

    def parsed(*arguments):
        name, _, options = parse(["train", "--out", "out", *arguments])
        model = COMMANDS[name].of(options).config.model
        return model.tau, model.contrast_epochs

    assert parsed("--model.preset", "recommended") == ("fixed", 2.0)
    assert parsed("--model.preset=recommended", "--model.tau=scalar") == ("scalar", 2.0)
    assert parsed("--model.tau=scalar", "--model.preset=recommended") == ("fixed", 2.0)
    assert parsed("--model.tau=adaptive", "--config", str(file)) == ("scalar", 2.0)
    assert parsed("--config", str(file), "--model.contrast_epochs=1") == ("scalar", 1.0)
    with pytest.raises(SystemExit):
        parsed("--model", '{"preset": "recommended"}')
    assert "ambiguous option: --model" in capsys.readouterr().err
    file.write_text('[model]\npreset = "x"\n')
    for arguments in (["--config", str(file)], ["--model.preset", "x"]):
        with pytest.raises(SystemExit):
            parsed(*arguments)
        assert "recommended, " in (shown := capsys.readouterr().err).replace("'", "")
        assert shown.count("\n") == 1


def test_the_command_line_reads_values_by_their_types():
    values = {
        "out": ("null", "null"),
        "model.shared_experts": ("null", None),
        "model.tower_hidden": ("[8, 4]", [8, 4]),
        "model.equal_budget": ("False", False),
        "optimizer.lr": ("1e-3", 1e-3),
        "training.max_epochs": ("1_000", 1000),
    }
    words = [f"--{name}={text}" for name, (text, _) in values.items()]
    _, _, given = parse(["train", *words, "--restart"])
    assert given == {name: value for name, (_, value) in values.items()} | {"restart": True}
