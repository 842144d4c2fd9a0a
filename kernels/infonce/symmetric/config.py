"""Block sizes of the symmetric loss, as config.py of InfoNCE has them: M is the owned side and N the streamed one."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from adaftr_fast.kernels.infonce.config import ANY, Config


class SymmetricTiling(NamedTuple):
    """The configs for products of ``kind`` up to a width, from a compute capability on."""

    kind: str  # half, tf32, ieee or float64
    max_width: float
    min_capability: int
    sums: Config  # owns rows
    gradient: Config  # owns either side


# The first row that admits the operands is taken. The rows of half types up to 256 compile without spills for their
# architectures (python -m benchmarks.infonce.compile_sweep). The others have not been compiled: serves_symmetric leaves
# their operands to two calls, and only the interpreter runs them.
SYMMETRIC_TILINGS = (
    SymmetricTiling("half", 64, 90, Config(128, 64, 64, 0, 8, 3), Config(128, 64, 64, 0, 8, 3)),
    SymmetricTiling("half", 128, 90, Config(128, 64, 128, 0, 8, 3), Config(128, 64, 128, 0, 8, 3)),
    SymmetricTiling("half", 256, 90, Config(64, 64, 256, 0, 8, 2), Config(128, 32, 256, 0, 8, 1)),
    SymmetricTiling("half", 64, 80, Config(128, 64, 64, 0, 8, 3), Config(128, 32, 64, 0, 8, 3)),
    SymmetricTiling("half", 128, 80, Config(128, 64, 128, 0, 8, 3), Config(128, 32, 128, 0, 8, 3)),
    SymmetricTiling("half", 256, 80, Config(64, 64, 256, 0, 8, 2), Config(64, 64, 256, 0, 8, 2)),
    SymmetricTiling("half", ANY, 80, Config(64, 32, 256, 64, 8, 3), Config(64, 32, 256, 64, 8, 3)),
    SymmetricTiling("tf32", ANY, 80, Config(64, 64, 128, 32, 8, 3), Config(64, 64, 128, 32, 8, 3)),
    SymmetricTiling("ieee", ANY, 80, Config(32, 32, 64, 16, 4, 2), Config(32, 32, 64, 16, 4, 2)),
    SymmetricTiling("float64", ANY, 80, Config(32, 32, 32, 16, 4, 2), Config(32, 32, 32, 16, 4, 2)),
)


@lru_cache
def choose_symmetric_tiling(kind: str, width: int, capability: int) -> SymmetricTiling:
    """Returns the table's row for a width that is a multiple of 16, with blocks no wider than needed."""
    for tiling in SYMMETRIC_TILINGS:
        if tiling.kind == kind and width <= tiling.max_width and capability >= tiling.min_capability:
            return tiling._replace(sums=_fit(tiling.sums, width), gradient=_fit(tiling.gradient, width))
    raise ValueError(f"kernels.infonce: the GPU must be of compute capability 8.0 or later, got {capability / 10}")


def _fit(config: Config, width: int) -> Config:
    widest = triton.next_power_of_2(width)
    return config._replace(block_d=min(config.block_d, widest), block_k=min(config.block_k, widest))


def has_common(dtype: torch.dtype, sweep: str, config: Config, grouped: bool) -> bool:
    """Whether a sweep, "sums" or "gradient", has a loop of one exponential a pair (sums.py).

    Not where FMA units form the products, beside which exponentials take little time. Gradient sweeps not beyond 128,
    where they spill under Triton 3.9.
    """
    if grouped or config.block_k > 0 or dtype == torch.float64:
        return False
    return sweep == "sums" or config.block_d <= 128
