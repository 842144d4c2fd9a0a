import gzip

import pytest

from adaftr_fast.data.raw import blocks
from adaftr_fast.errors import DataError


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    monkeypatch.setattr(blocks, "SEARCH_BYTES", 7)


def test_blocks_of_a_plain_file_are_those_of_a_stream(tmp_path, small_blocks):
    for number, lengths in enumerate(([5, 60, 3, 130, 1, 1, 90], [200], [63], [64], [0, 0, 63, 0])):
        for end in (b"", b"\n"):
            path = tmp_path / f"{number}.csv"
            path.write_bytes(b"\n".join(b"a" * length for length in lengths) + end)
            (tmp_path / "log.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
            whole = list(blocks.blocks(path))
            assert list(blocks.blocks(tmp_path / "log.csv.gz")) == whole
            assert all(block.endswith(b"\n") for block in whole[:-1])
            assert b"".join(whole) == path.read_bytes()


def test_a_long_line_is_refused_by_every_reader(tmp_path, small_blocks):
    """However it lies in the blocks, and whether the line end is found in the block that makes it
    too long.
    """
    plain = tmp_path / "long.csv"
    compressed = tmp_path / "long.csv.gz"
    for before in (0, 63, 100):
        for length in (255, 256, 257, 300, 330, 1000):
            plain.write_bytes(b"b\n" * (before // 2) + b"a" * length + b"\nb\n")
            compressed.write_bytes(gzip.compress(plain.read_bytes()))
            for path in (plain, compressed):
                if length <= 256:
                    assert list(blocks.blocks(path))
                    continue
                with pytest.raises(DataError, match=r"long\.csv.*: found no line end in 256 bytes"):
                    list(blocks.blocks(path))
