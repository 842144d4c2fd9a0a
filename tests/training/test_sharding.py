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
from adaftr_fast.runs.run import fit_one
from adaftr_fast.training.sharding import check_sharding, check_tables

RANKS = SimpleNamespace(is_alone=False)


@pytest.mark.parametrize(
    ("optimizer", "training", "ranks", "message"),
    [
        (
            {"tables": "sgd"},
            {},
            ALONE,
            "needs several processes, got one: start them with torchrun",
        ),
        ({}, {}, RANKS, "needs optimizer.tables = sgd, adagrad, rowwise_adagrad, got adam"),
        (
            {"tables": "lazy_adam"},
            {},
            RANKS,
            "needs optimizer.tables = sgd, adagrad, rowwise_adagrad, got lazy_adam",
        ),
    ],
)
def test_unsupported_options_raise(optimizer, training, ranks, message):
    with pytest.raises(TrainingError, match=f"training.tables = torchrec {message}"):
        check_sharding(
            OptimizerConfig(**optimizer), TrainingConfig(tables="torchrec", **training), ranks
        )
    check_sharding(OptimizerConfig(**optimizer), TrainingConfig(**training), ranks)


def test_unsupported_widths_raise_before_data_are_read(tmp_path):
    training = TrainingConfig(tables="torchrec")
    config = RunConfig(
        model=ModelConfig(embedding_dim=6),
        optimizer=OptimizerConfig(tables="sgd"),
        training=training,
    )
    with pytest.raises(
        TrainingError, match=r"torchrec needs model\.embedding_dim = a multiple of 4, got 6"
    ):
        fit_one(None, config, tmp_path, ranks=RANKS).__enter__()
    config.model = ModelConfig(embedding_dims={"user": 16, "item": 8})
    with pytest.raises(
        TrainingError,
        match=r"needs model\.embedding_dims = none of another width, got .*'user': 16",
    ):
        fit_one(None, config, tmp_path, ranks=RANKS).__enter__()
    config.model = ModelConfig(attention={"seen": "item"})
    with pytest.raises(TrainingError, match=r"needs model\.attention = none, got {'seen': 'item'}"):
        fit_one(None, config, tmp_path, ranks=RANKS).__enter__()
    check_tables(ModelConfig(embedding_dims={"item": 8}), training)
    check_tables(ModelConfig(embedding_dim=6, embedding_dims={"user": 16}), TrainingConfig())


def test_a_model_with_several_embeddings_raises():
    """Instead of a ValueError from the search for the one embedding."""
    with pytest.raises(
        TrainingError, match=r"torchrec needs a model with one FusedEmbedding, got .*single_dnn"
    ):
        check_tables(ModelConfig(name="single_dnn"), TrainingConfig(tables="torchrec"))
    check_tables(ModelConfig(name="single_dnn"), TrainingConfig())


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
    assert main(["experiment", "complexity", "--dataset", "flights", *out]) == 2
    assert "experiment needs training.tables = replicated, got torchrec" in capsys.readouterr().err
    assert main(["demo", *out]) == 2
    assert "demo needs training.tables = replicated, got torchrec" in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()
