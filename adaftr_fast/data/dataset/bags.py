"""Multi-valued fields in memory, as concatenated ids and bag offsets.

Shapes: B rows, F fields, N ids. ``offsets`` [B * F + 1] increase from 0 to N. Bag b * F + f is field f of row b.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 4096  # rows copied at a time, to bound the index arrays


def interleave(columns: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Joins columns row by row.

    Args:
        columns: per field, its ids and its offsets [B + 1] from 0; offsets are None for a single-valued field, [B] ids.

    Returns:
        ids [N] and int64 offsets.
    """
    counts = [np.ones(len(ids), np.int64) if own is None else np.diff(own) for ids, own in columns]
    offsets = _cumulative(np.stack(counts, axis=1))
    joined = np.empty(offsets[-1], columns[0][0].dtype)
    for field, (ids, own) in enumerate(columns):
        starts = offsets[field : -1 : len(columns)]
        if own is None:
            joined[starts] = ids
        else:
            joined[np.repeat(starts - own[:-1], counts[field]) + np.arange(len(ids))] = ids
    return joined, offsets


def take_bags(ids: np.ndarray, offsets: np.ndarray, rows: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bags of the rows ``order`` [n], in that order, out of ``rows`` rows."""
    if not len(order):
        return ids[:0], offsets[:1]
    counts = np.diff(offsets).reshape(rows, -1)[order]  # [n, F]
    width, taken = counts.shape[1], _cumulative(counts)
    bounds = taken[::width]  # [n + 1], destination of each row's ids
    moved = np.empty(taken[-1], ids.dtype)
    for first in range(0, len(order), BLOCK):
        some = order[first : first + BLOCK]
        own = bounds[first : first + len(some) + 1]
        shift = np.repeat(offsets[::width][some] - own[:-1], np.diff(own))
        moved[own[0] : own[-1]] = ids[shift + np.arange(own[0], own[-1])]
    return moved, taken


def slice_bags(ids: Tensor, offsets: Tensor, rows: int, part: slice) -> tuple[Tensor, Tensor]:
    """Returns the bags of a range of adjacent rows out of ``rows`` rows. The ids are a view."""
    start, stop, _ = part.indices(rows)
    width = (len(offsets) - 1) // max(rows, 1)
    own = offsets[start * width : max(start, stop) * width + 1]
    return ids[own[0] : own[-1]], own - own[0]


def concat_offsets(parts: Sequence[Tensor]) -> Tensor:
    """Returns the offsets of concatenated bags."""
    return torch.from_numpy(_cumulative(np.concatenate([np.diff(part.numpy()) for part in parts])))


def _cumulative(counts: np.ndarray) -> np.ndarray:
    """Converts lengths of any shape to offsets from 0."""
    offsets = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
