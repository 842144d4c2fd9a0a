"""gluon_row.py in NumPy: the same order, rescaling and precision. p is summed before it
is rounded.
"""

# ruff: noqa: E741
# l is the running sum, as in the kernel.

import math
from types import SimpleNamespace

import numpy as np
import torch
from adaftr_fast.kernels.infonce.config import choose_splits, max_offset

from tests.kernels.infonce.gluon.schedule import (
    OWNED,
    Program,
    block_of,
    blocks,
    consume,
    exp2,
    exp2_of,
    padded,
    products,
    rounded,
    share,
)

LOG2_E = 1.4426950408889634


def gluon_row_sweep(operands, config, tau, need_d_anchors):
    """Stands in for the function of gluon_row.py."""
    a, b = operands.anchors, operands.candidates
    B, width = a.shape
    splits = choose_splits(blocks(B), blocks(len(b)), operands.products.processors)
    positive_score, partials = torch.full((B,), math.nan), torch.full((splits, 4, B), math.nan)
    acc = torch.full((splits, B, width), math.nan) if need_d_anchors else torch.empty(0)
    problem = SimpleNamespace(
        a=padded(a, config.block_d), b=padded(b, config.block_d), tau=tau.double().numpy(), B=B, N=len(b),
        dtype=a.dtype, need_d_anchors=need_d_anchors, positive_score=positive_score.numpy(), partials=partials.numpy(),
        acc=acc.numpy(),
    )  # fmt: skip
    for diagonal in range(blocks(B)):
        for split in range(splits):
            first, last = share(blocks(len(b)), split, splits)
            holds_diagonal = first <= diagonal < last
            count = last - first - holds_diagonal
            program = Program(
                diagonal,
                split,
                config.num_stages,
                [problem.b],
                diagonal,
                first,
                holds_diagonal,
                count,
            )
            problem.ragged = (
                len(b) % (2 * OWNED) != 0 and last == blocks(len(b)) and diagonal != last - 1
            )
            program.run([_consume(problem, program, who) for who in (0, 1)])
    return positive_score, partials, acc


def _consume(problem, program, who):
    (ring,), column = program.rings, np.arange(2 * OWNED)
    rows = (2 * program.place + who) * OWNED + np.arange(OWNED)
    a = block_of(problem.a, rows[0], OWNED)
    scale, offset = _softmax_scale_log2(problem, rows), np.float32(max_offset(problem.dtype))
    columns = program.opening * 2 * OWNED + column
    is_positive = rows[:, None] == columns

    def scores(stage):
        s = products(a, ring[stage].T)
        if not problem.need_d_anchors:
            program.empty[stage].arrive()
        return s

    def start():
        nonlocal positive_score, state
        s = scores(0)
        positive_score = np.where(is_positive, s, 0).sum(1, dtype=np.float32)
        limit = problem.N if program.skips else 0
        s = np.where(is_positive | (columns >= limit), -np.float32(np.inf), s)
        zero = np.zeros(OWNED, np.float32)
        state = positive_score * scale - offset, zero, zero - np.float32(np.inf)
        p, state, _ = _online_softmax(s, state, scale, offset)
        acc = np.zeros((OWNED, problem.b.shape[1]), np.float32)
        return rounded(p, problem.dtype), acc if problem.need_d_anchors else None

    def block(stage, i):
        nonlocal state
        s = scores(stage)
        if i > program.count - problem.ragged:
            last = (blocks(problem.N) - 1) * 2 * OWNED + column
            s = np.where(last < problem.N, s, -np.float32(np.inf))
        p, state, alpha = _online_softmax(s, state, scale, offset)
        return rounded(p, problem.dtype), alpha[:, None]

    positive_score = state = None
    acc = yield from consume(program, who, start, block)
    _store(problem, program, rows, positive_score, state, acc)


def _softmax_scale_log2(problem, rows):
    """As load_row_parameters and the kernels have it: rounded once, NaN where the row has no
    result.
    """
    scale = np.ones(OWNED)
    for place, row in enumerate(rows[rows < problem.B]):
        valid = 0 < problem.tau[row] < math.inf and row < problem.N
        scale[place] = 1 / problem.tau[row] if valid else math.nan
    return (scale * LOG2_E).astype(np.float32)


def _online_softmax(s, state, scale, offset):
    m, l, max_negative = state
    block_max = s.max(1)
    m_new = np.fmax(m, block_max * scale - offset)
    alpha = exp2(m - m_new)
    p = exp2_of(s, scale[:, None], -m_new[:, None])
    return (
        p,
        (m_new, l * alpha + p.sum(1, dtype=np.float32), np.fmax(max_negative, block_max)),
        alpha,
    )


def _store(problem, program, rows, positive_score, state, acc):
    inside = rows < problem.B
    rows, split = rows[inside], program.split
    if split == 0:
        problem.positive_score[rows] = positive_score[inside]
    m, l, max_negative = (x[inside] for x in state)
    for place, values in enumerate((m, l, np.zeros_like(l), max_negative)):
        problem.partials[split, place, rows] = values
    if problem.need_d_anchors:
        problem.acc[split, rows] = acc[inside, : problem.acc.shape[2]]
