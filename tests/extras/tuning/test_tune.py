"""A search: its space, its trials, what ends one of them or all, and what it leaves."""

import json
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from adaftr_fast.cli import main
from adaftr_fast.config import RunConfig
from adaftr_fast.errors import BusyError, CheckpointError, ConfigError, TrainingError
from adaftr_fast.extras.tuning import search as searching
from adaftr_fast.extras.tuning.report import draw, tune_and_report
from adaftr_fast.extras.tuning.search import Search, tune
from adaftr_fast.extras.tuning.space import apply, default_space, parse_space, read_space
from adaftr_fast.files.locks import LOCK
from adaftr_fast.training.checkpoint.weights import read_description
from adaftr_fast.training.trained import load_trained
from tests.cli.conftest import fails
from tests.files.holder import holder
from tests.runs.conftest import TRACKED, settings

from .conftest import search_command


def trials(found):
    """What a search did: state, options and AUC of each trial."""
    known = found.study.get_trials(deepcopy=False)
    return [
        (each.state, each.user_attrs["options"], each.value, each.intermediate_values)
        for each in known
    ]


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
    drawn = {"optimizer.lr": 0.5, "model.num_experts": 4, "model.options.depth": 3}
    trial = optuna.trial.FixedTrial(drawn | {"model.pairs": "[]", "model.options.name": "[2.5]"})
    made = apply(config, {name: each.suggest(trial, name) for name, each in space.items()})
    assert (made.optimizer.lr, made.model.num_experts, made.model.pairs) == (0.5, 4, [])
    assert made.model.options == {"depth": 3, "name": [2.5]}
    assert type(made.model.options["depth"]) is int
    for name in ("adaftr", "mmoe", "tests.runs.own:Net"):
        assert "optimizer.lr" in default_space(RunConfig().with_options(model={"name": name}))
    for choices in (["a", None], [[1, None]]):
        with pytest.raises(ConfigError, match=r"^model\.options\.kind: TOML cannot hold None$"):
            parse_space({"model.options.kind": {"choices": choices}}, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"optimizer.lrr" = { low = 1, high = 2 }', r"unknown option 'optimizer.lrr'"),
        (
            '"data.folder" = { choices = ["a"] }',
            "unknown option 'data.folder'; .* but data.folder and model",
        ),
        (
            "training.validate_every = { choices = [1, 0.5] }",
            "training.validate_every: cannot vary",
        ),
        ("optimizer.lr = 3", r"optimizer.lr: the file: expected an object, got 3"),
        ("optimizer.lr = { low = 1 }", "optimizer.lr: expected choices, or low and high"),
        ("optimizer.lr = { low = 2, high = 1 }", "optimizer.lr: expected low < high, got 2 and 1"),
        (
            "optimizer.lr = { low = 0, high = 1, log = true }",
            "optimizer.lr: expected 0 < low < high, got 0 and 1",
        ),
        (
            "optimizer.lr = { low = 1, high = 2, log = true, step = 1 }",
            "optimizer.lr: expected log or step, got both",
        ),
        (
            "optimizer.lr = { low = -1, high = 1 }",
            r"optimizer.lr: optimizer.lr: expected .* >= 0, got -1",
        ),
        (
            "optimizer.lr = { low = 1, high = inf }",
            "optimizer.lr: expected finite numbers, got 1.0, inf",
        ),
        ("optimizer.lr = { low = 1, high = 2, max = 3 }", "optimizer.lr: unknown key 'max'"),
        (
            "model.shared_experts = { low = 1, high = 2.5 }",
            "model.shared_experts: expected integers for an",
        ),
        (
            "model.num_experts = { choices = [] }",
            "model.num_experts: expected one or more choices, or a range",
        ),
        ("", "expected one or more options, got none"),
        ("= 1", "Invalid"),
    ],
)
def test_errors_in_a_space_name_the_option(tmp_path, text, message):
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"space\.toml: {message}"):
        read_space(tmp_path / "space.toml", RunConfig())


def test_an_interrupted_search_continues_its_trial_and_ends_like_an_uninterrupted_one(
    search, tmp_path, monkeypatch
):
    whole = tune(search("whole"), 3)
    seen, name = [], "t{a} a%41b?é@#:"
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
                tune(search(name), 3)
    again = tune(search(name), 3)
    assert trials(again) == trials(whole)
    assert again.test == whole.test
    assert tune(search(name), 1).best.number == whole.best.number  # no more trials
    assert {each.name for each in tmp_path.iterdir()} == {"data", "day1.parquet", "whole", name}


def test_a_search_keeps_the_weights_of_the_best_and_reads_the_test_split_once(
    search, tmp_path, monkeypatch
):
    loaded = []
    data_type = type(search().data)
    load = data_type.load
    monkeypatch.setattr(
        data_type, "load", lambda self, split: loaded.append(split) or load(self, split)
    )
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
            with pytest.raises(
                CheckpointError,
                match=r"weights-.*: missing: tune keeps the weights of its best trial",
            ):
                load_trained(each)
    assert json.loads((tmp_path / "out/trials" / kept[0] / "test.json").read_text()) == found.test
    assert not list(tmp_path.glob("out/trials/*/last"))


def test_a_search_killed_after_its_last_trial_leaves_the_weights_of_the_best_only(
    search, tmp_path, monkeypatch
):
    def killed(search, study):
        if len(study.trials) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(searching, "_remove_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(search(), 2)
    assert len(list(tmp_path.glob("out/trials/*/best/weights-*"))) == 2
    tune(search(), 2)
    assert len(list(tmp_path.glob("out/trials/*/best/weights-*"))) == 1


def test_one_task_may_count(search, tmp_path):
    (best,) = tune(search(task="conversion"), 1).study.trials
    lines = (tmp_path / "out/trials/0000/metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["validation"]["conversion"]["auc"] for line in lines]
    assert [*best.intermediate_values.values()] == found
    assert best.value in found  # that of the best epoch, by all tasks
    with pytest.raises(ConfigError, match="--task: expected one of click, conversion, got 'buy'"):
        search(task="buy")


def test_another_search_in_the_folder_is_refused(search, tmp_path):
    with holder(tmp_path / "out" / LOCK), pytest.raises(BusyError):
        tune(search(), 1)
    tune(search(), 1)
    with pytest.raises(
        CheckpointError, match="out: a search with another space; name another --out"
    ):
        tune(search(space={"optimizer.lr": {"choices": [0.1]}}), 1)
    with pytest.raises(
        CheckpointError, match="out: a search with another configuration; name another --out"
    ):
        tune(search(config=settings(name="mmoe")), 1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/study.db").write_bytes(b"no database" * 100)
    with pytest.raises(CheckpointError, match=r"study\.db: damaged or not a search: "):
        tune(search("broken"), 1)


def test_the_command_writes_a_report_and_a_configuration_that_train_reads(
    prepared, tmp_path, monkeypatch, capsys
):
    command = search_command(tmp_path, prepared(1).folder, 2)
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "trial 0001 (2 of 2): optimizer.lr = " in err
    assert "validation AUC" in out
    assert "adaftr-fast train --config out/best.toml --out RUN" in out
    assert {"best.toml", "report.md", "report.png", "study.db", "trials"} == {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert main(["train", "--config", "out/best.toml", "--out", "run"]) == 0
    best = next(
        path for path in (tmp_path / "out/trials").iterdir() if (path / "test.json").exists()
    )
    assert (tmp_path / "run/test.json").read_text() == (best / "test.json").read_text()
    for option, value, shown in (
        ("--trials", "0", "got 0"),
        ("--parallel", "2", "with --engine ray, got 2"),
    ):
        line = fails(f"tune --out x {option} {value}".split(), capsys)
        assert f"{option}: expected >= 1, {shown}" in line


@pytest.fixture
def tracked(search, prepared):
    """Returns a function that makes a search with a tracker over some learning rates."""
    config = settings(prepared(1).folder, name="shared_bottom").with_options(
        training={"trackers": ["wandb"]}
    )
    return lambda *rates: search(
        space={"optimizer.lr": {"choices": [*rates] or [0.01]}}, config=config, output=TRACKED
    )


def test_a_pruned_trial_has_not_failed(tracked, tracker, monkeypatch):
    """The AUC falls from epoch to epoch and from trial to trial, so the second trial is pruned in
    its first epoch.
    """
    values = iter(range(1, 100))
    monkeypatch.setattr(searching, "STARTUP_TRIALS", 1)
    monkeypatch.setattr(searching, "WARMUP_EPOCHS", 0)
    monkeypatch.setattr(
        Search, "auc", lambda self, record: record["validation"]["click"]["auc"] - next(values)
    )
    real = searching._report

    def killed(search, trial, *others):
        if trial.number == 1:
            raise KeyboardInterrupt
        real(search, trial, *others)

    with monkeypatch.context() as patched:
        patched.setattr(searching, "_report", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(tracked(), 2)
    found = tune(tracked(), 3)
    pruned = TrialState.PRUNED
    assert [each.state for each in found.study.trials] == [TrialState.COMPLETE, pruned, pruned]
    assert [each.closed for each in tracker.made] == [
        ["finished"],
        ["failed"],
        ["finished"],
        ["finished"],
    ]


def test_a_diverging_trial_fails_alone(tracked, tracker, tmp_path):
    with pytest.raises(
        TrainingError, match=r"none of 1 trials has finished; the last error: .*not finite"
    ):
        tune(tracked(1e30), 1)
    assert [each.closed for each in tracker.made] == [["failed"]]
    tune_and_report(replace(tracked(1e30, 0.01), folder=tmp_path / "both"), 4)
    section = (tmp_path / "both/report.md").read_text().split("## Failed trials\n\n")[1]
    assert section.startswith("- 000")
    assert all(": optimizer.lr = 1e+30: epoch 1, step " in line for line in section.splitlines())


def test_an_error_of_the_surroundings_ends_the_search_and_its_trial_resumes(tracked, tracker):
    tracker.fails = True
    with pytest.raises(
        TrainingError,
        match=r"^training\.trackers: wandb cannot be opened: ConnectionError: no route",
    ):
        tune(tracked(), 2)
    tracker.fails = False
    assert [each.state for each in tune(tracked(), 2).study.trials] == 2 * [TrialState.COMPLETE]
    assert [each.closed for each in tracker.made] == 2 * [["finished"]]


def test_the_best_so_far_reaches_the_last_trial():
    study = optuna.create_study(direction="maximize")
    for value in (0.6, 0.7, None, None):
        study.tell(study.ask(), value, state=TrialState.COMPLETE if value else TrialState.FAIL)
    (line,) = (each for each in draw(study).axes[0].lines if each.get_label() == "best so far")
    assert list(line.get_xdata()) == [0, 1, 3]
    assert list(line.get_ydata()) == [60, 70, 70]
