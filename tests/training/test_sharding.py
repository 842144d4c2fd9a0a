"""Options that sharded tables do not support raise before training; the tests do not
need TorchRec.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from adaftr_fast.cli import main
from adaftr_fast.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.distributed.ranks import ALONE
from adaftr_fast.errors import RankError, TrainingError
from adaftr_fast.extras.torchrec.tables import TorchRecTables
from adaftr_fast.runs.run import fit_one
from adaftr_fast.training.sharding import check_sharding, check_tables

RANKS = SimpleNamespace(is_alone=False, sharder=TorchRecTables)


def test_unsupported_options_raise():
    several = "several processes, got one: start them with torchrun"
    for tables, ranks, message in (
        ("sgd", ALONE, several),
        ("sgd", SimpleNamespace(is_alone=False, sharder=None), "ranks with a sharder, got None"),
        ("adam", RANKS, "optimizer.tables = sgd, adagrad, rowwise_adagrad, got adam"),
    ):
        optimizer = OptimizerConfig(tables=tables)
        with pytest.raises(TrainingError, match=f"training.tables = torchrec needs {message}"):
            check_sharding(optimizer, TrainingConfig(tables="torchrec"), ranks)
        check_sharding(optimizer, TrainingConfig(), ranks)


def test_unsupported_models_raise_before_data_are_read(tmp_path):
    for options, message in (
        ({"embedding_dim": 6}, r"model\.embedding_dim = a multiple of 4, got 6"),
        (
            {"embedding_dims": {"user": 16, "item": 8}},
            r"model\.embedding_dims = none of another width, got .*'user': 16",
        ),
        ({"attention": {"seen": "item"}}, r"model\.attention = none, got {'seen': 'item'}"),
        ({"name": "single_dnn"}, "a model with one FusedEmbedding, got .*single_dnn"),
    ):
        config = RunConfig(
            model=ModelConfig(**options),
            optimizer=OptimizerConfig(tables="sgd"),
            training=TrainingConfig(tables="torchrec"),
        )
        with pytest.raises(TrainingError, match=f"torchrec needs {message}"):
            fit_one(None, config, tmp_path, ranks=RANKS).__enter__()
        check_tables(config.model, TrainingConfig())
    check_tables(ModelConfig(embedding_dims={"item": 8}), config.training)


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("import of_no_such_name", "No module named 'of_no_such_name'"),
        (
            "raise OSError('kernels.so: undefined symbol\\nand more')",
            "kernels.so: undefined symbol",
        ),
    ],
)
def test_a_missing_torchrec_raises_with_instructions(module, cause, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "fbgemm_gpu", raising=False)
    (tmp_path / "fbgemm_gpu.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    todo = r"with torch 2\.13, pip install .*--no-deps torchrec==1\.8\.0"
    with pytest.raises(RankError, match=rf"TorchRec, which cannot be imported \({cause}\): {todo}"):
        check_sharding(OptimizerConfig(tables="sgd"), TrainingConfig(tables="torchrec"), RANKS)


def test_commands_without_sharding_raise(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--training.tables", "torchrec"]
    assert main(["demo", *out]) == 2
    assert "demo needs training.tables = replicated, got torchrec" in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()
