"""The memory limit for which tables are planned; needs no TorchRec."""

import pytest

from adaftr_fast.torchrec import tables as sharded_tables


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "4096\n", 4096),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "4096\n", 4096),
        ("memory/memory.limit_in_bytes", f"{2**62}\n", None),
    ],
)
def test_memory_limit_of_the_container(file, text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(sharded_tables, "CGROUPS", tmp_path)
    machine = sharded_tables._host_memory()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert sharded_tables._host_memory() == (expected or machine)
    assert machine > 4096
