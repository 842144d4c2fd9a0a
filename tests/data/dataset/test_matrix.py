"""Columns as the rows of a matrix: by the C++ kernel, which takes elements of 4 bytes, and by
NumPy.
"""

import numpy as np
import pytest

from adaftr_fast import _extension
from adaftr_fast.data.dataset.matrix import matrix, place, places_of
from tests.ops.marks import needs_extension


def columns_of(rows, width, kind):
    random = np.random.default_rng(rows * 1000 + width)
    columns = [random.integers(0, 1 << 30, rows).astype(kind) for _ in range(width)]
    for column in columns:
        column.flags.writeable = False  # as those of a table are
    return columns


def ordered(columns, kind, order):
    rows = np.zeros((len(order) + 1, len(columns)), kind)
    place(columns, places_of(order, len(columns[0])), rows)
    return rows[:-1]


@pytest.mark.parametrize("kind", [np.int32, np.uint8])
def test_rows_in_any_order(monkeypatch, kind):
    monkeypatch.setattr("adaftr_fast.data.dataset.matrix.BLOCK", 16)
    for rows, width in ((0, 1), (1, 4), (63, 13), (64, 121), (65, 3), (200, 13)):
        columns = columns_of(rows, width, kind)
        expected = np.stack(columns, 1)
        assert np.array_equal(matrix(columns, kind), expected)
        order = np.random.default_rng(1).permutation(rows)
        for some in (order, order[: rows // 3]):
            assert np.array_equal(ordered(columns, kind, some), expected[some]), (rows, width)


def test_bits_of_nan_are_kept():
    bits = np.arange(0x7F800001, 0x7F800001 + 300, dtype=np.int32)
    columns = [bits.view(np.float32) for _ in range(5)]
    assert np.array_equal(matrix(columns, np.float32).view(np.int32), np.stack([bits] * 5, 1))


def test_strided_converted_and_unaligned_columns():
    columns = [np.arange(200, dtype=np.int32)[::2], np.arange(100, dtype=np.int64)]
    order = np.arange(99, -1, -1)
    assert np.array_equal(ordered(columns, np.int32, order), np.stack(columns, 1)[order])
    assert np.array_equal(ordered(columns[:1], np.int32, order)[:, 0], columns[0][order])
    unaligned = [np.frombuffer(bytes(range(250)) * 2, np.int32, 70, 1) for _ in range(5)]
    assert np.array_equal(matrix(unaligned, np.int32), np.stack(unaligned, 1))


def test_an_order_with_a_row_twice_is_refused():
    with pytest.raises(ValueError, match="matrix: order must name distinct rows, got a row twice"):
        places_of(np.array([0, 3, 3]), 5)


@needs_extension
def test_bad_arguments_of_the_kernel():
    numbers = columns_of(4, 2, np.int32)
    rows = np.zeros((4, 2), np.int32)
    read_only = np.zeros((4, 2), np.int32)
    read_only.flags.writeable = False
    unaligned = np.frombuffer(bytes(33), np.int64, 4, 1)
    for columns, places, to, message in (
        (columns_of(4, 2, np.float32), None, rows, "have the format of rows, i, got f"),
        ([np.zeros((4, 1), np.int32)], None, rows[:, :1].copy(), "of 1 dimensions, got 2"),
        ([numbers[0], np.zeros(5, np.int32)], None, rows, "columns must be of one length"),
        (numbers, None, np.zeros((4, 3), np.int32), r"rows must be \[4, 2\], got \[4, 3\]"),
        (numbers, np.array([0, 1, 2, 4]), rows, r"places must be 4 numbers in \[0, 4\)"),
        (numbers, np.zeros(4), rows, "places must be aligned int64, got format d"),
        (numbers, unaligned, rows, "places must be aligned int64"),
        (numbers, None, np.zeros((4, 2), np.int64), "rows must have elements of 4 bytes, got 8"),
        (numbers, None, read_only, "read-only"),
    ):
        with pytest.raises(ValueError, match=message):
            _extension.place_rows(columns, places, to)
