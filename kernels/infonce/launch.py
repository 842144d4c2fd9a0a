"""The host side of the losses: prepares inputs and launches kernels, here those of adaptive InfoNCE.

The package's docstring gives the overview and defines shapes and names. The callers, in ``adaftr_fast.ops.infonce``,
have checked shapes and types, and there are a row and a candidate at least. All types share the kernels: float64
accumulates in float64, the others in float32. float32 products are IEEE by default, and with ``ieee`` always.
``torch.set_float32_matmul_precision`` "high" chooses three bfloat16 products of operands split in two (16 bits) on
sm_90, and TF32 (11 bits) elsewhere; "medium" chooses TF32. The softmax and its sums stay float32. bfloat16 and float16
round the softmax to the input type for the second product.

Kernels take their arguments by name. What they share is in one dict of arguments, of which each takes what it declares.
The kernels read operands as rows of a multiple of 16 elements from 16-byte boundaries, because anything else turns
asynchronous 16-byte copies into 2-byte loads. Other operands are copied, which takes O(B d) and O(N d).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import triton
from adaftr_fast.kernels.infonce.column_sweep import infonce_column_sweep_kernel
from adaftr_fast.kernels.infonce.combine import infonce_combine_kernel
from adaftr_fast.kernels.infonce.config import (
    INTERPRETED,
    TYPES,
    Config,
    cdiv,
    choose_gluon,
    choose_splits,
    choose_tiling,
    chosen_blocks,
    folds_scale,
    has_fixed_max,
    max_offset,
    meta_of,
    product_kind,
)
from adaftr_fast.kernels.infonce.row_sweep import infonce_row_sweep_kernel
from adaftr_fast.kernels.infonce.tiles import IGNORE
from adaftr_fast.kernels.infonce.wide.anchor_sweep import infonce_anchor_sweep_kernel
from adaftr_fast.kernels.infonce.wide.bounded_sweep import (
    infonce_bounded_sweep_kernel,
    infonce_unbounded_anchor_sweep_kernel,
    infonce_unbounded_row_sweep_kernel,
)
from torch import Tensor

WIDTH_MULTIPLE = 16  # elements: the least depth of a half-precision product, and Triton's hint for vector loads
ASSUMED_CAPABILITY = 80
ASSUMED_PROCESSORS = 2  # under the interpreter: small test sizes then meet both one and several splits
SMALL_PART = 2**17  # similarities for each multiprocessor, up to which a call is small: 16 tiles of 128 x 64
FEW_BLOCKS = 16  # that a column sweep streams unsplit: to join splits takes time too, in most types a launch
COMBINE_BLOCK_M = 16  # rows a program of the combine kernel: O(d) work each, so small blocks spread over the GPU
COMBINE_BLOCK_D = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 128, torch.float64: 64}  # larger ones spill
# Whose column sweep joins its splits in a small call: others spill in large blocks, or in the combine kernel (float64).
JOINING = ("ieee",)


class Launch:
    """A kernel, its grid, and what it is compiled for.

    The compile-time arguments and the types of the others decide on the machine code, because all pointers are
    multiples of 16 bytes, and all strides of 16 elements (``prepare_operands``, ``vector``). So a launch keeps what
    Triton compiled at its first run. Triton's own search for it takes 20 microseconds. Kernels declare what
    ``options`` holds behind their other arguments.

    Args:
        kernel: the kernel.
        grid: its grid.
        options: compile-time arguments by name, not all of which the kernel takes.
        warps: num_warps and num_stages, unless they are Triton's defaults.
    """

    def __init__(self, kernel, grid: tuple[int, int, int], options: dict[str, Any], **warps: int) -> None:
        self.kernel = kernel
        self.grid = grid
        self.options = options
        self.warps = warps
        self.compiled: Callable[..., None] | None = None  # launches what Triton compiled
        self._take = itemgetter(*(name for name in kernel.arg_names if name not in options))
        self._constants = [options[name] for name in kernel.arg_names if name in options]

    def run(self, arguments: dict[str, Any]) -> None:
        """Launches the kernel with what it declares of the arguments and options."""
        values = *self._take(arguments), *self._constants
        if self.compiled is not None:
            self.compiled(*values)
            return
        compiled = self.kernel[self.grid](*values, **self.warps)
        if compiled is not None:  # as under the interpreter
            self.compiled = compiled[self.grid]


class Products(NamedTuple):
    """The operands without their values, and the GPU that multiplies them."""

    kind: str  # see config.py
    dtype: torch.dtype
    acc_dtype: torch.dtype
    rows: int  # B
    columns: int  # N
    d: int
    width: int  # D_PADDED
    device: int  # its index
    capability: int  # 10 * major + minor
    processors: int

    def grid(
        self, config: Config, divide_width: bool, owns_columns: bool = False, few: int = 0
    ) -> tuple[int, int, int]:
        """Returns the grid of a sweep: (owned blocks, splits of the streamed side, slices of the width).

        Up to ``few`` streamed blocks are not split.
        """
        owned, streamed = cdiv(self.rows, config.block_m), cdiv(self.columns, config.block_n)
        if owns_columns:
            owned, streamed = streamed, owned
        slices = cdiv(self.width, config.block_d) if divide_width else 1
        splits = 1
        if streamed > few:
            splits = choose_splits(owned * slices, streamed, self.processors * config.programs)
        return owned, splits, slices

    def launch(self, kernel, config: Config, grid: tuple[int, int, int], options: dict[str, Any]) -> Launch:
        """Returns a launch with the blocks, warps and stages of a config."""
        meta = meta_of(self.dtype, self.kind, self.d, self.width, config)
        options = options | {"META": meta}
        return Launch(kernel, grid, options, num_warps=config.num_warps, num_stages=config.num_stages)


class Operands(NamedTuple):
    """The operands as the kernels take them."""

    anchors: Tensor  # [B, D_PADDED]
    candidates: Tensor  # [N, D_PADDED]
    swept: tuple[Tensor, Tensor]  # what the sweeps read: anchors and candidates, or their terms [rows, 2 D_PADDED]
    products: Products
    empty: Callable[..., Tensor]  # makes a tensor of the accumulation type, unless it is given another

    def arguments(self, swept: bool = True) -> dict[str, Any]:
        """Returns the arguments that name the operands, or their terms."""
        a, b = self.swept if swept else (self.anchors, self.candidates)
        return {
            "anchors_ptr": a,
            "candidates_ptr": b,
            "anchors_stride": a.stride(0),
            "candidates_stride": b.stride(0),
            "B": self.products.rows,
            "N": self.products.columns,
        }

    def sides(self, owned: int, **pairs: Sequence[Tensor | None]) -> dict[str, Any]:
        """Returns the arguments of a sweep past the owned side x, 0 for rows, of the other side, y.

        ``pairs`` are of rows and columns: ``group`` is x_group_ptr and y_group_ptr.
        """
        both = self.anchors, self.candidates
        x, y = both[owned], both[1 - owned]
        arguments = {"x_ptr": x, "y_ptr": y, "x_stride": x.stride(0), "y_stride": y.stride(0)}
        for name, pair in pairs.items():
            arguments |= {f"x_{name}_ptr": pair[owned], f"y_{name}_ptr": pair[1 - owned]}
        return arguments


def on_gpu(anchors: Tensor) -> AbstractContextManager:
    """Returns a context on the tensor's GPU; raises ValueError unless it is on one or kernels are interpreted."""
    if anchors.is_cuda:
        return torch.cuda.device(anchors.get_device())
    if not INTERPRETED:
        raise ValueError(f"kernels.infonce: anchors must be on CUDA without TRITON_INTERPRET=1, got {anchors.device}")
    return nullcontext()


def prepare_operands(
    anchors: Tensor,
    candidates: Tensor,
    like: Tensor,
    ignored: Tensor | None = None,
    splits: bool = False,
    ieee: bool = False,
) -> Operands:
    """Aligns the operands, zeroes the anchors of ``ignored`` rows [B], and looks up the GPU.

    ``like``: any tensor of the accumulation type, since to make others like it takes less time than to name the type.
    ``splits``: the sweeps have bf16x3 on sm_90; otherwise TF32 takes its place. ``ieee``: see ``product_kind``.
    """
    device = anchors.get_device()
    capability, processors = _gpu(device) if anchors.is_cuda else (ASSUMED_CAPABILITY, ASSUMED_PROCESSORS)
    a, b = _align(anchors, ignored), _align(candidates)
    kind = product_kind(anchors.dtype, ieee)
    if kind == "bf16x3" and not (splits and 90 <= capability < 100):
        kind = "tf32"
    swept = (_split(a), _split(b)) if kind == "bf16x3" else (a, b)
    sizes = a.shape[0], b.shape[0], anchors.shape[1], a.shape[1]  # len() takes four times as long
    products = Products(kind, anchors.dtype, like.dtype, *sizes, device, capability, processors)
    return Operands(a, b, swept, products, like.new_empty)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@lru_cache
def _gpu(index: int) -> tuple[int, int]:
    """Returns a GPU's compute capability, times 10, and its number of multiprocessors."""
    properties = torch.cuda.get_device_properties(index)
    capability = properties.major * 10 + properties.minor
    if capability >= 120:  # has the matrix instructions and the shared memory of sm_89, not those of sm_90
        capability = 89
    return capability, properties.multi_processor_count


def _split(h: Tensor) -> Tensor:
    """Returns the two bfloat16 terms of ``h`` [rows, D_PADDED], whose sum has 16 of its bits, side by side."""
    width = h.shape[1]
    terms = h.new_empty(h.shape[0], 2 * width, dtype=torch.bfloat16)
    terms[:, :width] = h
    torch.sub(h, terms[:, :width], out=terms[:, width:])
    return terms


def _align(h: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Returns ``h`` [rows, D_PADDED] in rows from 16-byte boundaries, ignored rows zeroed; a copy where needed."""
    width = h.shape[1]
    step, unit = h.stride()
    aligned = unit == 1 and step % WIDTH_MULTIPLE == 0 and step < 2**31 and h.data_ptr() % 16 == 0
    if aligned and ignored is None and width % WIDTH_MULTIPLE == 0:
        return h
    out = h.new_zeros(h.shape[0], cdiv(width, WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
    out[:, :width] = h if ignored is None else h.masked_fill(ignored[:, None], 0)
    return out


def aligned(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns ``x`` [n] from a 16-byte boundary; a copy where needed."""
    if x.dtype != dtype:  # to() takes a microsecond to find that
        x = x.to(dtype)
    return x if x.data_ptr() % 16 == 0 else x.clone()


def vector(x: Tensor | None, dtype: torch.dtype = torch.int64) -> Tensor | None:
    """Returns ``x`` [n] contiguous, as ``aligned`` does."""
    return None if x is None else aligned(x.contiguous(), dtype)


def join(splits: Tensor) -> Tensor:
    """Returns the sum of the splits, in order."""
    return splits.select(0, 0) if splits.shape[0] == 1 else splits.sum(0)


def new_outputs(
    operands: Operands, need_d_anchors: bool, need_d_candidates: bool, need_d_tau: bool, need_stats: bool
) -> dict[str, Tensor]:
    """Returns uninitialized outputs of an op but its loss, in order, by the names that kernels have for them.

    They are of the accumulation type, and empty where not needed. A row's loss is ``loss_ptr``.
    """
    B, N, d = operands.products[3:6]
    empty = operands.empty
    return {
        "loss_ptr": empty(B),
        "lse_ptr": empty(B),
        "positive_logit_ptr": empty(B),
        "top1_ptr": empty(B if need_stats else 0, dtype=torch.bool),
        "entropy_ptr": empty(B if need_stats else 0),
        "d_anchors_ptr": empty(B, d) if need_d_anchors else empty(0),
        "d_candidates_ptr": empty(N, d) if need_d_candidates else empty(0),
        "d_tau_ptr": empty(B if need_d_tau else 0),
    }


class Flags(NamedTuple):
    """Which optional inputs there are, and which outputs are needed, by the names that kernels have for it."""

    HAS_POSITIVE: bool
    HAS_GROUP: bool
    IGNORES: bool
    HAS_MARGIN: bool
    HAS_WEIGHT: bool
    NEED_D_ANCHORS: bool
    NEED_D_CANDIDATES: bool
    NEED_D_TAU: bool
    NEED_STATS: bool
    scale_stride: int

    @property
    def masks(self) -> bool:
        """Whether anything but the diagonal decides on a row's positive and negatives."""
        return self.HAS_POSITIVE or self.HAS_GROUP or self.IGNORES


class Plan(NamedTuple):
    """The launches of a call. Its shapes, types and options decide, so equal calls share one plan."""

    rows: list[Launch]  # the row sweep, then the anchor sweep if it is apart; or those of bounded_sweep.py
    needs_norm: bool  # whether they read the largest norm of a candidate
    combine: Launch
    columns: Launch
    arrivals: int  # counters of the column sweep's splits, which it joins itself; 0: it has one, or leaves them


@lru_cache(maxsize=4096)
def make_plan(products: Products, flags: Flags, is_small: bool, few: int, blocks: str) -> Plan:
    """Returns the plan of a call, small or not, whose column sweep streams up to ``few`` blocks of rows unsplit.

    ``blocks``: the value of ADAFTR_FAST_INFONCE_BLOCKS, see ``choose_tiling``.
    """
    tiling = choose_tiling(products.kind, products.width, products.capability, blocks)
    need_sum_pz = flags.NEED_STATS or (flags.NEED_D_TAU and not flags.NEED_D_ANCHORS)
    config = tiling.row_sweep_explicit if flags.masks else tiling.row_sweep
    if need_sum_pz:
        config = tiling.row_sweep_pz
    # The largest norm takes two launches, which cost a small call more than a known maximum saves.
    bounds = not (is_small or flags.masks)
    fixed_max = bounds and has_fixed_max(products.dtype, config, need_sum_pz)
    apart = config.five_products and flags.NEED_D_ANCHORS
    bounded = apart and bounds and not need_sum_pz
    kernels = [infonce_row_sweep_kernel]
    if bounded:  # the blocks of rows whose logits are bounded, and then the others
        kernels = [
            infonce_bounded_sweep_kernel,
            infonce_unbounded_row_sweep_kernel,
            infonce_unbounded_anchor_sweep_kernel,
        ]
    elif apart:
        kernels.append(infonce_anchor_sweep_kernel)
    options = flags._asdict()
    own = {"FIXED_MAX": fixed_max, "NEED_D_ANCHORS": flags.NEED_D_ANCHORS and not apart, "NEED_SUM_PZ": need_sum_pz}
    grid = products.grid(config, divide_width=flags.NEED_D_ANCHORS)
    rows = [products.launch(each, config, grid, options | own) for each in kernels]

    config = tiling.column_sweep
    grid = products.grid(config, divide_width=True, owns_columns=True, few=few)
    joins = products.kind in JOINING and is_small and flags.NEED_D_CANDIDATES and grid[1] > 1
    options |= {
        "FOLDED": not flags.masks and folds_scale(products.dtype, config),
        "REDUCES": is_small and not config.five_products,  # with masks it spills there
        "BRANCHES": config.five_products,
        "JOINS": joins,
    }
    columns = products.launch(infonce_column_sweep_kernel, config, grid, options)
    arrivals = grid[0] * grid[2] if joins else 0

    block_d = min(COMBINE_BLOCK_D[products.dtype], triton.next_power_of_2(products.width))
    options |= {"BLOCK_M": COMBINE_BLOCK_M, "BLOCK_D": block_d, "ACC_DTYPE": TYPES[products.acc_dtype]}
    options |= {"D": products.d, "D_PADDED": products.width}
    combine = Launch(infonce_combine_kernel, (cdiv(products.rows, COMBINE_BLOCK_M), 1, 1), options)
    return Plan(rows, fixed_max or bounded, combine, columns, arrivals)


def infonce(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [N, d]
    tau: Tensor,  # [B]
    positive: Tensor | None,  # [B] int64, default arange(B); -100 ignores the row
    row_group: Tensor | None,  # [B] int64
    column_group: Tensor | None,  # [N] int64
    scale: Tensor,  # [B]
    need_d_anchors: bool,
    need_d_candidates: bool,
    need_d_tau: bool,
    need_stats: bool,
    ignore_above: float | None = None,
    margin: float = 0.0,
    positive_weight: Tensor | None = None,  # [B], default 1: of the positive in the target of the gradients
    *,
    ieee: bool = False,
) -> tuple[Tensor, ...]:
    """Computes the outputs of ``torch.ops.adaftr_fast.infonce``, on CUDA or under TRITON_INTERPRET=1.

    Rows whose tau is not positive and finite, or whose positive is out of range, yield NaN, and d_candidates with them,
    because nothing is read back to check. Ignored rows yield zeros, whatever they hold.

    Raises:
        ValueError: the tensors are not on CUDA and kernels are not interpreted, or the GPU is older than compute
            capability 8.0.
    """
    with on_gpu(anchors):
        ignored = None if positive is None else positive == IGNORE.value
        tau = vector(tau, accumulation_dtype(anchors.dtype))
        operands = prepare_operands(anchors, candidates, tau, ignored, splits=True, ieee=ieee)
        products = operands.products
        # The column sweep makes d_candidates.
        outputs = new_outputs(operands, need_d_anchors, False, need_d_tau, need_stats)
        scale = aligned(scale, products.acc_dtype)
        flags = Flags(
            positive is not None,
            row_group is not None,
            ignore_above is not None,
            bool(margin),
            positive_weight is not None,
            need_d_anchors,
            need_d_candidates,
            need_d_tau,
            need_stats,
            scale.stride(0),
        )
        is_small = SMALL_PART * products.processors >= products.rows * products.columns
        plan = make_plan(products, flags, is_small, FEW_BLOCKS, chosen_blocks())
        arguments = {
            **operands.arguments(),
            **outputs,
            "tau_ptr": tau,
            "positive_ptr": vector(positive),
            "row_group_ptr": vector(row_group),
            "column_group_ptr": vector(column_group),
            "scale_ptr": scale,
            # 0-dim; Triton's floats are not always of the accumulation type
            "ignore_above_ptr": None if ignore_above is None else tau.new_full((), ignore_above),
            "margin_ptr": tau.new_full((), margin) if margin else None,
            "positive_weight_ptr": vector(positive_weight, products.acc_dtype),
        }
        gluon = _gluon_config(operands, flags)
        _sweep_rows(operands, plan, gluon, arguments)
        _combine(operands, plan, arguments)
        if not need_d_candidates:
            return arguments["block_terms_ptr"][2].sum(), *outputs.values()
        del arguments["acc_ptr"], arguments["partials_ptr"]  # frees memory for those of the column sweep
        loss, outputs["d_candidates_ptr"] = _sweep_columns(operands, plan, gluon, arguments)
        return loss, *outputs.values()


def _gluon_config(operands: Operands, flags: Flags) -> Config | None:
    """Returns the config of the sweeps in Gluon; None where they are not chosen or do not serve."""
    products = operands.products
    config = choose_gluon(products.dtype, products.width, products.capability)
    if config is None or flags.masks:
        return None
    # TMA steps from row to row: rows of an expanded tensor lie at one address.
    expanded = min(operands.anchors.stride(0), operands.candidates.stride(0)) < products.width
    return None if expanded else config


def _sweep_rows(operands: Operands, plan: Plan, gluon: Config | None, arguments: dict[str, Any]) -> None:
    """Adds positive_score [B], partials [S, 4, B] and acc [S, B, D_PADDED], empty unless needed, to the arguments."""
    products, empty = operands.products, operands.empty
    row_blocks, splits, _ = plan.rows[0].grid
    need_acc = plan.columns.options["NEED_D_ANCHORS"]
    if gluon is not None and arguments["margin_ptr"] is None and not plan.rows[0].options["NEED_SUM_PZ"]:
        from adaftr_fast.kernels.infonce.gluon_row import gluon_row_sweep  # imports Gluon, which Triton may lack

        found = gluon_row_sweep(operands, gluon, arguments["tau_ptr"], need_acc)
        arguments |= zip(("positive_score_ptr", "partials_ptr", "acc_ptr"), found)
        return
    arguments |= {
        "positive_score_ptr": empty(products.rows),
        "partials_ptr": empty(splits, 4, products.rows),
        "acc_ptr": empty(splits, products.rows, products.width) if need_acc else empty(0),
        "max_norm_ptr": None,
        "swept_ptr": empty(row_blocks, dtype=torch.int32) if len(plan.rows) > 1 else None,
    }
    if plan.needs_norm:
        norms = torch.linalg.vector_norm(operands.candidates, dim=1, dtype=products.acc_dtype)
        arguments["max_norm_ptr"] = norms.amax()
    for launch in plan.rows:
        launch.run(arguments)


def _combine(operands: Operands, plan: Plan, arguments: dict[str, Any]) -> None:
    """Combines the splits of the rows; adds row_terms, block_terms and arrivals, for the column sweep."""
    options = plan.combine.options
    size = (6 if options["IGNORES"] else 5, operands.products.rows) if options["NEED_D_CANDIDATES"] else 0
    row_terms = operands.empty(size)
    arguments |= {
        "row_terms_ptr": row_terms,
        "block_terms_ptr": operands.empty(3, plan.combine.grid[0]),
        "arrivals_ptr": operands.empty(plan.arrivals, dtype=torch.int32) if plan.arrivals else None,
        "num_splits": arguments["partials_ptr"].shape[0],
        "num_arrivals": plan.arrivals,
    }
    split = operands.swept[0] is not operands.anchors
    plan.combine.run(arguments | operands.arguments(swept=False) if split else arguments)
    if options["NEED_D_CANDIDATES"] and options["IGNORES"]:
        torch.add(arguments["positive_score_ptr"], arguments["ignore_above_ptr"], out=row_terms[5])


def _sweep_columns(
    operands: Operands, plan: Plan, gluon: Config | None, arguments: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Sweeps the columns; returns the loss [] and d_candidates [N, d]."""
    products, columns, block_terms = operands.products, plan.columns, arguments["block_terms_ptr"]
    reduces = gluon is None and columns.options["REDUCES"]
    if reduces:
        loss = operands.empty(())
    else:
        # The reduction within the sweep takes 21 instructions a tile: its results are not known to be uniform.
        loss = block_terms[2].sum()
        block_terms = block_terms[:2].amax(1)
    if gluon is not None:
        from adaftr_fast.kernels.infonce.gluon_column import gluon_column_sweep  # as for the rows

        scales = block_terms * 2.0 ** -max_offset(products.dtype)
        return loss, join(gluon_column_sweep(operands, gluon, arguments["row_terms_ptr"], scales))
    splits, size = columns.grid[1], (products.columns, products.d)
    partials = operands.empty(size if splits == 1 else (splits, *size))
    d_candidates = operands.empty(size) if plan.arrivals else None
    arguments |= {
        "block_terms_ptr": block_terms,
        "num_blocks": block_terms.shape[-1],
        "loss_ptr": loss if reduces else None,
        "partials_ptr": partials,
        "d_candidates_ptr": d_candidates,
    }
    columns.run(arguments)
    if d_candidates is not None:
        return loss, d_candidates
    return loss, partials if splits == 1 else join(partials)
