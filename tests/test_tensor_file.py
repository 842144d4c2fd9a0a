import safetensors.torch
import torch

from adaftr_fast import _tensor_file
from adaftr_fast._files import sha256
from adaftr_fast._tensor_file import SavedTensors, in_file_order, write_tensors

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


class Pieces:
    """Rows that come one by one."""

    def __init__(self, whole):
        self.whole, self.shape, self.dtype = whole, whole.shape, whole.dtype

    def chunks(self):
        yield from self.whole.split(1)


def test_safetensors_reads_the_file(tmp_path):
    rows = torch.randn(9, 4)
    write_tensors(tmp_path / "file", TENSORS | {"rows": Pieces(rows)}, {"about": "τ"})
    found, expected = safetensors.torch.load_file(tmp_path / "file"), TENSORS | {"rows": rows}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        assert found[name].data_ptr() % value.dtype.itemsize == 0


def test_the_digest_is_that_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_tensor_file, "BLOCK", 5)  # so that a tensor takes several blocks
    digest = write_tensors(tmp_path / "file", TENSORS, {"about": "τ"})
    assert digest == sha256(tmp_path / "file")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "file")["doubles"], TENSORS["doubles"])


def test_tensors_are_read_by_name_or_by_rows(tmp_path):
    write_tensors(tmp_path / "file", TENSORS, {"about": "τ"})
    saved = SavedTensors(tmp_path / "file")
    assert saved.metadata == {"about": "τ"}
    assert set(saved) == set(TENSORS)
    assert len(saved) == len(TENSORS)
    assert "absent" not in saved
    assert saved.get("absent") is None
    assert torch.equal(saved["half"], TENSORS["half"])
    assert saved.shape("strided") == (6, 4)
    assert torch.equal(saved.rows("strided")[2:5], TENSORS["strided"][2:5])


def test_wide_types_come_first():
    names = in_file_order(TENSORS)
    assert names == in_file_order(dict(reversed(TENSORS.items())))
    sizes = [TENSORS[name].dtype.itemsize for name in names]
    assert sizes == sorted(sizes, reverse=True)
