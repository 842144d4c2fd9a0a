"""Columns as the rows of a matrix: the C++ kernel against NumPy, and the order."""

import numpy as np
import pytest

from adaftr_fast import _extension
from adaftr_fast.data.dataset.matrix import matrix, place_with_numpy
from tests.ops.marks import needs_extension


def columns_of(rows, width, kind):
    random = np.random.default_rng(rows * 1000 + width)
    columns = [random.integers(0, 1 << 30, rows).astype(kind) for _ in range(width)]
    for column in columns:
        column.flags.writeable = False  # as those of a table are
    return columns


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.uint8, np.float64])
def test_rows_in_any_order(monkeypatch, kind):
    monkeypatch.setattr("adaftr_fast.data.dataset.matrix.BLOCK", 16)
    for rows, width in ((0, 1), (1, 4), (63, 13), (64, 121), (65, 3), (200, 13)):
        columns = columns_of(rows, width, kind)
        expected = np.stack(columns, 1)
        assert np.array_equal(matrix(columns, kind), expected)
        order = np.random.default_rng(1).permutation(rows)
        for some in (order, order[: rows // 3]):
            found = matrix(columns, kind, some)
            assert found.dtype == kind
            assert np.array_equal(found, expected[some]), (rows, width)


def test_bits_of_nan_are_kept():
    bits = np.arange(0x7F800001, 0x7F800001 + 300, dtype=np.int32)
    columns = [bits.view(np.float32) for _ in range(5)]
    assert np.array_equal(matrix(columns, np.float32).view(np.int32), np.stack([bits] * 5, 1))


def test_strided_converted_and_unaligned_columns():
    columns = [np.arange(200, dtype=np.int32)[::2], np.arange(100, dtype=np.int64)]
    order = np.arange(99, -1, -1)
    assert np.array_equal(
        matrix(columns, np.int32, order), np.stack([columns[0], columns[1]], 1)[order]
    )
    assert np.array_equal(matrix(columns[:1], np.int32, order)[:, 0], columns[0][order])
    unaligned = [np.frombuffer(bytes(range(250)) * 2, np.int32, 70, 1) for _ in range(5)]
    assert np.array_equal(matrix(unaligned, np.int32), np.stack(unaligned, 1))


def test_an_order_with_a_row_twice_is_refused():
    with pytest.raises(ValueError, match="matrix: order must name distinct rows, got a row twice"):
        matrix(columns_of(5, 2, np.int32), np.int32, np.array([0, 3, 3]))


@needs_extension
def test_the_kernel_does_what_numpy_does():
    columns, places = columns_of(130, 7, np.int32), np.random.default_rng(0).permutation(130)
    for at in (places, None):
        one, two = (np.zeros((130, 7), np.int32) for _ in range(2))
        _extension.place_rows(columns, at, one)
        place_with_numpy(columns, at, two)
        assert np.array_equal(one, two)


@needs_extension
@pytest.mark.parametrize(
    ("columns", "places", "shape", "message"),
    [
        (
            columns_of(4, 2, np.float32),
            None,
            (4, 2),
            "columns must have the format of rows, i, got f",
        ),
        (
            [np.zeros((4, 1), np.int32)],
            None,
            (4, 1),
            "columns must be contiguous and of 1 dimensions, got 2",
        ),
        (
            columns_of(2, 1, np.int32),
            np.frombuffer(bytes(17), np.int64, 2, 1),
            (2, 1),
            "places must be aligned int64",
        ),
        (
            [np.zeros(4, np.int32), np.zeros(5, np.int32)],
            None,
            (4, 2),
            "columns must be of one length",
        ),
        (columns_of(4, 2, np.int32), None, (4, 3), r"rows must be \[4, 2\], got \[4, 3\]"),
        (
            columns_of(4, 2, np.int32),
            np.array([0, 1, 2, 4]),
            (4, 2),
            r"places must be 4 numbers in \[0, 4\)",
        ),
        (
            columns_of(4, 2, np.int32),
            np.zeros(4),
            (4, 2),
            "places must be aligned int64, got format d",
        ),
    ],
)
def test_bad_arguments_of_the_kernel(columns, places, shape, message):
    with pytest.raises(ValueError, match=message):
        _extension.place_rows(columns, places, np.zeros(shape, np.int32))


@needs_extension
def test_rows_that_cannot_be_written():
    with pytest.raises(ValueError, match="place_rows: rows must have elements of 4 bytes, got 8"):
        _extension.place_rows(columns_of(4, 2, np.int64), None, np.zeros((4, 2), np.int64))
    rows = np.zeros((4, 2), np.int32)
    rows.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _extension.place_rows(columns_of(4, 2, np.int32), None, rows)
