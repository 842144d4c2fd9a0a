import pyarrow as pa

from adaftr_fast.data.raw.text import castable, parse_block

DATA = b'1,a,x\n2,b\n\n3,c,\xff\n4,"d,e",\n,f,z\nfive,g,w\n'


def test_bad_rows_are_reported_with_line_numbers():
    block = parse_block(DATA, ["n", "s", "t"], ",")
    assert block.line.tolist() == [1, 4, 5, 6, 7]  # 2 is short, 3 blank
    assert block.total == 6
    block.require("n")
    block.convert("t", pa.string())
    block.convert("n", pa.float64())
    block.convert("s", pa.string())
    assert block.table.to_pydict() == {"n": [1.0, 4.0], "s": ["a", "d,e"], "t": ["x", None]}
    report = block.report()
    assert (report.rows, report.bad) == (6, 4)
    assert report.reasons == {
        "expected 3 columns, got 2": 1,
        "t is not of type string": 1,
        "n is missing": 1,
        "n is not of type double": 1,
    }
    assert report.examples[0] == "2: expected 3 columns, got 2: '2,b'"
    assert report.examples[1] == "4: t is not of type string: '\\\\xff'"
    assert report.examples[3] == "7: n is not of type double: 'five'"


def test_quotes_can_be_plain_characters():
    block = parse_block(b'1,"a\n2,b"\n', ["n", "s"], ",", quoted=False)
    assert block.table["s"].to_pylist() == [b'"a', b'b"']


def test_castable_finds_each_value():
    values = pa.array(["1", None, "x", "3", "4.5", ""])
    assert castable(values, pa.int64()).tolist() == [True, True, False, True, False, False]
    assert castable(values[:0], pa.int64()).tolist() == []


def test_blank_lines_are_not_rows():
    block = parse_block(b"\n\n", ["n", "s"], ",")
    assert (block.table.num_rows, block.total) == (0, 0)
