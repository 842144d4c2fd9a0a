"""Searches on a Ray cluster: trials at the same time, Ctrl-C and the command."""

import os
import signal
from dataclasses import replace

import pytest
from optuna.trial import TrialState

pytest.importorskip("ray", reason="make test-ray installs it")

from adaftr_fast.cli import main
from adaftr_fast.extras.ray.engine import Ray
from adaftr_fast.extras.tuning import search as searching
from adaftr_fast.extras.tuning.search import tune
from adaftr_fast.files.locks import LOCK
from tests.extras.ray.cluster import Together, soon
from tests.extras.tuning import conftest as searches
from tests.runs import conftest as small

prepared = small.prepared  # fixtures
search = searches.search
EPOCHS = 12
TRIALS = 4


def states(found):
    return [each.state for each in found.study.trials]


def test_two_trials_train_at_the_same_time_and_an_interrupted_search_continues_both(
    nodes, search, prepared, tmp_path, monkeypatch
):
    config = small.settings(prepared(1).folder, name="shared_bottom")
    config = replace(
        config, training=replace(config.training, batch_size=16, max_epochs=EPOCHS, patience=EPOCHS)
    )
    space = {"optimizer.lr": {"choices": [1e30, 0.01, 0.02]}}
    running = []
    asked = []
    folder = tmp_path / "out/trials"

    def two():
        return (
            sum((lock.parent / "metrics.jsonl").exists() for lock in folder.glob(f"*/{LOCK}")) == 2
        )

    def interrupt(value):
        running.append(value)
        os.kill(os.getpid(), signal.SIGINT)

    with soon(interrupt, two), pytest.raises(KeyboardInterrupt):
        tune(search(space=space, config=config), TRIALS, Together(2, tmp_path, cpus=1, grace=60))
    assert running == [True]
    assert not list(folder.glob(f"*/{LOCK}"))  # the trials have ended
    study = searching._open(search(space=space, config=config))
    before = study.trials
    open_trials = [each.number for each in before if each.state == TrialState.RUNNING]
    assert len(open_trials) == 2
    logged = {
        number: (folder / f"{number:04d}/metrics.jsonl").read_text() for number in open_trials
    }

    real = searching._ask
    monkeypatch.setattr(searching, "_ask", lambda *given: asked.append(given[2]) or real(*given))
    found = tune(search(space=space, config=config), TRIALS, Ray(cpus=1, limit=2, grace=60))
    assert asked == [*open_trials, *range(len(before), TRIALS)]
    assert TrialState.RUNNING not in states(found)
    assert len(states(found)) == TRIALS
    for number, lines in logged.items():  # these epochs were not trained again
        assert (folder / f"{number:04d}/metrics.jsonl").read_text().startswith(lines)
    for each in found.study.trials:
        assert (each.state == TrialState.FAIL) == (
            each.user_attrs["options"]["optimizer.lr"] == 1e30
        )
        if each.state == TrialState.COMPLETE:
            assert max(each.intermediate_values.values()) == each.value
            assert len(each.intermediate_values) == EPOCHS
    assert [path.parts[-3] for path in folder.glob("*/best/weights-*")] == [
        f"{found.best.number:04d}"
    ]
    assert not list(folder.glob("*/last"))


def test_the_command_trains_two_at_a_time(nodes, prepared, tmp_path, monkeypatch, capsys):
    data = prepared(1)
    monkeypatch.chdir(tmp_path)
    command = searches.search_command(tmp_path, os.path.relpath(data.folder), 2)
    ray = f"--engine ray --address {nodes.address} --parallel 2"
    assert main([*command, *ray.split()]) == 0
    assert "trial 0001 (2 of 2): AUC " in capsys.readouterr().err
    assert "2 trials: 2 finished" in (tmp_path / "out/report.md").read_text()
