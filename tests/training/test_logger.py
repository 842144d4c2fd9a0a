import importlib.util
import json
import sys
import types

import pytest

from adaftr_fast.config import TrainingConfig
from adaftr_fast.errors import TrainingError
from adaftr_fast.training.logger import EpochLogger


def record(epoch):
    validation = {"click": {"auc": 0.7, "gauc": 0.65, "logloss": 0.5}}
    return {"epoch": epoch, "seconds": 2.0, "samples_per_s": 1e5, "train": {"click": 0.4}, "validation": validation}


def test_each_epoch_is_logged_once(tmp_path, capsys):
    records = [record(1), record(2)]
    logger = EpochLogger(tmp_path, TrainingConfig(progress=True))
    logger.log_epoch(records[:1])
    logger.log_epoch(records)
    logger.log_epoch(records)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == records
    assert "epoch 2: 2.0 s, 100,000 samples/s | click AUC 70.00, GAUC 65.00, log-loss 0.5000" in capsys.readouterr().out


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    EpochLogger(None, TrainingConfig(progress=False)).log_epoch([record(1)])
    assert not list(tmp_path.iterdir())


def test_tensorboard_logs_all_numbers_of_an_epoch(tmp_path, monkeypatch):
    """Uses a fake writer, because TensorBoard is optional."""
    written = {}

    class Writer:
        def __init__(self, folder, purge_step):
            written["place"] = (folder, purge_step)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def add_scalar(self, name, value, step):
            written[name] = (value, step)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    EpochLogger(tmp_path, TrainingConfig(progress=False, tensorboard=True)).log_epoch([record(1), record(2)])
    assert written["place"] == (str(tmp_path / "tensorboard"), 2)
    assert written["validation/click/auc"] == (0.7, 2)
    assert written["train/click"] == (0.4, 2)
    assert "epoch" not in written


def test_a_missing_tensorboard_raises(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"pip install adaftr-fast\[tensorboard\]"):
        EpochLogger(None, TrainingConfig(tensorboard=True))
