import json

import pytest
import torch
from torch import nn

from adaftr_fast.errors import CheckpointError
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.training.checkpoint.weights import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from tests.training.conftest import ABOUT


@pytest.fixture
def saved(tmp_path):
    layer = nn.Linear(3, 2)
    save_checkpoint(tmp_path / "best", layer, ABOUT)
    return tmp_path / "best", layer


def weights_file(folder):
    (path,) = folder.glob("weights-*.safetensors")
    return path


def test_round_trip(saved):
    folder, layer = saved
    weights, about = load_checkpoint(folder)
    assert about == ABOUT
    assert "field_names" not in json.loads((folder / "checkpoint.json").read_text())
    other = nn.Linear(3, 2)
    load_weights(other, weights, "best")
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other.bias, layer.bias)


@pytest.mark.parametrize("widths", [[2, 2], [2, 3]])
def test_tables_have_an_entry_per_field(tmp_path, widths):
    """The names do not depend on whether tables are sharded."""
    one, two = (
        nn.Sequential(FusedEmbedding([3, 4], widths, field_names=["user", "item"]))
        for _ in range(2)
    )
    save_checkpoint(tmp_path, one, ABOUT)
    weights, _ = load_checkpoint(tmp_path)
    assert set(weights) == {"0.weight.user", "0.weight.item"}
    load_weights(two, weights, "best")
    assert all(
        torch.equal(two[0].field_weight(name), one[0].field_weight(name))
        for name in ("user", "item")
    )
    with pytest.raises(
        CheckpointError, match=r"weight 0.weight.item: expected shape \(4, \d\), got None"
    ):
        load_weights(two, {"0.weight.user": weights["0.weight.user"]}, "best")


def test_the_old_checkpoint_survives_a_failed_write(saved, monkeypatch):
    folder, layer = saved

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, nn.Linear(3, 2), ABOUT)
    assert torch.equal(load_checkpoint(folder)[0]["weight"], layer.weight)
    assert len(list(folder.iterdir())) == 2


def test_damaged_weights_raise(saved):
    folder, _ = saved
    path = weights_file(folder)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(folder)
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"weights-.*: missing"):
        load_checkpoint(folder)


def test_missing_checkpoints_and_other_versions_raise(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_checkpoint(tmp_path)
    head = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(head | {"version": 7}))
    with pytest.raises(
        CheckpointError, match="written in version 7, this program reads version 3: train again"
    ):
        load_checkpoint(folder)


def test_weights_of_other_shapes_raise(saved):
    weights, _ = load_checkpoint(saved[0])
    with pytest.raises(
        CheckpointError, match=r"best: weight weight: expected shape \(2, 4\), got \(2, 3\)"
    ):
        load_weights(nn.Linear(4, 2), weights, "best")
    with pytest.raises(CheckpointError, match=r"weight bias: expected shape None, got \(2,\)"):
        load_weights(nn.Linear(3, 2, bias=False), weights, "best")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, "weights: expected text, got None"),
        ({"config": []}, r"config: expected an object, got \[\]"),
        (
            {"metrics": {"click": {"auc": "high"}}},
            r"metrics\.click\.auc: expected a number, got 'high'",
        ),
        ({"colour": "red"}, "unknown key 'colour'"),
        (
            {"weights": "../weights.safetensors"},
            "weights: expected the name of a file in the same folder",
        ),
        (b"", ""),
        (b'{"version": 3}', ""),
        (b'{"version": "caf\xe9"}', ".*utf-8"),
    ],
)
def test_errors_of_a_description_name_the_key(saved, change, message):
    path = saved[0] / "checkpoint.json"
    content = (
        change
        if isinstance(change, bytes)
        else json.dumps(json.loads(path.read_text()) | change).encode()
    )
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"checkpoint\.json: damaged or not a checkpoint: {message}"
    ):
        load_checkpoint(saved[0])
