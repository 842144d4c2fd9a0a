"""How a call of adaptive InfoNCE is launched. Its shapes, types and options decide, so equal calls share one plan."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from adaftr_fast.kernels.infonce.config import TYPES, cdiv, choose_tiling, folds_scale, has_fixed_max, max_offset
from adaftr_fast.kernels.infonce.operands import Grid, launch_options

COMBINE_BLOCK_M = 16  # rows a program of the combine kernel: O(d) work each, so small blocks spread over the GPU
COMBINE_BLOCK_D = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 128, torch.float64: 64}  # larger ones spill

# Whose column sweep joins its splits in a small call: others spill in large blocks, or in the combine kernel (float64).
JOINING = ("ieee",)


class Products(NamedTuple):
    """The operands, without their values, and the GPU that multiplies them."""

    kind: str  # see config.py
    dtype: torch.dtype
    acc_dtype: torch.dtype
    rows: int  # B
    columns: int  # N
    d: int
    width: int  # D_PADDED
    capability: int
    processors: int


class Given(NamedTuple):
    """Which optional inputs there are."""

    positive: bool
    group: bool
    ignore_above: bool
    margin: bool
    weight: bool

    @property
    def masks(self) -> bool:
        """Whether anything but the diagonal decides on a row's positive and negatives."""
        return self.positive or self.group or self.ignore_above


class Needs(NamedTuple):
    """Which outputs are needed."""

    d_anchors: bool
    d_candidates: bool
    d_tau: bool
    stats: bool

    @property
    def sum_pz(self) -> bool:
        return self.stats or (self.d_tau and not self.d_anchors)


class Launch(NamedTuple):
    """A kernel's grid, and its arguments by keyword."""

    grid: Grid
    options: dict[str, Any]


class Plan(NamedTuple):
    """The launches of a call."""

    rows: Launch
    anchors: Launch | None  # None: the row sweep accumulates for d_anchors, if it is needed
    bounded: Launch | None  # of bounded_sweep.py, whose kernels then take the place of those of the two above
    combine: Launch
    columns: Launch
    arrivals: int  # counters of the column sweep's splits, which it joins itself; 0: it has one, or leaves them

    @property
    def need_sum_pz(self) -> bool:
        return self.rows.options["NEED_SUM_PZ"]

    @property
    def bounds_logits(self) -> bool:
        """Whether a sweep reads the largest norm of a candidate."""
        return self.rows.options["FIXED_MAX"] or self.bounded is not None

    @property
    def reduces(self) -> bool:
        """Whether the column sweep reduces what combine leaves for each block of rows."""
        return self.columns.options["REDUCES"]


@lru_cache(maxsize=4096)
def make_plan(products: Products, given: Given, needs: Needs, is_small: bool, few: int, blocks: str) -> Plan:
    """Returns the plan of a call, small or not, whose column sweep streams up to ``few`` blocks of rows unsplit.

    ``blocks``: the value of ADAFTR_FAST_INFONCE_BLOCKS, see ``choose_tiling``.
    """
    kind, dtype, acc_dtype, B, N, d, width, capability, processors = products
    tiling = choose_tiling(kind, width, capability, blocks)
    masks = {"HAS_POSITIVE": given.positive, "HAS_GROUP": given.group, "IGNORES": given.ignore_above}
    need_sum_pz, offset = needs.sum_pz, {"MAX_OFFSET": max_offset(dtype)}
    of_operands = kind, dtype, width, (B, N)

    config = tiling.row_sweep_pz if need_sum_pz else tiling.row_sweep_explicit if given.masks else tiling.row_sweep
    grid, options = launch_options(config, *of_operands, False, needs.d_anchors, 0, processors)
    anchors = Launch(grid, options | masks) if config.five_products and needs.d_anchors else None
    # The largest norm takes two launches, which cost a small call more than a known maximum saves.
    bounds = not (is_small or given.masks)
    fixed_max = bounds and has_fixed_max(dtype, config, need_sum_pz)
    bounded = None
    if bounds and anchors is not None and not need_sum_pz:
        bounded, anchors = Launch(grid, options | offset | {"HAS_MARGIN": given.margin}), Launch(grid, options)
    own = {
        "FIXED_MAX": fixed_max,
        "NEED_D_ANCHORS": needs.d_anchors and not config.five_products,
        "NEED_SUM_PZ": need_sum_pz,
    }
    rows = Launch(grid, options | masks | offset | own | {"HAS_MARGIN": given.margin})

    own = {"HAS_POSITIVE": given.positive, "HAS_MARGIN": given.margin, "HAS_WEIGHT": given.weight}
    own |= {f"NEED_{name.upper()}": needed for name, needed in needs._asdict().items()}
    own |= {"BLOCK_M": COMBINE_BLOCK_M, "BLOCK_D": min(COMBINE_BLOCK_D[dtype], triton.next_power_of_2(width))}
    own |= {"D": d, "D_PADDED": width, "ACC_DTYPE": TYPES[acc_dtype]}

    config = tiling.column_sweep
    grid, options = launch_options(config, *of_operands, True, True, few, processors)
    joins = kind in JOINING and is_small and needs.d_candidates and grid[1] > 1
    reduces = is_small and not config.five_products  # with masks it spills there
    combine = Launch((cdiv(B, COMBINE_BLOCK_M), 1, 1), own | {"JOINS": joins})  # it sets the counters of arrivals to 0
    own = {"FOLDED": not given.masks and folds_scale(dtype, config), "D": d, "REDUCES": reduces}
    own |= {"JOINS": joins, "BRANCHES": config.five_products}
    columns = Launch(grid, options | masks | offset | own)
    return Plan(rows, anchors, bounded, combine, columns, grid[0] * grid[2] if joins else 0)
