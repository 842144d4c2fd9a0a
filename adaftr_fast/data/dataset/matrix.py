"""Columns of a file as the rows of a matrix, in file order or in another. Shapes: N rows, F
columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaftr_fast._extension import place_rows

BLOCK = 4096  # rows copied at a time by NumPy; with F columns they fit into the L2 cache


def matrix(columns: Sequence[np.ndarray], kind: type[np.generic]) -> np.ndarray:
    """Stacks columns [N] to a matrix [N, F]."""
    rows = np.empty((len(columns[0]), len(columns)), kind)
    place(columns, None, rows)
    return rows


def places_of(order: np.ndarray, count: int) -> np.ndarray:
    """Returns the place of each of ``count`` rows in ``order`` [n]; n for rows that are not in it.

    Raises:
        ValueError: ``order`` names a row twice.
    """
    places = np.full(count, len(order), np.int64)
    places[order] = np.arange(len(order))
    if np.count_nonzero(places < len(order)) < len(order):
        raise ValueError("matrix: order must name distinct rows, got a row twice")
    return places


def place(columns: Sequence[np.ndarray], places: np.ndarray | None, rows: np.ndarray) -> None:
    """Writes row i of the columns to ``rows[places[i]]``, or to ``rows[i]``.

    Rows are stacked in blocks and copied from there to their places, so that all rows are never
    held twice.
    """
    if (
        place_rows is not None
        and rows.itemsize == 4
        and all(column.dtype == rows.dtype for column in columns)
    ):
        place_rows([np.ascontiguousarray(column) for column in columns], places, rows)
    else:
        place_with_numpy(columns, places, rows)


def place_with_numpy(
    columns: Sequence[np.ndarray], places: np.ndarray | None, rows: np.ndarray
) -> None:
    """Does the same without the C++ kernel, for columns of any type."""
    count = len(columns[0])
    if places is None:
        for start in range(0, count, BLOCK):
            _stack(columns, start, rows[start : start + BLOCK])
        return
    block = np.empty((min(BLOCK, count), rows.shape[1]), rows.dtype)
    whole = np.dtype((np.void, rows.strides[0]))  # a row as one element, which NumPy copies faster
    to = rows.view(whole)[:, 0]
    stacked = block.view(whole)[:, 0]
    for start in range(0, count, BLOCK):
        some = places[start : start + BLOCK]
        _stack(columns, start, block[: len(some)])
        to[some] = stacked[: len(some)]


def _stack(columns: Sequence[np.ndarray], start: int, rows: np.ndarray) -> None:
    for position, column in enumerate(columns):
        rows[:, position] = column[start : start + len(rows)]
