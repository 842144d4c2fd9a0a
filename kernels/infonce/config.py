"""Block sizes of the InfoNCE sweeps: one small table, and what follows from it. The package's docstring names them.

What the table rests on:

* A program of the row sweep owns BLOCK_M rows and streams blocks of BLOCK_N columns past them; the column sweep owns
  BLOCK_N columns and streams blocks of BLOCK_M rows. Blocks hold the whole width, up to BLOCK_D, so that a streamed
  block is loaded once for two products. Registers bound owned * BLOCK_D (the float32 accumulator takes 128 of 255
  registers a thread at 128 x 256 with 8 warps) plus BLOCK_M * BLOCK_N; shared memory bounds
  (owned + num_stages * streamed) * BLOCK_D. A wgmma reads its left operand from shared memory once for all streamed
  rows or columns, so shared memory limits its speed at 32 of them: 64 or more where registers allow.
* Where that does not fit (BLOCK_K > 0), the first product loads both operands in slices of the width from L2, and the
  width of the output is divided over programs, each of which repeats the first product. That is so with half types
  beyond 512, with TF32 beyond 128, and with IEEE float32 and float64 always. IEEE float32 has no matrix unit, and
  Triton unrolls an FMA product over its whole depth, so BLOCK_K also bounds compile time and registers.
* IEEE float32 beyond 64 divides the width of the output by 128, not 64, where the second product is no deeper than 16:
  four products at 128, a quarter fewer issue cycles. With 32 streamed it spills 480 bytes under 3.9, a column sweep of
  16 x 64 with 8 warps 16 bytes under 3.6, and that of 16 x 32 on sm_80 8 bytes under 3.6.
* Half types beyond 256, up to 512, on sm_90 take blocks of the whole width, whose accumulator two warpgroups share, and
  ``five_products``, because the row sweep leaves d_anchors to anchor_sweep.py. In one row sweep, four products, a
  maximum that moves spills 12 to 26 accesses in each loop, and behind a branch each matrix instruction waits for the
  one before. A first loop that finds the maximum spills 32 to 80 bytes under 3.6. With a maximum that is known before
  the loop nothing spills: bounded_sweep.py takes four products for d_anchors where the logits are bounded, without
  statistics and with nothing but the diagonal masked. In the column sweep with masks, the reduction of small calls
  spills 8 bytes under 3.9, so launch.py reduces. On sm_100 these blocks would need 256 KiB of shared memory, which it
  does not have.
* bf16x3 streams both terms of its operands by asynchronous copies. At 128 on sm_90 a 128 x 64 tile takes 443 to 557
  instructions; Triton's own bf16x3, which splits float32 in the kernel, takes 904 to 939 and spills. At 256 a column
  sweep of 32 x 128 spills under 3.9. On sm_80 whole blocks at 128 spill (64 x 64, 64 x 32, 128 x 32 and 128 x 16, with
  4 or 8 warps), so TF32 serves there: "tf32x3" spills too, 48 to 304 bytes at 64 x 32 x 64, and takes three times the
  matrix cycles of TF32, which is what PyTorch takes at "high".
* TF32 at 128 on sm_90 streams 64 past 128: eight warps that own 64 repeat half of the first product. Its blocks pass
  through registers, which transpose the second product's operand. Slices of 64 of the width (BLOCK_K) are copied
  asynchronously, but take 864 instructions a tile instead of 434, and a column sweep of them spills 24 bytes.
* Most calls are the training variant: row r's positive is column r and no statistics are asked for. Explicit positives
  and groups mask every block, and sum_pz adds a sum. Both take registers, so these variants of the row sweep have
  blocks of their own where those of training spill under Triton 3.6 or 3.9: explicit ones in half types at 256 on sm_90
  and at 16 on sm_80, and in IEEE float32; sum_pz in half types at 128 on sm_80; both in TF32 at 128 on sm_90. TF32 up
  to 64, IEEE float32 up to 32 and float64 up to 16 have rows of their own, because kernels spilled there in the blocks
  of the greater widths. Of the blocks that were tried and spill under neither version, the table has those of the
  fewest issue cycles for an element (benchmarks/README.md, "Compiled code").
* The sigmoid loss takes the blocks of row_sweep_pz and column_sweep but where its kernel spills in them: in half types
  at 512 on sm_80, in TF32 up to 128, in IEEE float32 up to 32 and in float64 up to 16; and in half types up to 64 on
  sm_80 and in float64 up to 32, where it does not spill in greater blocks or with more stages.
* Warps repeat each other's products where the owned rows or columns are fewer than 16 a warp (mma.sync) or 64 for four
  warps (wgmma): in TF32 up to 64 eight warps own 128 and four own 64.
* The sweeps of a row of the table have one BLOCK_K: the column sweep forms the row sweep's scores again and must sum
  them in the same order.
* ADAFTR_FAST_INFONCE_SWEEPS=gluon chooses gluon_row.py and gluon_column.py for half types on sm_90, at widths that
  waste less than half of a block: two consumers of 64 rows stream 128 columns, or the other way round, the fewest that
  hold their positives in one block.
* A small B or N leaves multiprocessors idle. The streamed side is then split, and the splits are joined in order.
"""

import os
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
INTERPRETED = triton.knobs.runtime.interpret


class Config(NamedTuple):
    """How one sweep is cut into blocks. In the symmetric loss, M is the owned side."""

    block_m: int
    block_n: int
    block_d: int
    block_k: int  # 0: no loop over d
    num_warps: int
    num_stages: int
    programs: int = 1  # that a multiprocessor holds at once, for choose_splits
    five_products: bool = False  # the row sweep has no acc, see wide/; the column sweep masks in a branch


class Tiling(NamedTuple):
    """The configs for products of ``kind`` up to a width, from a compute capability on."""

    kind: str  # half, bf16x3, tf32, ieee or float64
    max_width: float
    min_capability: int
    row_sweep: Config
    row_sweep_explicit: Config  # with explicit positives, groups or ignore_above, and without sum_pz
    row_sweep_pz: Config  # with sum_pz
    column_sweep: Config
    sigmoid_rows: Config
    sigmoid_columns: Config
    sums: Config | None = None  # of the symmetric loss; owns rows
    gradient: Config | None = None  # of the symmetric loss; owns either side


def _tilings(table: str) -> list[Tiling]:
    """Reads a table. What a row leaves out follows from its row sweep.

    The column sweep owns what that streams. The sigmoid loss takes the blocks of row_sweep_pz, which stream at most 64
    columns, and of the column sweep.
    """
    given: dict[tuple[str, float, int], dict[str, Config]] = {}
    for line in table.strip().splitlines()[1:]:
        kind, max_width, min_capability, sweep, *numbers = line.split()
        config = Config(*map(int, numbers))
        given.setdefault((kind, float(max_width), int(min_capability)), {})[sweep] = config
    tilings = []
    for key, sweeps in given.items():
        rows = sweeps["row_sweep"]
        pz = sweeps.get("row_sweep_pz", rows)
        columns = sweeps.get("column_sweep", rows._replace(block_m=rows.block_n, block_n=rows.block_m))
        own = {"row_sweep_explicit": rows, "row_sweep_pz": pz, "column_sweep": columns}
        tilings.append(Tiling(*key, **own | {"sigmoid_rows": pz, "sigmoid_columns": columns} | sweeps))
    return tilings


# The first row that admits the operands is taken, but none of five products on sm_100 and later. Every row compiles
# without spills for its architectures (python -m benchmarks.infonce.compile_sweep).
TILINGS = _tilings("""
    kind    width  sm  sweep                 M    N    D   K  warps  stages  programs  five_products
    half       64  90  row_sweep           128  128   64   0  8  3
    half       64  90  row_sweep_explicit  128  128   64   0  8  2
    half       64  90  row_sweep_pz        128   64   64   0  8  3
    half       64  90  sums                128   64   64   0  8  3
    half       64  90  gradient            128   64   64   0  8  3
    half       64  80  row_sweep           128   64   64   0  8  3
    half       64  80  sigmoid_columns     128  128   64   0  8  3
    half       64  80  sums                128   64   64   0  8  3
    half       64  80  gradient            128   32   64   0  8  3
    half      128  90  row_sweep           128   64  128   0  8  3
    half      128  90  sums                128   64  128   0  8  3
    half      128  90  gradient            128   64  128   0  8  3
    half      128  80  row_sweep           128   64  128   0  8  3
    half      128  80  row_sweep_pz        128   32  128   0  8  3
    half      128  80  sums                128   64  128   0  8  3
    half      128  80  gradient            128   32  128   0  8  3
    half      256  90  row_sweep           128   64  256   0  8  2
    half      256  90  row_sweep_explicit  128   32  256   0  8  2
    half      256  90  row_sweep_pz        128   32  256   0  8  3
    half      256  90  column_sweep         32  128  256   0  8  3
    half      256  90  sums                 64   64  256   0  8  2
    half      256  90  gradient            128   32  256   0  8  1
    half      256  80  row_sweep            64   64  256   0  8  2
    half      256  80  sums                 64   64  256   0  8  2
    half      256  80  gradient             64   64  256   0  8  2
    half      512  90  row_sweep            64   64  512   0  8  2  1  1
    half      512  90  sigmoid_rows         64   64  256  64  8  3
    half      512  90  sigmoid_columns      64   64  256  64  8  3
    half      inf  90  row_sweep            64   64  256  64  8  3
    half      512  80  row_sweep            32   32  512   0  8  2
    half      512  80  column_sweep         32   32  512   0  8  3
    half      512  80  sigmoid_columns      32   32  512   0  4  2
    half      inf  80  row_sweep            64   32  256  64  8  3
    bf16x3    128  90  row_sweep           128   64  128   0  8  2
    bf16x3    inf  90  row_sweep           128   64  128  64  8  2
    tf32       64  90  row_sweep           128   64   64   0  8  2
    tf32       64  90  row_sweep_explicit   64   32   64   0  4  2
    tf32       64  90  row_sweep_pz         64   32   64   0  4  2
    tf32       64  90  sigmoid_columns      32   64   64   0  4  2
    tf32       64  80  row_sweep           128   64   64   0  8  2
    tf32       64  80  row_sweep_explicit   64   32   64   0  4  2
    tf32       64  80  row_sweep_pz         64   32   64   0  4  2
    tf32       64  80  column_sweep         32  128   64   0  8  2
    tf32       64  80  sigmoid_columns      32   64   64   0  4  2
    tf32      128  90  row_sweep           128   64  128   0  8  2
    tf32      128  90  row_sweep_explicit   64   64  128   0  8  2
    tf32      128  90  row_sweep_pz         64   64  128   0  8  2
    tf32      128  90  sigmoid_rows         64   32  128   0  4  2
    tf32      128  80  row_sweep            64   64  128   0  8  2
    tf32      128  80  sigmoid_rows         64   32  128   0  4  2
    tf32      inf  80  row_sweep            64   64  128  32  8  3
    ieee       32  80  row_sweep            64   32   32  16  4  2
    ieee       32  80  column_sweep         32   64   32  16  4  3
    ieee       32  80  sigmoid_rows         32   32   32  16  4  2
    ieee       32  80  sigmoid_columns      32   32   32  16  4  2
    ieee       64  80  row_sweep            64   32   64  16  8  2
    ieee       64  80  row_sweep_explicit   32   32   64  16  4  2
    ieee       64  80  row_sweep_pz         32   32   64  16  4  2
    ieee      inf  90  row_sweep            64   16  128  16  8  2
    ieee      inf  90  row_sweep_explicit   32   32   64  16  4  2
    ieee      inf  90  row_sweep_pz         32   32   64  16  4  2
    ieee      inf  90  column_sweep         16   32  128  16  4  2
    ieee      inf  90  sigmoid_columns      32   64   64  16  8  2
    ieee      inf  80  row_sweep            64   16  128  16  8  2
    ieee      inf  80  row_sweep_explicit   32   32   64  16  4  2
    ieee      inf  80  row_sweep_pz         32   32   64  16  4  2
    ieee      inf  80  column_sweep         32   64   64  16  8  2
    float64    16  80  row_sweep            64   32   16  16  4  2
    float64    16  80  sigmoid_rows         32   32   16  16  4  2
    float64    32  80  row_sweep            32   32   32  16  4  2
    float64    32  80  column_sweep         32   32   32  16  4  1
    float64    32  80  sigmoid_columns      32   32   32  16  4  2
    float64   inf  80  row_sweep            32   32   32  16  4  2
""")

GLUON_SWEEPS = (Config(128, 128, 64, 0, 8, 4), Config(128, 128, 128, 0, 8, 4))  # warps: those that consume
SWEEPS_VARIABLE = "ADAFTR_FAST_INFONCE_SWEEPS"
SWEEPS = ("triton", "gluon")  # its values; the first is the default


def cdiv(x: int, y: int) -> int:
    """Returns x / y rounded up; triton.cdiv takes microseconds on the host."""
    return -(-x // y)


def product_kind(dtype: torch.dtype, ieee: bool = False) -> str:
    """How products of ``dtype`` are formed: half, bf16x3, tf32, ieee or float64.

    bf16x3 takes each float32 as the sum of two bfloat16 numbers, and a product as high high + high low + low high.
    ``torch.set_float32_matmul_precision`` asks for it by "high", which sets CUDA and mkldnn to tf32 alike; "medium" and
    CUDA's own settings ask for TF32, as does "high" where ``torch.backends.fp32_precision`` is "tf32", which looks the
    same. launch.py takes TF32 instead where bf16x3 has no blocks. ``ieee`` overrules all settings.
    """
    if dtype == torch.float64:
        return "float64"
    if dtype == torch.float32:
        # What set_float32_matmul_precision, allow_tf32 or this setting chose last, else torch.backends.fp32_precision.
        if ieee or torch.backends.cuda.matmul.fp32_precision != "tf32":
            return "ieee"
        is_high = torch.backends.mkldnn.matmul.fp32_precision == "tf32" != torch.backends.fp32_precision
        return "bf16x3" if is_high else "tf32"
    return "half"


BLOCKS_VARIABLE = "ADAFTR_FAST_INFONCE_BLOCKS"
# Blocks of the training sweeps of half types, by the name that chooses them, to compare with the table's on a card.
#
# "narrow" has two or three programs on a multiprocessor, one of which computes exponentials while another multiplies.
# Each streams the whole other side, so twice as much is read from L2. Three need at most 168 registers a thread. With
# those, at 128 on sm_90 64 x 64 spills 88 to 112 bytes under 3.9 and a column sweep of 32 x 64 spills 40; on sm_80 a
# row sweep of 64 x 64 spills 104 and one of 64 x 32 spills 16. Blocks of 128 x 128 take fewer instructions for an
# element, but exponentials bound them as they bound the table's, so the model says that they are not faster.
ALTERNATIVES = _tilings("""
    name    width  sm  sweep           M    N    D  K  warps  stages  programs
    narrow     64  90  row_sweep      64   64   64  0  4  3  3
    narrow    128  90  row_sweep      64   64  128  0  4  3  2
    narrow     64  80  row_sweep      64   32   64  0  4  3  3
    narrow     64  80  column_sweep   64   64   64  0  4  2  3
""")
BLOCKS = ("narrow",)


def chosen_blocks() -> str:
    """Returns the value of ADAFTR_FAST_INFONCE_BLOCKS."""
    return os.environ.get(BLOCKS_VARIABLE, "")


@lru_cache
def choose_tiling(kind: str, width: int, capability: int, blocks: str = "") -> Tiling:
    """Returns the table's row for a width that is a multiple of 16, with blocks no wider than needed.

    ``blocks`` selects others, if not empty: "narrow" (ALTERNATIVES).
    """
    if blocks and blocks not in BLOCKS:
        raise ValueError(f"kernels.infonce: {BLOCKS_VARIABLE} must be one of {BLOCKS}, got {blocks!r}")
    for tiling in TILINGS:
        admits = tiling.kind == kind and width <= tiling.max_width and capability >= tiling.min_capability
        if admits and not (capability >= 100 and tiling.row_sweep.five_products):
            break
    else:
        raise ValueError(f"kernels.infonce: the GPU must be of compute capability 8.0 or later, got {capability / 10}")
    for each in ALTERNATIVES if kind == "half" else ():
        if (each.kind, each.min_capability) == (blocks, tiling.min_capability) and width <= each.max_width:
            tiling = tiling._replace(row_sweep=each.row_sweep, column_sweep=each.column_sweep)
            break
    return Tiling(*tiling[:3], *(config and fit(config, width) for config in tiling[3:]))


def choose_gluon(dtype: torch.dtype, width: int, capability: int) -> Config | None:
    """Returns the config of both sweeps in Gluon, or None where those in Triton serve, as they do by default.

    Raises:
        ValueError: ADAFTR_FAST_INFONCE_SWEEPS is neither "triton" nor "gluon".
    """
    chosen = os.environ.get(SWEEPS_VARIABLE) or SWEEPS[0]
    if chosen not in SWEEPS:
        raise ValueError(f"kernels.infonce: {SWEEPS_VARIABLE} must be one of {SWEEPS}, got {chosen!r}")
    if chosen == "triton" or INTERPRETED or capability != 90 or product_kind(dtype) != "half":
        return None
    return next((c for c in GLUON_SWEEPS if c.block_d // 2 < width <= c.block_d), None)


def fit(config: Config, width: int) -> Config:
    """Returns a config with blocks no wider than needed."""
    widest = triton.next_power_of_2(width)
    return config._replace(block_d=min(config.block_d, widest), block_k=min(config.block_k, widest))


@lru_cache
def choose_splits(programs: int, blocks: int, processors: int) -> int:
    """Returns into how many splits to divide the streamed ``blocks`` so that ``programs`` fill the GPU in whole waves.

    A split costs its blocks plus about two for its start and end. The limit of four waves bounds the partial results.
    """
    most = max(1, min(blocks, 4 * processors // programs))
    return min(range(1, most + 1), key=lambda s: -(-programs * s // processors) * (-(-blocks // s) + 2))


@dataclass(frozen=True, eq=False)  # compared and hashed as objects at each launch, which takes no time
class Meta:
    """The sizes and types that a kernel is compiled for; the package's docstring describes them."""

    BLOCK_M: tl.constexpr
    BLOCK_N: tl.constexpr
    BLOCK_D: tl.constexpr
    BLOCK_K: tl.constexpr
    D: tl.constexpr
    D_PADDED: tl.constexpr
    MAX_OFFSET: tl.constexpr
    OPERAND_DTYPE: tl.constexpr
    ACC_DTYPE: tl.constexpr
    INPUT_PRECISION: tl.constexpr


@cache  # one object for each program, whatever the numbers of rows
def meta_of(dtype: torch.dtype, kind: str, d: int, width: int, config: Config) -> Meta:
    """Returns what all sweeps take, from their config and type."""
    # The interpreter multiplies bfloat16 as if the bits were integers, so there products take float32 operands.
    operand = torch.bfloat16 if kind == "bf16x3" else dtype
    operand = torch.float32 if INTERPRETED and operand == torch.bfloat16 else operand
    acc_dtype = tl.float64 if kind == "float64" else tl.float32
    precision = kind if kind in ("tf32", "bf16x3") else "ieee"
    values = *config[:4], d, width, max_offset(dtype), TYPES[operand], acc_dtype, precision
    return Meta(*values) if INTERPRETED else Meta(*map(tl.constexpr, values))


def max_offset(dtype: torch.dtype) -> int:
    """Returns MAX_OFFSET: 14 keeps small probabilities normal in float16, whose range is 2^-14 to 2^16."""
    return 14 if dtype == torch.float16 else 0


def has_fixed_max(dtype: torch.dtype, config: Config, need_sum_pz: bool) -> bool:
    """Whether a row sweep without masks has a loop whose maximum stays (row_sweep.py), which needs float32's range.

    With sum_pz in bfloat16 up to 128 only, because it spills in others under Triton 3.9. With five products it has
    none: without acc there is nothing to rescale.
    """
    if config.five_products:
        return False
    if need_sum_pz and (dtype != torch.bfloat16 or config.block_d > 128):
        return False
    return config.block_k == 0 and dtype in (torch.bfloat16, torch.float32)


def folds_scale(dtype: torch.dtype, config: Config) -> bool:
    """Whether a column sweep without masks has a loop with row weights in the exponent (column_sweep.py).

    Not beyond 128, where it spills under Triton 3.6.
    """
    return has_fixed_max(dtype, config, need_sum_pz=False) and config.block_d <= 128
