import hashlib
import zlib
from itertools import pairwise

import pytest
import safetensors.torch
import torch

from adaftr_fast.files import tensors
from adaftr_fast.files.tensors import SavedTensors, shard_key, write_tensors
from adaftr_fast.files.whole import CRC32, crc32, sha256

TENSORS = {
    "odd": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "half": torch.randn(3, 2).half(),
    "brain": torch.randn(7).bfloat16(),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "strided": torch.randn(4, 6).T,
    "doubles": torch.randn(2, 3, dtype=torch.float64),
}


def test_safetensors_reads_the_file(tmp_path):
    write_tensors(tmp_path / "file", TENSORS, {"about": "τ"})
    found = safetensors.torch.load_file(tmp_path / "file")
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        assert found[name].data_ptr() % value.dtype.itemsize == 0


@pytest.mark.parametrize(
    ("checksum", "of_file", "expected"),
    [
        (None, sha256, lambda content: hashlib.sha256(content).hexdigest()),
        (CRC32(), crc32, lambda content: f"{zlib.crc32(content):08x}"),
    ],
)
def test_the_checksum_is_that_of_the_file(tmp_path, monkeypatch, checksum, of_file, expected):
    monkeypatch.setattr(tensors, "BLOCK", 5)  # so that a tensor takes several blocks
    found = write_tensors(tmp_path / "file", TENSORS, {"about": "τ"}, checksum)
    assert found == expected((tmp_path / "file").read_bytes()) == of_file(tmp_path / "file")
    assert torch.equal(
        safetensors.torch.load_file(tmp_path / "file")["doubles"], TENSORS["doubles"]
    )


def test_tensors_are_read_by_name_or_by_rows(tmp_path):
    write_tensors(tmp_path / "file", TENSORS, {"about": "τ"})
    saved = SavedTensors(tmp_path / "file")
    assert saved.metadata == {"about": "τ"}
    assert set(saved) == set(TENSORS)
    assert len(saved) == len(TENSORS)
    assert "absent" not in saved
    assert torch.equal(saved["half"], TENSORS["half"])
    assert saved.shape("strided") == (6, 4)
    assert torch.equal(saved.rows("strided")[2:5], TENSORS["strided"][2:5])


def write_shards(folder, tensors, bounds):
    """Writes the rows between each two bounds to one file; returns the paths."""
    paths = []
    for start, stop in pairwise(bounds):
        paths.append(folder / f"{start}")
        write_tensors(
            paths[-1], {shard_key(name, start): rows[start:stop] for name, rows in tensors.items()}
        )
    return paths


def test_shards_are_read_as_whole_tensors_or_by_rows(tmp_path):
    tensors = {"a@b": torch.randn(9, 4), "sums": torch.arange(9)}
    paths = write_shards(tmp_path, tensors, [0, 2, 3, 9])
    write_tensors(tmp_path / "file", {"whole": torch.arange(3)}, {"about": "τ"})
    saved = SavedTensors(tmp_path / "file", paths[::-1])
    assert set(saved) == {"a@b", "sums", "whole"}
    assert saved.metadata == {"about": "τ"}
    assert torch.equal(saved["whole"], torch.arange(3))
    for name, rows in tensors.items():
        assert torch.equal(saved[name], rows)
        assert saved.shape(name) == tuple(rows.shape)
        for start, stop in ((0, 9), (1, 2), (1, 8), (4, 6), (5, 5), (7, 20)):
            found = saved.rows(name)[start:stop]
            assert torch.equal(found, rows[start:stop])
            assert found.dtype == rows.dtype


def test_missing_rows_and_names_raise(tmp_path):
    first, _, last = write_shards(tmp_path, {"a": torch.randn(9, 4)}, [0, 2, 3, 9])
    write_tensors(tmp_path / "file", {})
    for paths, message in (
        ([first, last], "from row 2 on, got one from row 3"),
        ([last], "from row 0 on"),
    ):
        with pytest.raises(ValueError, match=f"a: expected a shard {message}"):
            SavedTensors(tmp_path / "file", paths)
    write_tensors(tmp_path / "other", {"plain": torch.zeros(2)})
    with pytest.raises(ValueError, match="plain"):
        SavedTensors(tmp_path / "file", [tmp_path / "other"])
