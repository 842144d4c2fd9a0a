"""Searches on a Ray cluster: trials at the same time, Ctrl-C and the command."""

import os
import signal
from dataclasses import replace

import pytest
from optuna.trial import TrialState

pytest.importorskip("ray", reason="make test-ray installs it")

from adaftr_fast._locks import LOCK
from adaftr_fast.cli import main
from adaftr_fast.engines import Ray
from adaftr_fast.tuning import search as searching
from adaftr_fast.tuning.search import tune
from tests.ray.cluster import Together
from tests.ray.test_experiment import soon
from tests.runs import conftest as small

prepared, search = small.prepared, small.search  # fixtures
EPOCHS = 12


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
    running, asked = [], []
    folder = tmp_path / "out/trials"

    def two():
        return (
            sum((lock.parent / "metrics.jsonl").exists() for lock in folder.glob(f"*/{LOCK}")) == 2
        )

    def interrupt(value):
        running.append(value)
        os.kill(os.getpid(), signal.SIGINT)

    thread = soon(interrupt, two)
    with pytest.raises(KeyboardInterrupt):
        tune(search(space=space, config=config), 6, Together(2, tmp_path, cpus=1, grace=60))
    thread.join()
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
    found = tune(search(space=space, config=config), 6, Ray(cpus=1, limit=2, grace=60))
    assert asked == [*open_trials, *range(len(before), 6)]
    assert TrialState.RUNNING not in states(found)
    assert len(states(found)) == 6
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


def test_the_command_trains_two_at_a_time(cluster_nodes, prepared, tmp_path, monkeypatch, capsys):
    data = prepared(1)
    monkeypatch.chdir(tmp_path)
    command = small.search_command(tmp_path, os.path.relpath(data.folder), 3)
    assert (
        main([*command, *f"--engine ray --address {cluster_nodes.address} --parallel 2".split()])
        == 0
    )
    assert "trial 0002 (3 of 3): AUC " in capsys.readouterr().err
    assert "3 trials: 3 finished" in (tmp_path / "out/report.md").read_text()
