"""gluon_row.py in NumPy: the same threads, barriers, order, rescaling and precision, one program after the other.

The interpreter cannot run Gluon. Here a producer and two consumers are generators that yield where they wait, and a
program resumes those that may go on in a random order. A product reads the ring when it is waited for, the latest time
at which the tensor cores may, so that a block that is released too early gives wrong results. No deadlock is possible
that the barriers do not cause, and it raises.

float32 is the accumulation type. As on the GPU, an FMA rounds once, p is summed before it is rounded to the operands'
type, and subnormal p are flushed.
"""

# ruff: noqa: E741
# l is the running sum, as in the kernel.

import math
import random
from types import SimpleNamespace

import numpy as np
import torch
from adaftr_fast.kernels.infonce.config import GLUON_ROW_SWEEPS, choose_splits, max_offset

ROWS = 64
LOG2_E = 1.4426950408889634
SMALLEST = np.float32(2.0**-126)  # normal float32


class Barrier:
    """An mbarrier: a phase completes when ``count`` have arrived."""

    def __init__(self, count):
        self.count = self.missing = count
        self.phases = 0

    def arrive(self):
        self.missing -= 1
        if self.missing == 0:
            self.missing, self.phases = self.count, self.phases + 1

    def passes(self, parity):
        return self.phases % 2 != parity


def choose(dtype, width, capability):
    """Stands in for ``choose_gluon_row_sweep`` on a GPU of sm_90 with ADAFTR_FAST_ROW_SWEEP=gluon."""
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    return next((c for c in GLUON_ROW_SWEEPS if c.block_d // 2 < width <= c.block_d), None)


def gluon_row_sweep(operands, config, tau, need_d_anchors):
    """Stands in for the function of gluon_row.py."""
    a, b = operands.anchors, operands.candidates
    B, width = a.shape
    blocks = math.ceil(B / config.block_m), math.ceil(len(b) / config.block_n)
    splits = choose_splits(*blocks, operands.processors)
    positive_score, partials = torch.full((B,), math.nan), torch.full((splits, 4, B), math.nan)
    acc = torch.full((splits, B, width), math.nan) if need_d_anchors else torch.empty(0)
    problem = SimpleNamespace(
        a=_padded(a, config.block_d), b=_padded(b, config.block_d), tau=tau.double().numpy(), B=B, N=len(b),
        dtype=a.dtype, need_d_anchors=need_d_anchors, stages=config.num_stages, block_n=config.block_n,
        positive_score=positive_score.numpy(), partials=partials.numpy(), acc=acc.numpy(), splits=splits,
    )  # fmt: skip
    for row_block in range(blocks[0]):
        for split in range(splits):
            _run_program(problem, row_block, split)
    return positive_score, partials, acc


def _padded(h, width):
    out = np.zeros((len(h), width), np.float32)
    out[:, : h.shape[1]] = h.float().numpy()
    return out


def _block(h, start, size):
    """What TMA copies: rows from ``start`` on, zeros beyond the last."""
    out = np.zeros((size, h.shape[1]), np.float32)
    rows = h[start : start + size]
    out[: len(rows)] = rows
    return out


def _run_program(problem, row_block, split):
    blocks = math.ceil(problem.N / problem.block_n)
    first, last = split * blocks // problem.splits, (split + 1) * blocks // problem.splits
    holds_diagonal = first <= row_block < last
    program = SimpleNamespace(
        diagonal=row_block, split=split, first=first, holds_diagonal=holds_diagonal,
        count=last - first - holds_diagonal,
        ragged=int(problem.N % problem.block_n != 0 and last == blocks and row_block != blocks - 1),
        ring=[None] * problem.stages, full=[Barrier(1) for _ in range(problem.stages)],
        empty=[Barrier(2) for _ in range(problem.stages)], turns=[Barrier(1), Barrier(1)],
    )  # fmt: skip
    chance = random.Random(1000 * row_block + split)
    threads = [_produce(problem, program), _consume(problem, program, 0), _consume(problem, program, 1)]
    waits = {thread: next(thread) for thread in threads}
    while waits:
        ready = [thread for thread, wait in waits.items() if wait is None or wait[0].passes(wait[1])]
        assert ready, f"deadlock in program {row_block}, {split}"
        thread = chance.choice(ready)
        try:
            waits[thread] = next(thread)
        except StopIteration:
            del waits[thread]


def _produce(problem, program):
    program.ring[0] = _block(problem.b, program.diagonal * problem.block_n, problem.block_n)
    yield None
    program.full[0].arrive()
    for i in range(1, program.count + 1):
        stage = i % problem.stages
        block = program.first + i - 1
        block += program.holds_diagonal and block >= program.diagonal
        yield program.empty[stage], (i // problem.stages & 1) ^ 1
        program.ring[stage] = _block(problem.b, block * problem.block_n, problem.block_n)
        yield None
        program.full[stage].arrive()


def _consume(problem, program, who):
    """One consumer of a program, as _consume and _stream of gluon_row.py."""
    stages, ring, full, empty = problem.stages, program.ring, program.full, program.empty
    rows = program.diagonal * 2 * ROWS + who * ROWS + np.arange(ROWS)
    column = np.arange(problem.block_n)
    a = _block(problem.a, rows[0], ROWS)
    scale = _softmax_scale_log2(problem, rows)
    offset = max_offset(problem.dtype)

    yield full[0], 0
    s = _products(a, ring[0].T)
    if not problem.need_d_anchors:
        empty[0].arrive()
    columns = program.diagonal * problem.block_n + column
    is_positive = rows[:, None] == columns
    positive_score = np.where(is_positive, s, 0).sum(1, dtype=np.float32)
    limit = problem.N if program.holds_diagonal else 0
    s = np.where(is_positive | (columns >= limit), -np.float32(np.inf), s)
    zero = np.zeros(ROWS, np.float32)
    state = positive_score * scale - np.float32(offset), zero, zero - np.float32(np.inf)
    p, state, _ = _online_softmax(s, state, scale, offset)
    p = _rounded(p, problem.dtype)
    acc = np.zeros((ROWS, problem.b.shape[1]), np.float32)
    yield full[min(1, program.count) % stages], min(1, program.count) // stages & 1
    for i in range(1, program.count + 1):
        stage, before = i % stages, (i - 1) % stages
        yield program.turns[who], (i & 1) ^ who
        program.turns[1 - who].arrive()
        yield None
        s = _products(a, ring[stage].T)
        if not problem.need_d_anchors:
            empty[stage].arrive()
        if i > program.count - program.ragged:
            columns = (math.ceil(problem.N / problem.block_n) - 1) * problem.block_n + column
            s = np.where(columns < problem.N, s, -np.float32(np.inf))
        p_block, state, alpha = _online_softmax(s, state, scale, offset)
        following = min(i + 1, program.count)
        yield full[following % stages], following // stages & 1
        if problem.need_d_anchors:
            acc = acc + _products(p, ring[before])
            empty[before].arrive()
            acc *= alpha[:, None]
            p = _rounded(p_block, problem.dtype)
    if problem.need_d_anchors:
        acc = acc + _products(p, ring[program.count % stages])
    _store(problem, program, rows, positive_score, state, acc)


def _softmax_scale_log2(problem, rows):
    """As load_row_parameters and the kernels have it: rounded once, NaN where the row has no result."""
    scale = np.ones(ROWS)
    for place, row in enumerate(rows[rows < problem.B]):
        valid = 0 < problem.tau[row] < math.inf and row < problem.N
        scale[place] = 1 / problem.tau[row] if valid else math.nan
    return (scale * LOG2_E).astype(np.float32)


def _online_softmax(s, state, scale, offset):
    m, l, max_negative = state
    block_max = s.max(1)
    m_new = np.fmax(m, block_max * scale - np.float32(offset))
    alpha = _exp2(m - m_new)
    z = s.astype(np.float64) * scale[:, None] - m_new[:, None].astype(np.float64)  # an FMA: the product is exact
    p = _exp2(z.astype(np.float32))
    return p, (m_new, l * alpha + p.sum(1, dtype=np.float32), np.fmax(max_negative, block_max)), alpha


def _exp2(z):
    p = np.exp2(z, dtype=np.float32)
    return np.where(p < SMALLEST, np.float32(0), p)


def _rounded(p, dtype):
    return torch.from_numpy(p).to(dtype).float().numpy()


def _products(x, y):
    """x y in the order in which the interpreted column sweep sums (conftest.py): both must form the same scores."""
    out = np.zeros((len(x), y.shape[1]), np.float32)
    for k in range(x.shape[1]):
        out += x[:, k, None] * y[k]
    return out


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
