"""Trackers by fakes of their packages; the last tests use the packages, where they are
installed.
"""

import json
import sys
import types
from unittest.mock import ANY, Mock, call

import pytest

from adaftr_fast.config import RunConfig
from adaftr_fast.errors import MissingPackageError, TrainingError
from adaftr_fast.extras.trackers.log import Trackers
from adaftr_fast.extras.trackers.packages import CLASSES, Opening

PARAMETERS = {"optimizer.lr": 0.01, "model.tower_hidden": [8, 4], "model.tables_lr": None}
TEST = {"click": {"auc": 0.7, "gauc": float("nan")}}


def record(epoch):
    return {
        "epoch": epoch,
        "seconds": 2.0,
        "train": {"click": 0.4},
        "validation": {"click": {"auc": 0.6 + epoch / 100}},
    }


@pytest.fixture
def made(monkeypatch):
    """The trackers in the order in which they are opened, which are mocks."""
    made = []

    def opened(opening):
        made.append(Mock(opening=opening, known=opening.known or f"id{len(made)}"))
        return made[-1]

    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(CLASSES, name, opened)
    return made


def log(trackers, *epochs):
    for epoch in epochs:
        trackers.log(record(epoch), epoch)
    return trackers


def epochs(tracker):
    return [each.args[1] for each in tracker.log.call_args_list]


def test_a_tracker_gets_the_options_the_numbers_of_each_epoch_and_the_test_metrics(made, tmp_path):
    trackers = log(Trackers(["wandb"], tmp_path, PARAMETERS), 1)
    trackers.log_test(TEST)
    trackers.close()
    trackers.close()
    (tracker,) = made
    assert tracker.opening.parameters == PARAMETERS
    assert tracker.opening.name == "/".join(tmp_path.parts[-2:])
    numbers = {"epoch": 1, "seconds": 2.0, "train/click": 0.4, "validation/click/auc": 0.61}
    logged, tested, closed = tracker.mock_calls
    assert logged == call.log(numbers, 1)
    assert tested.args[0].keys() == {"test/click/auc", "test/click/gauc"}
    assert closed == call.close(False)


def test_a_resumed_run_continues_and_a_tracker_added_later_gets_all_epochs(made, tmp_path):
    log(Trackers(["wandb"], tmp_path, PARAMETERS), 1, 2, 3)
    resumed = Trackers(
        ["mlflow", "wandb"], tmp_path, PARAMETERS, resumed=True, records=[record(1), record(2)]
    )
    first, added, again = made
    assert (first.opening.first_step, first.opening.known) == (1, None)
    assert (added.opening.first_step, added.opening.known) == (1, None)
    assert epochs(added) == [1, 2]
    assert (again.opening.first_step, again.opening.known) == (4, first.known)
    log(resumed, 3, 4)  # the interrupted process had logged 3
    assert (epochs(added), epochs(again)) == ([1, 2, 3, 4], [4])
    log(Trackers([], tmp_path, PARAMETERS), 1)  # a new run in the folder of a finished one
    Trackers(["wandb"], tmp_path, PARAMETERS, resumed=True, records=[record(1)])
    assert made[-1].opening.known is None
    assert epochs(made[-1]) == [1]


FAILURE = ConnectionError("no route\nto host")


def test_a_tracker_that_failed_gets_the_epochs_since_then_on_resuming(made, tmp_path):
    trackers = log(Trackers(["wandb", "mlflow"], tmp_path, PARAMETERS), 1)
    made[0].log.side_effect = FAILURE
    with pytest.warns(RuntimeWarning, match="wandb failed"):
        log(trackers, 2, 3)
    records = [record(epoch) for epoch in (1, 2, 3)]
    Trackers(["wandb", "mlflow"], tmp_path, PARAMETERS, resumed=True, records=records)
    assert [epochs(each) for each in made[2:]] == [[2, 3], []]


@pytest.mark.parametrize("method", ["log", "log_test", "close"])
def test_a_tracker_that_fails_is_left_out_after_one_warning(made, tmp_path, method):
    trackers = Trackers(["wandb", "mlflow"], tmp_path, PARAMETERS)
    getattr(made[0], method).side_effect = FAILURE
    with pytest.warns(RuntimeWarning) as caught:  # noqa: PT031
        log(trackers, 1, 2).log_test(TEST)
        trackers.close()
    (warning,) = caught
    expected = (
        "training.trackers: wandb failed, and training goes on without it: ConnectionError: no "
        "route to host"
    )
    assert str(warning.message) == expected
    getattr(made[0], method).assert_called_once()
    made[0].close.assert_called_once_with(method != "close")
    assert made[1].mock_calls == [
        call.log(ANY, 1),
        call.log(ANY, 2),
        call.log_test(ANY),
        call.close(False),
    ]


def test_a_tracker_is_closed_if_the_next_one_cannot_be_opened(made, tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSES, "mlflow", Mock(side_effect=FAILURE))
    with pytest.raises(
        TrainingError, match=r"^training\.trackers: mlflow cannot be opened: ConnectionError: no"
    ):
        Trackers(["wandb", "mlflow"], tmp_path, PARAMETERS)
    assert made[0].mock_calls == [call.close(True)]


def import_with(monkeypatch, name, **modules):
    """Returns a tracker that imports fakes of its packages."""
    for each, content in modules.items():
        monkeypatch.setitem(sys.modules, each.replace("__", "."), types.SimpleNamespace(**content))
    return CLASSES[name]


def test_tensorboard_writes_the_test_metrics_at_the_last_epoch(tmp_path, monkeypatch):
    """A later run in the folder discards them by ``purge_step=1``."""
    writer = Mock()
    kind = import_with(
        monkeypatch,
        "tensorboard",
        torch__utils__tensorboard={"SummaryWriter": writer},
        torch__utils__tensorboard__summary={
            "hparams": lambda parameters, metrics: [parameters, metrics]
        },
    )
    made = kind(Opening(tmp_path, PARAMETERS, 3, None))
    writer.assert_called_once_with(str(tmp_path / "tensorboard"), purge_step=3)
    add = writer.return_value.add_scalar
    made.log_test({"test/click/auc": 0.6})  # resumed after the last epoch
    assert add.call_args == call("test/click/auc", 0.6, 2)
    made.log({"train/click": 0.4}, 3)
    assert add.call_args == call("train/click", 0.4, 3)
    made.log_test({"test/click/auc": 0.7})
    assert add.call_args == call("test/click/auc", 0.7, 3)
    summaries = writer.return_value._get_file_writer.return_value.add_summary.call_args_list
    expected = {"optimizer.lr": 0.01, "model.tower_hidden": "[8, 4]", "model.tables_lr": "None"}
    assert summaries[-2:] == [call(expected), call({"test/click/auc": 0.7})]
    made.close(failed=False)
    writer.return_value.close.assert_called_once_with()


def test_wandb_gets_a_run_of_its_own_which_a_resumed_process_continues(tmp_path, monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    init = Mock()
    kind = import_with(monkeypatch, "wandb", wandb={"init": init})
    opening = Opening(tmp_path, PARAMETERS, 1, None)
    made = kind(opening)
    options = init.call_args.kwargs
    assert (options["id"], options["resume"], options["reinit"]) == (
        made.known,
        "allow",
        "create_new",
    )
    assert (options["project"], options["name"], options["dir"]) == (
        "adaftr-fast",
        opening.name,
        str(tmp_path),
    )
    assert options["config"] == PARAMETERS
    run = init.return_value
    made.log({"train/click": 0.4, "epoch": 0.5}, 2)
    run.log.assert_called_once_with({"train/click": 0.4, "epoch": 0.5}, step=2)
    made.log_test({"test/click/auc": 0.7})
    run.summary.update.assert_called_once_with({"test/click/auc": 0.7})
    made.close(failed=True)
    run.finish.assert_called_once_with(exit_code=1)
    assert kind(Opening(tmp_path, PARAMETERS, 3, made.known)).known == made.known
    assert init.call_args.kwargs["id"] == made.known


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, name):
    for each in (name, "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, each, raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingPackageError, match=rf'{name} is not installed: pip install "adaftr-fast\[{name}\]"'
    ):
        Trackers([name], tmp_path, PARAMETERS)


def test_a_damaged_list_of_runs_is_named(tmp_path):
    (tmp_path / "trackers.json").write_text("{")
    with pytest.raises(
        TrainingError, match=r"trackers.json: damaged: .*; remove it to begin new runs"
    ):
        Trackers([], tmp_path, PARAMETERS, resumed=True)


def test_a_tracker_named_twice_is_opened_once():
    read = RunConfig.from_dict({"training": {"trackers": ["wandb", "tensorboard", "wandb"]}})
    assert read.training.trackers == ["wandb", "tensorboard"]


def test_mlflow_resumes_its_run(tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy")  # for MLflow's local store
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    log(Trackers(["mlflow"], tmp_path / "run", PARAMETERS), 1, 2).close(failed=True)
    trackers = log(
        Trackers(["mlflow"], tmp_path / "run", PARAMETERS, resumed=True, records=[record(1)]), 2, 3
    )
    trackers.log_test(TEST)
    trackers.close()
    run = json.loads((tmp_path / "run/trackers.json").read_text())["mlflow"]["run"]
    client = mlflow.MlflowClient()
    found = client.get_run(run)
    assert found.data.params["model.tower_hidden"] == "[8, 4]"
    assert found.data.metrics["test/click/auc"] == 0.7
    assert found.info.status == "FINISHED"
    assert sorted(each.step for each in client.get_metric_history(run, "train/click")) == [1, 2, 3]
