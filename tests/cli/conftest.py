"""The log of a small shop, prepared once and trained on once; tests that change a run
get a copy.
"""

import shutil
import signal

import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from adaftr_fast.training.trainer import Trainer
from tests.logs import shop_log

SCHEMA = """
name = "small"
[labels]
click = "click"
conversion = "conversion"
[split]
train = { where = [["time", "<", 2100]] }
validation = { where = [["time", ">=", 2100], ["time", "<", 2400]] }
test = { where = [["time", ">=", 2400]] }
[fields]
item = "categorical"
user = "categorical"
price = "numeric"
"""
CONFIG = """
preset = "paper"
[data]
folder = "FOLDER"
[model]
name = "mmoe"
expert_hidden = [8]
[training]
batch_size = 100
max_epochs = 1
progress = false
"""


@pytest.fixture(scope="session")
def log(tmp_path_factory):
    """A log of 3,000 rows, which no test changes."""
    path = tmp_path_factory.mktemp("shop") / "log.parquet"
    pq.write_table(shop_log(3000, users=5), path)
    return path


@pytest.fixture
def schema(tmp_path):
    """A schema file, which may be changed."""
    (tmp_path / "small.toml").write_text(SCHEMA)
    return tmp_path / "small.toml"


@pytest.fixture(scope="session")
def prepared(log):
    """The prepared log, which no test changes."""
    schema = log.parent / "small.toml"
    out = log.parent / "data"
    schema.write_text(SCHEMA)
    assert main(f"prepare --dataset {schema} --files {log} --out {out}".split()) == 0
    return out


@pytest.fixture
def config(prepared, tmp_path):
    """A configuration file, which may be changed."""
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.replace("FOLDER", str(prepared)))
    return path


@pytest.fixture(scope="session")
def trained(prepared):
    """The run of the configuration, which no test changes."""
    config = prepared.parent / "run.toml"
    out = prepared.parent / "run"
    config.write_text(CONFIG.replace("FOLDER", str(prepared)))
    assert main(f"train --config {config} --out {out}".split()) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, which may be changed."""
    return shutil.copytree(trained, tmp_path / "run")


def fails(arguments, capsys):
    """Runs a command that fails; returns the one line it prints."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    return lines[0]


def interrupting(monkeypatch, at_epoch, signum=signal.SIGINT):
    """Sends a signal, Ctrl-C by default, in an epoch; returns the list of started epochs."""
    begun = []
    train_epoch = Trainer.train_epoch

    def pressed(self, epoch, interrupt):
        begun.append(epoch)
        if epoch == at_epoch:
            signal.raise_signal(signum)
        return train_epoch(self, epoch, interrupt)

    monkeypatch.setattr(Trainer, "train_epoch", pressed)
    return begun
