"""gluon_column.py in NumPy: the same order, weights and precision, in both forms."""

import math
from types import SimpleNamespace

import numpy as np
import torch
from adaftr_fast.kernels.infonce.config import choose_splits, folds_scale

from tests.kernels.infonce.gluon.schedule import (
    OWNED,
    Program,
    block_of,
    blocks,
    consume,
    exp2_of,
    padded,
    products,
    rounded,
    share,
)

TERMS = 4  # of a row, side by side: softmax_scale_log2, shift, negative_scale, m


def gluon_column_sweep(operands, config, row_terms, scales):
    """Stands in for the function of gluon_column.py."""
    a = operands.anchors
    b = operands.candidates
    d = operands.products.d
    B, N = len(a), len(b)
    splits = choose_splits(blocks(N), blocks(B), operands.products.processors)
    d_candidates = torch.full((splits, N, d), math.nan)
    descale, misfit = scales.numpy()
    folds = folds_scale(a.dtype, config) and misfit == 0
    values = row_terms.numpy().ravel()
    problem = SimpleNamespace(
        a=padded(a, config.block_d), b=padded(b, config.block_d), terms=values[: TERMS * B].reshape(B, TERMS),
        positive_scale=values[TERMS * B :][:B], folds=folds, descale=np.float32(1) if folds else descale, B=B, N=N,
        dtype=a.dtype, d_candidates=d_candidates.numpy(),
    )  # fmt: skip
    for diagonal in range(blocks(N)):
        for split in range(splits):
            first, last = share(blocks(B), split, splits)
            problem.holds_diagonal = first <= diagonal < last
            opening = diagonal if problem.holds_diagonal else first
            streams = [problem.a, problem.terms]
            program = Program(
                diagonal, split, config.num_stages, streams, opening, first, True, last - first - 1
            )
            program.run([_consume(problem, program, who) for who in (0, 1)])
    return d_candidates


def _consume(problem, program, who):
    ring, term_ring = program.rings
    columns = (2 * program.place + who) * OWNED + np.arange(OWNED)
    b = block_of(problem.b, columns[0], OWNED)
    inverse_descale = np.float32(1) / problem.descale if problem.descale > 0 else np.float32(0)

    def probabilities(stage, folded):
        s = products(b, ring[stage].T)
        return _probabilities(s, term_ring[stage], inverse_descale, folded)

    def start():
        p = probabilities(0, False)
        rows = program.opening * 2 * OWNED + np.arange(2 * OWNED)
        p = np.where(rows == columns[:, None], np.float32(0), p)
        acc = np.zeros((OWNED, problem.a.shape[1]), np.float32)
        if problem.holds_diagonal:
            positive_scale = block_of(problem.positive_scale[:, None], columns[0], OWNED)
            acc = positive_scale * inverse_descale * ring[0][who * OWNED :][:OWNED]
        return rounded(p, problem.dtype), acc

    def block(stage, i):
        return rounded(probabilities(stage, problem.folds), problem.dtype), np.float32(1)

    acc = yield from consume(program, who, start, block)
    inside, d = columns < problem.N, problem.d_candidates.shape[2]
    problem.d_candidates[program.split, columns[inside]] = (acc * problem.descale)[inside, :d]


def _probabilities(s, terms, inverse_descale, folded):
    softmax_scale_log2, shift, negative_scale, m = terms.T
    p = exp2_of(s, softmax_scale_log2, shift if folded else -m)
    return p if folded else p * (negative_scale * inverse_descale)
