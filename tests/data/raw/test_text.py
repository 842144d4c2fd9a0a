import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaftr_fast.data.raw.text import Dialect, parse_block
from adaftr_fast.data.schema.types import TextFormat

DATA = b'1,a,x\n2,b\n\n3,c,\xff\n4,"d,e",\n,f,z\nfive,g,w\n'


def test_bad_rows_are_reported_with_line_numbers():
    block = parse_block(DATA, Dialect(["n", "s", "t"]))
    assert block.line.tolist() == [1, 4, 5, 6, 7]  # 2 is short, 3 blank
    assert block.total == 6
    block.require("n")
    block.convert("t", pa.string())
    block.convert("n", pa.float64())
    block.convert("s", pa.string())
    assert block.table.to_pydict() == {"n": [1.0, 4.0], "s": ["a", "d,e"], "t": ["x", None]}
    report = block.report()
    assert (report.rows, report.bad) == (6, 4)
    assert report.examples == [
        "2: expected 3 columns, got 2: '2,b'",
        "4: t is not UTF-8: '\\\\xff'",
        "6: n is missing",  # whatever the word for it, if any
        "7: n is not of type double: 'five'",
    ]


def test_text_that_means_missing_elsewhere_names_the_option():
    block = parse_block(b"1,a\n null ,b\n,c\nx,d\n", Dialect(["n", "s"]))
    block.convert("n", pa.float64())
    assert block.columns["n"].to_pylist() == [1.0, None]
    assert block.report().examples == [
        "2: n is not of type double, and not among the words for missing (--null, in Python "
        "null=): ' null '",
        "4: n is not of type double: 'x'",
    ]


def test_marks_of_numbers_name_the_options():
    block = parse_block(b'"1,5"\n1.5\n1.234.567\n1.2.x\n', Dialect(["n"]))
    block.convert("n", pa.float64())
    marks = "n is not of type double, and has marks (--decimal, --thousands)"
    assert block.report().examples == [
        f"1: {marks}: '1,5'",
        f"3: {marks}: '1.234.567'",
        "4: n is not of type double: '1.2.x'",
    ]


def test_lines_that_repeat_the_header_are_bad_rows():
    names = ["n", "s"]
    block = parse_block(b'1,a\nn,s\n2,s\nn,2\n"n",s\n\xef\xbb\xbfn,s\n', Dialect(names))
    assert block.line.tolist() == [1, 3, 4]
    assert block.report().reasons == {"the line repeats the header": 3}


def test_rows_of_words_for_missing_values_are_not_blank():
    block = parse_block(b"a,1\nNA,NA\n,\nb,2\n", Dialect(["s", "n"]), TextFormat(null=("NA",)))
    block.convert("n", pa.int64())
    assert (block.total, block.blank, block.columns["n"].null_count) == (3, 1, 1)


INSIDE = "the line ends inside quotes"
WITHIN = "carriage return within the line"


@pytest.mark.parametrize(
    ("data", "rows", "bad"),
    [
        (b'1,"x\n2,b\n3,c\n4,"y\n5,e\n', {2: "b", 3: "c", 5: "e"}, {1: INSIDE, 4: INSIDE}),
        (b'1,a\n2,"x\n', {1: "a"}, {2: INSIDE}),  # the quotes are open at the end of the block
        (b'1,a\n2,"x', {1: "a"}, {2: INSIDE}),
        (b'1,"x""\n2,"b""c"\n3,"d"e"\n', {2: 'b"c', 3: 'de"'}, {1: INSIDE}),
        # a quote within a value is a character
        (b'1,5" nail\n2,b"\n', {1: '5" nail', 2: 'b"'}, {}),
        (b'1,"x\n\n3,c\n,\n5,"e"\n', {3: "c", 5: "e"}, {1: INSIDE}),
        (b'1,"a\rb"\r\n2,c\r\n', {1: "a\rb", 2: "c"}, {}),
        (b"1,a\r2,b\n3,c\n", {2: "c"}, {1: WITHIN}),
        (b'1,"x\n2,y"\r3,z\n', {}, {1: INSIDE, 2: WITHIN}),  # as many rows as lines
        (b"1,a\r\r\n2,b\r\r\n", {1: "a", 2: "b"}, {}),
        (b"\n\n", {}, {}),
    ],
)
def test_every_line_is_a_row_or_reported(data, rows, bad):
    block = parse_block(data, Dialect(["n", "s"]))
    values = [value.decode() for value in block.table["s"].to_pylist()]
    assert dict(zip(block.line.tolist(), values)) == rows
    assert {each.line: each.reason for each in block.bad} == bad
    report = block.report()
    assert report.lines == data.removesuffix(b"\n").count(b"\n") + 1
    assert report.lines == len(rows) + len(bad) + report.blank
    report.check_kept("log.csv", block.table.num_rows)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.text('1a,"\r', max_size=8), min_size=1, max_size=6))
def test_a_line_is_read_as_if_it_stood_alone(lines):
    whole = parse_block("".join(f"{line}\n" for line in lines).encode(), Dialect(["n", "s"]))
    rows = dict(zip(whole.line.tolist(), whole.table.to_pylist()))
    for number, line in enumerate(lines, start=1):
        alone = parse_block(f"{line}\n".encode(), Dialect(["n", "s"]))
        assert alone.table.to_pylist() == ([rows[number]] if number in rows else [])
        assert [each.reason for each in alone.bad] == [
            each.reason for each in whole.bad if each.line == number
        ]
    assert whole.lines == len(lines) == whole.total + whole.blank
