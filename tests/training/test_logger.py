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


def files_in(folder, progress=False):
    return RunFiles(nn.Linear(1, 1), TrainingConfig(progress=progress), folder, ABOUT, rows=1)


def test_each_epoch_is_logged_once(tmp_path, capsys):
    records = [record(1), record(2)]
    files = files_in(tmp_path, progress=True)
    files.log(Run.of("", records[:1], 1))
    files.log(Run.of("", records, 1))
    files.log(Run.of("", records, 1))
    assert read_records(tmp_path / "metrics.jsonl") == records
    assert (
        "epoch 2: 2.0 s, 100,000 samples/s | click AUC 70.00, GAUC 65.00, log-loss 0.5000"
        in capsys.readouterr().out
    )


def test_the_picture_of_a_run_with_long_epochs_is_drawn_after_each(tmp_path):
    files = files_in(tmp_path)
    files.log(Run.of("", [record(1)], 1))
    assert not (tmp_path / "report.png").exists()
    files.log(Run.of("", [record(1), record(2) | {"seconds": PICTURE_SECONDS}], 2))
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
