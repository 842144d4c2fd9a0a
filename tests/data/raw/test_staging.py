import gzip
from itertools import chain

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from adaftr_fast.data.parallel import Shard
from adaftr_fast.data.raw import staging
from adaftr_fast.data.raw.inputs import TextFile
from adaftr_fast.data.raw.text import Dialect
from adaftr_fast.data.schema.types import PLAIN_TEXT
from adaftr_fast.errors import DataError

LINES = ["n"] + [str(number) if number % 100 != 50 else "x" for number in range(1, 1001)]


def parsed(data):
    return TextFile(None, PLAIN_TEXT, Dialect(["n"])).parse(data, {"n": pa.int64()})


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "BLOCK_BYTES", 200)

    def run(path, tolerance=0.01, folder="staged", parse=parsed):
        text = staging.TextInput(path, tmp_path / folder, parse, header_lines=1)
        text.folder.mkdir(exist_ok=True)
        options = {"tolerance": tolerance, "check": lambda: None, "advance": int}
        blocks = [staging.stage(text, shard, **options) for shard in Shard.all(3)]
        found = staging.bad_rows_of(text, chain(*blocks))
        found.check(tolerance)
        return found

    return run


def test_rows_in_order_and_bad_ones_by_line(numbers, run, tmp_path):
    bad_rows = run(numbers)
    staged = ds.dataset(tmp_path / "staged", format="parquet").to_table()["n"].to_pylist()
    assert staged == [number for number in range(1, 1001) if number % 100 != 50]
    assert (bad_rows.rows, bad_rows.reasons) == (1000, {"n is not of type int64": 10})
    assert bad_rows.examples[:2] == [
        f"{numbers}:{line}: n is not of type int64: 'x'" for line in (51, 151)
    ]
    for tolerance, message in (
        (0.009, r"10 of 1,000 .* read \(n is not of type int64 10\); first: .*csv:51: "),
        (0, r"1 of \d+ rows .*; correct the file, or --bad_rows 0\.\d+ "),
    ):
        with pytest.raises(DataError, match=message):
            run(numbers, tolerance, folder=f"{tolerance}")


def test_compressed_text_is_read(numbers, run, tmp_path):
    path = tmp_path / "numbers.csv.gz"
    path.write_bytes(gzip.compress(numbers.read_bytes()))
    assert run(path).rows == 1000
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"numbers\.csv\.gz: cannot be read"):
        run(path, folder="other")


def test_lost_rows_are_an_error(numbers, run):
    def lossy(data):
        table, report = parsed(data)
        return table[1:], report

    with pytest.raises(
        DataError,
        match=r"numbers.csv: read 1,000 lines, but accounts for 9\d\d rows kept, 10 left out",
    ):
        run(numbers, parse=lossy)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(staging, "BLOCK_BYTES", 64)
    monkeypatch.setattr(staging, "SEARCH_BYTES", 7)


def test_blocks_of_a_plain_file_are_those_of_a_stream(tmp_path, small_blocks):
    for number, lengths in enumerate(([5, 60, 3, 130, 1, 1, 90], [200], [63], [64], [0, 0, 63, 0])):
        for end in (b"", b"\n"):
            path = tmp_path / f"{number}.csv"
            path.write_bytes(b"\n".join(b"a" * length for length in lengths) + end)
            (tmp_path / "log.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
            blocks = list(staging.blocks(path))
            assert list(staging.blocks(tmp_path / "log.csv.gz")) == blocks
            assert all(block.endswith(b"\n") for block in blocks[:-1])
            assert b"".join(blocks) == path.read_bytes()


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
                    assert list(staging.blocks(path))
                    continue
                with pytest.raises(DataError, match=r"long\.csv.*: found no line end in 256 bytes"):
                    list(staging.blocks(path))


@pytest.mark.parametrize(
    "texts",
    [["0xFFFFF", "7"], ["0XFFFFF", "7"], ["007", "8"], ["-0", "1"], ["+5", "1"], [" 5", "1"]],
)
def test_only_integers_in_their_shortest_form_are_staged_as_such(texts):
    plain = ["0", "-9", "10", "-10", "99", "100", str(2**63 - 1), str(-(2**63)), None]
    table = pa.table({"plain": plain, "other": [*texts, *plain[2:]]})
    found = staging._integers(table, frozenset(table.column_names))
    assert found["plain"].type == pa.int64()
    assert found["plain"].to_pylist() == [int(each) if each else None for each in plain]
    assert found["other"].equals(table["other"])
