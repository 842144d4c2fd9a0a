"""Arguments that the functions of the Python API refuse."""

import pytest

import adaftr_fast as af
from adaftr_fast.errors import CheckpointError, ConfigError, DataError, ServingError

from .conftest import TRAINING

# Names stand for what the fixtures make.
VALID = {
    "prepare": {"files": "LOG", "out": "OUT"},
    "train": {"data": "DATA", "out": "OUT", "training": TRAINING},
    "evaluate": {"run": "RUN"},
    "export": {"run": "RUN", "out": "OUT"},
    "predict": {"model": "MODEL", "files": "LOG", "out": "OUT"},
}


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        ("prepare", {}, DataError, "expected dataset, or labels to infer a schema .*; got neither"),
        (
            "prepare",
            {"labels": "click", "dataset": "flights"},
            DataError,
            "expected dataset, or labels .*; got both",
        ),
        ("prepare", {"labels": []}, DataError, "labels: expected one or more columns, got none"),
        ("prepare", {"labels": "click", "group": "usr"}, DataError, "no column 'usr'"),
        (
            "prepare",
            {"dataset": "flights", "group": "user"},
            DataError,
            "group: goes with labels, got group = 'user' with dataset = 'flig",
        ),
        (
            "prepare",
            {"dataset": "flights", "multi": {"tags": "|"}},
            DataError,
            "multi: goes with labels, got multi = {'tags': ",
        ),
        (
            "prepare",
            {"dataset": "flights", "funnel": []},
            DataError,
            r"funnel: goes with labels, got funnel = \[\]",
        ),
        (
            "prepare",
            {"files": [], "labels": "click"},
            DataError,
            "files: expected one or more beside labels, got none",
        ),
        (
            "prepare",
            {"labels": "click", "thousands": "x"},
            DataError,
            "text.thousands: expected one of the characters .* got 'x'",
        ),
        (
            "train",
            {"model": {"nam": "mmoe"}},
            ConfigError,
            "model: unknown option 'nam'; expected one of name, backbone",
        ),
        ("train", {"training": 5}, TypeError, "training: expected a dict of options, got 5"),
        (
            "train",
            {"config": {"model": {}}},
            TypeError,
            "config: expected a RunConfig or the path of a TOML file, got {'model'",
        ),
        ("train", {"config": "no.toml"}, OSError, "no.toml"),
        ("train", {"data": "nothing"}, DataError, "nothing: not a prepared folder"),
        (
            "train",
            {"warm_start": "nothing"},
            CheckpointError,
            "nothing/best: no checkpoint here",
        ),
        (
            "train",
            {"warm_start": 5},
            TypeError,
            "warm_start: expected a run or its folder, got int",
        ),
        ("evaluate", {"run": "nothing"}, CheckpointError, "nothing/best: no checkpoint here"),
        ("evaluate", {"run": None}, TypeError, "run: expected a run or its folder, got NoneType"),
        ("evaluate", {"data": "nothing"}, DataError, "nothing: not a prepared folder"),
        (
            "evaluate",
            {"data": 5},
            TypeError,
            "data: expected a prepared folder or its path, got int",
        ),
        ("export", {"run": 5}, TypeError, "^run: expected a run or its folder, got int$"),
        ("predict", {"model": "nothing"}, ServingError, "nothing: not an exported model"),
        (
            "predict",
            {"model": None},
            TypeError,
            "model: expected an exported model or its folder, got NoneType",
        ),
        (
            "predict",
            {"files": []},
            DataError,
            "files: expected one or more input files, got none",
        ),
    ],
)
def test_wrong_arguments_are_named(
    shop, data, run, model, tmp_path, function, arguments, error, message
):
    out = tmp_path / "out.parquet"
    made = {"LOG": shop / "log.csv", "DATA": data, "RUN": run, "MODEL": model, "OUT": out}
    given = {
        name: made.get(value, value) if isinstance(value, str) else value
        for name, value in (VALID[function] | arguments).items()
    }
    with pytest.raises(error, match=message):
        getattr(af, function)(**given)
    assert not out.exists()
