"""A search: its space, its trials, interruptions, and what it leaves."""

import json
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from adaftr_fast._toml import to_toml
from adaftr_fast.cli import main
from adaftr_fast.config import RunConfig
from adaftr_fast.errors import BusyError, CheckpointError, ConfigError, TrainingError
from adaftr_fast.runs.trained import load_trained
from adaftr_fast.training.checkpoint.weights import read_description
from adaftr_fast.tuning import trial as trialing
from adaftr_fast.tuning.search import tune
from adaftr_fast.tuning.space import apply, default_space, parse_space, read_space
from adaftr_fast.tuning.trial import Search

from .conftest import settings


def trials(found):
    """What a search did: state, options and AUC of each trial."""
    known = found.study.get_trials(deepcopy=False)
    return [(each.state, each.user_attrs["options"], each.value, each.intermediate_values) for each in known]


def test_a_space_gives_options_their_types():
    config = RunConfig().with_options(model={"name": "tests.runs.own:Net"})
    content = {
        "optimizer": {"lr": {"low": 1e-3, "high": 1}},
        "model": {
            "num_experts": {"low": 2, "high": 6, "step": 2},
            "options": {"depth": {"low": 1, "high": 9, "int": True}},
        },
        "model.pairs": {"choices": [["click-conversion"], []]},
        "model.options.name": {"choices": ["a", 1, [2.5], True]},
    }
    space = parse_space(content, config)
    trial = optuna.trial.FixedTrial(
        {
            "optimizer.lr": 0.5,
            "model.num_experts": 4,
            "model.options.depth": 3,
            "model.pairs": "[]",
            "model.options.name": "[2.5]",
        }
    )
    made = apply(config, {name: each.suggest(trial, name) for name, each in space.items()})
    assert (made.optimizer.lr, made.model.num_experts, made.model.pairs) == (0.5, 4, [])
    assert made.model.options == {"depth": 3, "name": [2.5]}
    assert type(made.model.options["depth"]) is int


@pytest.mark.parametrize("name", ["adaftr", "mmoe", "tests.runs.own:Net"])
def test_every_model_has_a_default_space(name):
    assert "optimizer.lr" in default_space(RunConfig().with_options(model={"name": name}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"optimizer.lrr" = { low = 1, high = 2 }', r"unknown option 'optimizer.lrr'"),
        ('"data.folder" = { choices = ["a"] }', "unknown option 'data.folder'"),
        ("lr = { low = 1, high = 2 }", "unknown option 'lr'"),
        (
            '"model.preset" = { choices = ["recommended"] }',
            "unknown option 'model.preset'; .* but data.folder and model",
        ),
        ("training.validate_every = { choices = [1, 0.5] }", "training.validate_every: cannot vary"),
        ("optimizer.lr = 3", r"optimizer.lr: the file: expected an object, got 3"),
        ("optimizer.lr = { low = 1 }", "optimizer.lr: expected choices, or low and high"),
        ("optimizer.lr = { low = 2, high = 1 }", "optimizer.lr: expected low < high, got 2 and 1"),
        ("optimizer.lr = { low = 0, high = 1, log = true }", "optimizer.lr: expected 0 < low < high, got 0 and 1"),
        ("optimizer.lr = { low = 1, high = 2, log = true, step = 1 }", "optimizer.lr: expected log or step, got both"),
        ("optimizer.lr = { low = 1, high = 2, step = 0 }", "optimizer.lr: expected step > 0, got 0"),
        ("optimizer.lr = { low = -1, high = 1 }", r"optimizer.lr: optimizer.lr: expected .* >= 0, got -1"),
        ("optimizer.lr = { low = 1, high = 2, max = 3 }", "optimizer.lr: unknown key 'max'"),
        ("model.num_experts = { low = 1, high = 2.5 }", "model.num_experts: expected integers for an integer option"),
        ("model.num_experts = { choices = [] }", "model.num_experts: expected one or more choices, or a range"),
        ('model.tau = { choices = ["adaptive", "none"] }', "model.tau: model.tau: expected one of adaptive"),
        ("model.tau = { low = 1, high = 2 }", "model.tau: model.tau: expected one of adaptive"),
        ("", "expected one or more options, got none"),
        ("= 1", "Invalid"),
    ],
)
def test_errors_in_a_space_name_the_option(tmp_path, text, message):
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"space\.toml: {message}"):
        read_space(tmp_path / "space.toml", RunConfig())


@pytest.mark.parametrize("choices", [["a", None], [[1, None]]])
def test_choices_that_best_toml_cannot_hold_are_refused(choices):
    config = RunConfig().with_options(model={"name": "tests.runs.own:Net"})
    with pytest.raises(ConfigError, match=r"^model\.options\.kind: TOML cannot hold None$"):
        parse_space({"model.options.kind": {"choices": choices}}, config)


def test_an_interrupted_search_continues_its_trial_and_ends_like_an_uninterrupted_one(search, monkeypatch):
    whole = tune(search("whole"), 3)
    seen = []
    real = Search.auc

    def interrupt(self, record):
        seen.append(record["epoch"])
        if len(seen) in (3, 7):  # within a trial
            raise KeyboardInterrupt
        return real(self, record)

    with monkeypatch.context() as patched:
        patched.setattr(Search, "auc", interrupt)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                tune(search(), 3)
    again = tune(search(), 3)
    assert trials(again) == trials(whole)
    assert again.test == whole.test
    assert tune(search(), 1).best.number == whole.best.number  # no more trials


def test_a_search_keeps_the_weights_of_the_best_and_reads_the_test_split_once(search, tmp_path, monkeypatch):
    loaded = []
    data_type = type(search().data)
    load = data_type.load
    monkeypatch.setattr(data_type, "load", lambda self, split: loaded.append(split) or load(self, split))
    found = tune(search(), 3)
    assert loaded.count("test") == 1
    assert max(each.value for each in found.study.trials) == found.best.value
    folders = sorted((tmp_path / "out/trials").iterdir())
    assert [each.name for each in folders] == ["0000", "0001", "0002"]
    kept = [each.name for each in folders if list(each.glob("best/weights-*"))]
    assert kept == [f"{found.best.number:04d}"]
    for each in folders:
        assert read_description(each / "best").tasks == ["click", "conversion"]
        if each.name not in kept:
            with pytest.raises(CheckpointError, match=r"weights-.*: missing: tune keeps the weights of its best trial"):
                load_trained(each)
    assert json.loads((tmp_path / "out/trials" / kept[0] / "test.json").read_text()) == found.test
    assert not list(tmp_path.glob("out/trials/*/last"))


def test_a_trial_below_the_median_is_pruned_and_a_failing_one_does_not_end_the_search(search, monkeypatch):
    monkeypatch.setattr(trialing, "STARTUP_TRIALS", 1)
    monkeypatch.setattr(trialing, "WARMUP_EPOCHS", 0)
    monkeypatch.setattr(Search, "auc", lambda self, record: record["validation"]["click"]["auc"] - falling())
    values = iter(range(1, 100))

    def falling():
        return next(values)

    space = {"optimizer.lr": {"choices": [1e30, 0.01]}}
    states = [each[0] for each in trials(tune(search(space=space, config=None), 6))]
    assert {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL} == set(states)


def test_a_search_without_a_finished_trial_is_an_error(search):
    with pytest.raises(TrainingError, match=r"none of 1 trials has finished; the last error: .*not finite"):
        tune(search(space={"optimizer.lr": {"choices": [1e30]}}), 1)


def test_one_task_may_count(search):
    found = tune(search(task="conversion"), 1)
    (best,) = found.study.trials
    assert best.value in best.intermediate_values.values()
    with pytest.raises(ConfigError, match="--task: expected one of click, conversion, got 'buy'"):
        search(task="buy")


def test_another_search_in_the_folder_is_refused(search, tmp_path):
    tune(search(), 1)
    with pytest.raises(CheckpointError, match="out: a search with another space; name another --out"):
        tune(search(space={"optimizer.lr": {"choices": [0.1]}}), 1)
    longer = settings(name="mmoe")
    with pytest.raises(CheckpointError, match="out: a search with another configuration; name another --out"):
        tune(search(config=longer), 1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/study.db").write_bytes(b"no database" * 100)
    with pytest.raises(CheckpointError, match=r"study\.db: damaged or not a search: "):
        tune(search("broken"), 1)


def test_two_searches_on_one_folder_are_refused(search, monkeypatch):
    def second(*_, **__):
        import threading

        raised = []

        def other():
            try:
                tune(search(), 1)
            except BusyError as error:
                raised.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(raised) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(trialing, "fit_one", second)
    with pytest.raises(KeyboardInterrupt):
        tune(search(), 1)


def test_the_command_writes_a_report_and_a_configuration_that_train_reads(prepared, tmp_path, monkeypatch, capsys):
    data = prepared(1)
    monkeypatch.chdir(tmp_path)
    base = settings(data.folder, name="shared_bottom")
    (tmp_path / "base.toml").write_text(to_toml(replace(base, training=replace(base.training, max_epochs=1)).to_dict()))
    (tmp_path / "space.toml").write_text('"optimizer.lr" = { low = 1e-3, high = 1e-1, log = true }\n')
    command = ["tune", "--config", "base.toml", "--space", "space.toml", "--out", "out", "--trials", "4"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "trial 0003 (4 of 4): optimizer.lr = " in err
    assert "validation AUC" in out
    assert "adaftr-fast train --config out/best.toml --out RUN" in out
    assert {"best.toml", "report.md", "report.png", "study.db", "trials"} == {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert main(["train", "--config", "out/best.toml", "--out", "run"]) == 0
    best = next(path for path in (tmp_path / "out/trials").iterdir() if (path / "test.json").exists())
    assert (tmp_path / "run/test.json").read_text() == (best / "test.json").read_text()
    assert main(["tune", "--out", "x", "--trials", "0"]) == 2
    assert "--trials: expected >= 1, got 0" in capsys.readouterr().err
    assert main(["tune", "--out", "x", "--parallel", "2"]) == 2
    assert "--parallel: expected >= 1, with --engine ray, got 2" in capsys.readouterr().err
