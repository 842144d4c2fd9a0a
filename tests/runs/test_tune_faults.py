"""A search: what ends a trial alone, what ends the search, and how it ends the trackers."""

import sys
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from adaftr_fast.errors import TrainingError
from adaftr_fast.training.trackers import opened
from adaftr_fast.tuning import report as reporting
from adaftr_fast.tuning import search as searching
from adaftr_fast.tuning import trial as trialing
from adaftr_fast.tuning.report import draw, tune_and_report
from adaftr_fast.tuning.search import tune
from adaftr_fast.tuning.trial import Search

from .conftest import settings


class Fake:
    """A tracker that keeps whether it was closed and as what; ``made`` holds all of them, ``fails`` refuses to open."""

    made: list["Fake"]
    fails = False

    def __init__(self, opening):
        if self.fails:
            raise ConnectionError("no route to host")
        assert all(each.closed for each in self.made)  # a tracker that is open may be returned for the next trial
        self.known, self.closed = "id", []
        self.made.append(self)

    def log(self, numbers, epoch): ...

    def close(self, failed):
        self.closed.append("failed" if failed else "finished")


@pytest.mark.parametrize("name", ["t{a}", "tune-a?b", "a%41b", "a#b", "é @:"])
def test_a_folder_may_have_any_name(search, tmp_path, name):
    (tmp_path / name).mkdir()
    study = searching._open(search(name))
    study.ask()
    assert len(searching._open(search(name)).trials) == 1
    assert [each.name for each in (tmp_path / name).iterdir()] == ["study.db"]
    assert {each.name for each in tmp_path.iterdir()} == {"data", "day1.parquet", name}


@pytest.fixture
def fake(monkeypatch):
    kind = type("Fresh", (Fake,), {"made": []})
    module = SimpleNamespace(**{opened.CLASSES["wandb"]: kind})
    monkeypatch.setitem(sys.modules, "adaftr_fast.training.trackers.wandb", module)
    return kind


@pytest.fixture
def tracked(search, prepared):
    """Returns a function that makes a search with a tracker."""
    config = settings(prepared(1).folder, name="shared_bottom").with_options(training={"trackers": ["wandb"]})
    return lambda **space: search(space=space or {"optimizer.lr": {"choices": [0.01]}}, config=config)


def test_the_tracker_of_each_trial_is_closed_before_the_next(tracked, fake):
    tune(tracked(), 2)
    assert [each.closed for each in fake.made] == [["finished"], ["finished"]]


@pytest.fixture
def falling(monkeypatch):
    """The AUC falls from epoch to epoch and from trial to trial, so the second trial is pruned in its first epoch."""
    values = iter(range(1, 100))
    monkeypatch.setattr(trialing, "STARTUP_TRIALS", 1)
    monkeypatch.setattr(trialing, "WARMUP_EPOCHS", 0)
    monkeypatch.setattr(Search, "auc", lambda self, record: record["validation"]["click"]["auc"] - next(values))


def test_a_pruned_trial_has_not_failed(tracked, fake, falling):
    found = tune(tracked(), 2)
    assert [each.state for each in found.study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert [each.closed for each in fake.made] == [["finished"], ["finished"]]


def test_a_trial_that_is_pruned_after_an_interruption_has_not_failed(tracked, fake, falling, monkeypatch):
    real = trialing._report

    def killed(search, trial, *others):
        if trial.number == 1:
            raise KeyboardInterrupt
        real(search, trial, *others)

    with monkeypatch.context() as patched:
        patched.setattr(trialing, "_report", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(tracked(), 2)
    assert tune(tracked(), 2).study.trials[1].state == TrialState.PRUNED
    assert [each.closed for each in fake.made] == [["finished"], ["failed"], ["finished"]]


def test_a_diverging_trial_fails_alone(tracked, fake):
    tracked = tracked(**{"optimizer.lr": {"choices": [1e30]}})
    with pytest.raises(TrainingError, match="none of 2 trials has finished"):
        tune(tracked, 2)
    assert [each.closed for each in fake.made] == [["failed"], ["failed"]]


def test_an_error_of_the_surroundings_ends_the_search_and_its_trial_resumes(tracked, fake):
    fake.fails = True
    with pytest.raises(TrainingError, match=r"^training\.trackers: wandb cannot be opened: ConnectionError: no route"):
        tune(tracked(), 2)
    fake.fails = False
    assert [each.state for each in tune(tracked(), 2).study.trials] == 2 * [TrialState.COMPLETE]


def test_a_search_killed_after_its_last_trial_leaves_the_weights_of_the_best_only(search, tmp_path, monkeypatch):
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


def test_the_report_is_written_by_the_holder_of_the_lock_and_shows_the_errors(search, tmp_path, monkeypatch):
    real = reporting.write_report

    def write(folder, found):
        assert (folder / ".lock").exists()
        return real(folder, found)

    monkeypatch.setattr(reporting, "write_report", write)
    tune_and_report(search(space={"optimizer.lr": {"choices": [1e30, 0.01]}}), 4)
    section = (tmp_path / "out/report.md").read_text().split("## Failed trials\n\n")[1]
    assert section.startswith("- 000")
    assert all(": optimizer.lr = 1e+30: epoch 1, step " in line for line in section.splitlines())


def test_the_best_so_far_reaches_the_last_trial():
    study = optuna.create_study(direction="maximize")
    for value in (0.6, 0.7, None, None):
        study.tell(study.ask(), value, state=TrialState.COMPLETE if value else TrialState.FAIL)
    (line,) = (each for each in draw(study).axes[0].lines if each.get_label() == "best so far")
    assert list(line.get_xdata()) == [0, 1, 3]
    assert list(line.get_ydata()) == [60, 70, 70]
