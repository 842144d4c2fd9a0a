"""What the sweeps in Gluon share, in NumPy: gluon_pipeline.py, one program after the other.

The interpreter cannot run Gluon. Here a producer and two consumers are generators that yield where
they wait, and a program resumes those that may go on in a random order. A product reads the ring
when it is waited for, the latest time at which the tensor cores may, so that a block that is
released too early gives wrong results. No deadlock is possible that the barriers do not cause, and
it raises.

float32 is the accumulation type. As on the GPU, an FMA rounds once, and subnormal p are flushed.
row_schedule.py and column_schedule.py hold what the consumers of a sweep do.
"""

import math
import random

import numpy as np
import torch
from adaftr_fast.kernels.infonce.config import GLUON_SWEEPS

OWNED = 64
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


class Program:
    """A program's barriers and rings, and which blocks it streams.

    Attributes:
        opening: the block that comes first.
        first, skips, count: then come ``count`` blocks from ``first`` on, without ``opening`` if
            ``skips``.
        rings: for each operand that is streamed, as ``streams`` gives them, its blocks in shared
            memory.
    """

    def __init__(self, place, split, stages, streams, opening, first, skips, count):
        self.place = place
        self.split = split
        self.stages = stages
        self.streams = streams
        self.opening = opening
        self.first = first
        self.skips = skips
        self.count = count
        self.rings = [[None] * stages for _ in streams]
        self.full = [Barrier(1) for _ in range(stages)]
        self.empty = [Barrier(2) for _ in range(stages)]
        self.turns = [Barrier(1), Barrier(1)]

    def run(self, consumers):
        """Runs a producer and the ``consumers`` to their end."""
        chance = random.Random(1000 * self.place + self.split)
        threads = [self._produce(), *consumers]
        waits = {thread: next(thread) for thread in threads}
        while waits:
            ready = [
                thread for thread, wait in waits.items() if wait is None or wait[0].passes(wait[1])
            ]
            assert ready, f"deadlock in program {self.place}, {self.split}"
            thread = chance.choice(ready)
            try:
                waits[thread] = next(thread)
            except StopIteration:
                del waits[thread]

    def _produce(self):
        yield from self._copy(self.opening, 0)
        for i in range(1, self.count + 1):
            block = self.first + i - 1
            block += self.skips and block >= self.opening
            yield self.empty[i % self.stages], (i // self.stages & 1) ^ 1
            yield from self._copy(block, i % self.stages)

    def _copy(self, block, stage):
        for ring, h in zip(self.rings, self.streams):
            ring[stage] = block_of(h, block * 2 * OWNED, 2 * OWNED)
            yield None
        self.full[stage].arrive()

    def arrival(self, i):
        """Returns what to wait for until block ``i`` has arrived."""
        return self.full[i % self.stages], i // self.stages & 1

    def turn(self, who, i):
        """Returns what consumer ``who`` waits for before the products of block ``i``."""
        return self.turns[who], (i & 1) ^ who


def consume(program, who, start, block):
    """One consumer of a program, as _consume and _stream of the kernels; returns acc.

    ``start()`` gives p and acc of the first block, and ``block(stage, i)`` gives p of block ``i``
    and what acc is multiplied by. acc is None without a second product, for which ``start`` and
    ``block`` then release the blocks.
    """
    stages, count, ring = program.stages, program.count, program.rings[0]
    yield program.arrival(0)
    p, acc = start()
    yield program.arrival(min(1, count))
    for i in range(1, count + 1):
        before = (i - 1) % stages
        yield program.turn(who, i)
        program.turns[1 - who].arrive()
        yield None
        p_block, alpha = block(i % stages, i)
        yield program.arrival(min(i + 1, count))
        if acc is not None:
            acc = (acc + products(p, ring[before])) * alpha
            program.empty[before].arrive()
            p = p_block
    return None if acc is None else acc + products(p, ring[count % stages])


def choose(dtype, width, capability):
    """Stands in for ``choose_gluon`` on a GPU of sm_90 with ADAFTR_FAST_INFONCE_SWEEPS=gluon."""
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    return next((c for c in GLUON_SWEEPS if c.block_d // 2 < width <= c.block_d), None)


def padded(h, width):
    out = np.zeros((len(h), width), np.float32)
    out[:, : h.shape[1]] = h.float().numpy()
    return out


def block_of(h, start, size):
    """What TMA copies: rows from ``start`` on, zeros beyond the last."""
    out = np.zeros((size, h.shape[1]), np.float32)
    rows = h[start : start + size]
    out[: len(rows)] = rows
    return out


def share(blocks, split, splits):
    """Returns the first of a split's blocks and the one after its last."""
    return split * blocks // splits, (split + 1) * blocks // splits


def exp2_of(s, scale, addend):
    """2^(s scale + addend): the FMA rounds once, as the product is exact in float64, and subnormal
    results are 0.
    """
    z = s.astype(np.float64) * scale + np.asarray(addend, np.float64)
    return exp2(z.astype(np.float32))


def exp2(z):
    p = np.exp2(z, dtype=np.float32)
    return np.where(p < SMALLEST, np.float32(0), p)


def rounded(p, dtype):
    return torch.from_numpy(p).to(dtype).float().numpy()


def products(x, y):
    """x y in the order in which the interpreted sweeps sum (conftest.py): all must form the same
    scores.
    """
    out = np.zeros((len(x), y.shape[1]), np.float32)
    for k in range(x.shape[1]):
        out += x[:, k, None] * y[k]
    return out


def blocks(size):
    return math.ceil(size / (2 * OWNED))
