"""Tilings of the InfoNCE kernels: one small table, and what follows from it. See the header of launch.py."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
INTERPRETED = triton.knobs.runtime.interpret


class Config(NamedTuple):
    """How one sweep is cut: rows (columns) a program owns, those it streams, width of a block, piece of the width."""

    own: int
    tile: int
    depth: int
    piece: int  # 0: whole blocks
    num_warps: int
    num_stages: int


class Row(NamedTuple):
    """Tilings for products of ``kind`` up to a width, from an architecture on."""

    kind: str
    widest: float
    capability: int
    rows: Config  # row sweep
    moments: Config  # row sweep that also sums moments, which takes more registers
    columns: Config  # column sweep


def _same(kind: str, widest: float, capability: int, *config: int) -> Row:
    return Row(kind, widest, capability, Config(*config), Config(*config), Config(*config))


ANY = float("inf")
# The first row that admits the operands is taken. Every row compiles without spills for its architectures
# (python -m benchmarks.compile_sweep).
CONFIGS = (
    Row("half", 64, 80, Config(128, 128, 64, 0, 8, 3), Config(128, 64, 64, 0, 8, 3), Config(128, 128, 64, 0, 8, 3)),
    _same("half", 128, 80, 128, 64, 128, 0, 8, 3),
    Row("half", 256, 90, Config(128, 64, 256, 0, 8, 2), Config(128, 32, 256, 0, 8, 3), Config(128, 32, 256, 0, 8, 3)),
    _same("half", 256, 80, 64, 64, 256, 0, 8, 2),
    _same("half", ANY, 90, 64, 64, 256, 64, 8, 3),
    _same("half", 512, 80, 32, 32, 512, 0, 8, 2),
    _same("half", ANY, 80, 64, 32, 256, 64, 8, 3),
    _same("tf32", 128, 80, 64, 64, 128, 0, 8, 2),
    _same("tf32", ANY, 80, 64, 64, 128, 32, 8, 3),
    Row(
        "ieee",
        ANY,
        80,
        Config(64, 32, 64, 16, 8, 2),
        Config(32, 32, 64, 16, 4, 2),
        Config(64, 32, 64, 16, 8, 2),
    ),
    _same("float64", ANY, 80, 32, 32, 32, 16, 4, 2),
)


def product_kind(dtype: torch.dtype) -> str:
    """How products of ``dtype`` are formed: half, tf32, ieee or float64."""
    if dtype == torch.float64:
        return "float64"
    if dtype == torch.float32:
        # set_float32_matmul_precision and allow_tf32 set this too; the older getter raises once both were used.
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return "half"


@lru_cache
def choose_row(kind: str, width: int, capability: int) -> Row:
    """The table's row for a width that is a multiple of 16, its blocks no wider than need be."""
    for row in CONFIGS:
        if row.kind == kind and width <= row.widest and capability >= row.capability:
            depth = triton.next_power_of_2(width)
            fitted = (c._replace(depth=min(c.depth, depth)) for c in row[3:])
            return Row(*row[:3], *fitted)
    raise ValueError(f"kernels.infonce: the GPU must be of compute capability 8.0 or later, got {capability / 10}")


@lru_cache
def choose_splits(blocks: int, tiles: int, processors: int) -> int:
    """Into how many parts to divide ``tiles`` so that ``blocks`` programs fill the card in whole waves.

    A part costs its tiles plus about two for its start and end. At most four waves, which bounds the partial results.
    """
    most = max(1, min(tiles, 4 * processors // blocks))
    return min(range(1, most + 1), key=lambda s: -(-blocks * s // processors) * (-(-tiles // s) + 2))


def constants(dtype: torch.dtype, kind: str, width: int, config: Config) -> dict:
    """What both sweeps take as compile-time constants, from their tiling and type."""
    # The interpreter multiplies bfloat16 as if the bits were integers, so there products take float32 operands.
    operand = torch.float32 if INTERPRETED and dtype == torch.bfloat16 else dtype
    return {
        "OWN": config.own,
        "TILE": config.tile,
        "WIDTH": width,
        "DEPTH": config.depth,
        "PIECE": config.piece,
        "OPERAND": TYPES[operand],
        "ACC": tl.float64 if kind == "float64" else tl.float32,
        "PRECISION": "tf32" if kind == "tf32" else "ieee",
    }


def lift(dtype: torch.dtype) -> int:
    """Binades by which probabilities are raised: float16 is normal from 2^-14 and ends at 2^16."""
    return 14 if dtype == torch.float16 else 0
