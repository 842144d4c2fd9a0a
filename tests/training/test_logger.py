from torch import nn

from adaftr_fast.config import TrainingConfig
from adaftr_fast.training.files import PICTURE_SECONDS, RunFiles
from adaftr_fast.training.trained import Run
from tests.logs import read_records
from tests.training.conftest import ABOUT


def record(epoch):
    validation = {"click": {"auc": 0.7, "gauc": 0.65, "logloss": 0.5}}
    return {
        "epoch": epoch,
        "seconds": 2.0,
        "samples_per_s": 1e5,
        "train": {"click": 0.4},
        "validation": validation,
    }


def test_each_epoch_is_logged_once_and_drawn_if_it_is_long(tmp_path, capsys):
    records = [record(1), record(2) | {"seconds": PICTURE_SECONDS}]
    files = RunFiles(nn.Linear(1, 1), TrainingConfig(), tmp_path, ABOUT, rows=1)
    files.log(Run("", records[:1], 1))
    assert not (tmp_path / "report.png").exists()
    for _ in range(2):
        files.log(Run("", records, 2))
    assert read_records(tmp_path / "metrics.jsonl") == records
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    line = "epoch 2: 60.0 s, 100,000 samples/s | click AUC 70.00, GAUC 65.00, log-loss 0.5000"
    assert line in capsys.readouterr().out
