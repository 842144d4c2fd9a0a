import resource

import pytest
import torch

from adaftr_fast.errors import CheckpointError
from adaftr_fast.training.checkpoint.snapshots import load_snapshot, remove_snapshots, save_snapshot
from tests.tolerances import assert_same_bits


def save(folder, number):
    save_snapshot(
        folder,
        number,
        {"a": torch.full((300,), float(number)), "b": torch.tensor(number)},
        {"n": number},
    )


def files(folder):
    return sorted(path for path in folder.iterdir())


def test_round_trip_with_infinity_and_unicode(tmp_path):
    assert load_snapshot(tmp_path / "last") is None
    tensors = {"x": torch.randn(3, 2), "rng": torch.get_rng_state(), "step": torch.tensor(3.0)}
    save_snapshot(
        tmp_path / "last", 1, tensors, {"best": -float("inf"), "text": "τ", "list": [1, None]}
    )
    found, run = load_snapshot(tmp_path / "last")
    assert_same_bits(found, tensors)
    assert (run["best"], run["text"], run["list"]) == (-float("inf"), "τ", [1, None])


def test_only_the_two_newest_snapshots_are_kept(tmp_path):
    for number in (9, 10, 100):
        save(tmp_path, number)
    assert [path.name[:12] for path in files(tmp_path)] == ["000000000010", "000000000100"]
    assert load_snapshot(tmp_path)[1]["n"] == 100
    (tmp_path / ".x.new-1-ab").write_bytes(b"of a killed process")
    save(tmp_path, 101)
    assert len(files(tmp_path)) == 2
    remove_snapshots(tmp_path)
    remove_snapshots(tmp_path)
    assert not tmp_path.exists()


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "cut":
        del content[-1:]
    elif kind == "empty":
        content.clear()
    else:
        content[{"metadata": 20, "tensors": -5}[kind]] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut", "empty", "metadata", "tensors"])
def test_a_damaged_snapshot_falls_back_to_the_previous_one(tmp_path, kind):
    for number in (1, 2):
        save(tmp_path, number)
    damage(files(tmp_path)[-1], kind)
    with pytest.warns(RuntimeWarning, match="000000000002-.* damaged"):
        tensors, run = load_snapshot(tmp_path)
    assert (run["n"], tensors["b"].item()) == (1, 1)
    assert len(files(tmp_path)) == 1


def test_a_partial_write_keeps_earlier_snapshots(tmp_path):
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot write a snapshot, earlier ones are kept"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name[:12] for path in files(tmp_path)] == ["000000000001"]


def test_other_versions_raise(tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr("adaftr_fast.training.checkpoint.snapshots.VERSION", 7)
        save(tmp_path, 1)
    with pytest.raises(
        CheckpointError,
        match="in version 7, this program reads version 4: discard it with --restart",
    ):
        load_snapshot(tmp_path)
