"""The kernels to compile: the variants of every row of the table of tilings
(kernels/infonce/config.py).
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from adaftr_fast.kernels.infonce.blocks import block_config
from adaftr_fast.kernels.infonce.config import (
    ALTERNATIVES,
    GLUON_SWEEPS,
    TILINGS,
    TYPES,
    Config,
    choose_tiling,
    folds_scale,
    has_fixed_max,
    max_offset,
    meta_of,
)
from adaftr_fast.kernels.infonce.launch import COMBINE_BLOCK_D, COMBINE_BLOCK_M, JOINING
from adaftr_fast.kernels.infonce.symmetric.launch import COMBINE_BLOCK, POSITIVES_BLOCK, has_common

ARCHS = (80, 90)
DTYPES = {
    "half": torch.bfloat16,
    "bf16x3": torch.bfloat16,
    "tf32": torch.float32,
    "ieee": torch.float32,
    "float64": torch.float64,
}
HALF_DTYPES = (torch.bfloat16, torch.float16)
ALL_DTYPES = (*HALF_DTYPES, torch.float32, torch.float64)
WIDTHS = (16, 32, 64, 128, 256, 512, 1024)
# the width that stands for "any"
UNBOUNDED = {"half": 1024, "bf16x3": 512, "tf32": 256, "ieee": 256, "float64": 256}
EXPLICIT = {"HAS_POSITIVE": True, "HAS_GROUP": True, "IGNORES": False}
IMPLICIT = {"HAS_POSITIVE": False, "HAS_GROUP": False, "IGNORES": False}
# Row sweep: training; all at once; forward only; a frozen h_ctr with a tau to be learned. Other
# variants, and the sigmoid loss, are compiled at the greatest width of each tiling only: with
# ignore_above, and the kernels of small calls, where no maximum stays in the row sweep and the
# column sweep reduces what combine leaves.
ROW_VARIANTS = {
    "train": IMPLICIT | {"NEED_D_ANCHORS": True, "NEED_SUM_PZ": False},
    "stats": IMPLICIT | {"NEED_D_ANCHORS": True, "NEED_SUM_PZ": True},
    "explicit": EXPLICIT | {"NEED_D_ANCHORS": True, "NEED_SUM_PZ": False},
    "everything": EXPLICIT | {"NEED_D_ANCHORS": True, "NEED_SUM_PZ": True},
    "forward": IMPLICIT | {"NEED_D_ANCHORS": False, "NEED_SUM_PZ": False},
    "tau": EXPLICIT | {"NEED_D_ANCHORS": False, "NEED_SUM_PZ": True},
}
WIDEST_ROW_VARIANTS = {"ignore_above": ROW_VARIANTS["train"] | {"IGNORES": True}}
COLUMN_VARIANTS = {
    "train": IMPLICIT,
    "everything": EXPLICIT,
    "ignore_above": IMPLICIT | {"IGNORES": True},
}
SMALL_VARIANTS = ("train", "stats", "everything")
GLUON_ROW_VARIANTS = {"train": {"NEED_D_ANCHORS": True}, "forward": {"NEED_D_ANCHORS": False}}
# The sigmoid loss, rows and columns: training; explicit positives.
SIGMOID_VARIANTS = {
    "train": {"HAS_POSITIVE": False, "NEED_GRADIENT": True},
    "explicit": {"HAS_POSITIVE": True, "NEED_GRADIENT": True},
}

# The symmetric loss: training; groups.
SYMMETRIC_VARIANTS = {"train": False, "explicit": True}


class Case(NamedTuple):
    """A kernel with everything that it is compiled for."""

    kernel: str  # a key of KERNELS of build.py
    variant: str
    kind: str  # of the products; "" for a kernel without a sweep
    dtype: torch.dtype
    width: int
    arch: int
    config: Config
    constants: dict[str, Any]


def cases(archs: list[int], quick: bool) -> Iterator[Case]:
    """Yields the variants of every row of the table; ``quick``: training at the greatest width."""
    for arch in archs:
        for tiling in TILINGS:
            yield from _of_tiling(tiling, arch, quick)
        for tiling in TILINGS:
            yield from _of_symmetric(tiling, arch, quick)
        yield from _of_symmetric_entries(arch)
        if not quick:
            yield from _of_alternatives(arch)
        for dtype in HALF_DTYPES[:1] if quick else ALL_DTYPES:
            yield from (_combine(dtype, arch, variant) for variant in ("train", "everything"))
        yield from _of_blocks(arch)
        if arch == 90:
            yield from _of_gluon(arch, quick)


def _of_tiling(tiling, arch: int, quick: bool) -> Iterator[Case]:
    if arch < tiling.min_capability:
        return
    dtype = DTYPES[tiling.kind]
    widest = int(min(tiling.max_width, UNBOUNDED[tiling.kind]))
    if quick:
        train = {"train": ROW_VARIANTS["train"]}
        yield from _of_infonce(tiling, dtype, widest, arch, train)
        yield from _of_sigmoid(tiling, dtype, widest, arch, {"train": SIGMOID_VARIANTS["train"]})
        return
    for width in (w for w in WIDTHS if w <= widest):
        yield from _of_infonce(tiling, dtype, width, arch, ROW_VARIANTS)
    yield from _of_infonce(tiling, dtype, widest, arch, WIDEST_ROW_VARIANTS)
    if tiling.row_sweep.five_products:  # blocks that reach beyond the width mask its end
        yield from _of_infonce(
            tiling, dtype, 384, arch, {name: ROW_VARIANTS[name] for name in ("train", "explicit")}
        )
    if tiling.kind == "half":
        yield from _of_infonce(tiling, torch.float16, widest, arch, ROW_VARIANTS)
    for each in HALF_DTYPES if tiling.kind == "half" else (dtype,):
        yield from _of_small(tiling, each, widest, arch)
        yield from _of_sigmoid(tiling, each, widest, arch, SIGMOID_VARIANTS)


def _of_gluon(arch: int, quick: bool) -> Iterator[Case]:
    for config in GLUON_SWEEPS:
        for dtype in HALF_DTYPES[:1] if quick else HALF_DTYPES:
            width, stages = config.block_d, {"STAGES": config.num_stages}
            for name in ("train",) if quick else GLUON_ROW_VARIANTS:
                values = (
                    GLUON_ROW_VARIANTS[name]
                    | stages
                    | {"D_PADDED": width, "MAX_OFFSET": max_offset(dtype)}
                )
                yield Case("gluon_row_sweep", name, "half", dtype, width, arch, config, values)
            values = stages | {"D": width, "FOLDED": folds_scale(dtype, config)}
            yield Case("gluon_column_sweep", "train", "half", dtype, width, arch, config, values)


def _fitted(tiling, width: int, arch: int):
    """Returns the tiling with blocks no wider than needed; None if another one serves this width on
    this GPU.
    """
    if arch < tiling.min_capability:
        return None
    fitted = choose_tiling(tiling.kind, width, arch)
    return fitted if fitted[:3] == tiling[:3] else None


def _of_infonce(
    tiling, dtype: torch.dtype, width: int, arch: int, variants: dict[str, dict]
) -> Iterator[Case]:
    fitted = _fitted(tiling, width, arch)
    if fitted is None:
        return
    for name, variant in variants.items():
        yield _row(fitted, variant, name, dtype, width, arch, small=False)
        if (
            fitted.row_sweep.five_products
            and variant["NEED_D_ANCHORS"]
            and not variant["NEED_SUM_PZ"]
        ):
            yield _anchors(fitted, variant, name, dtype, width, arch)
            if not _is_explicit(variant):
                yield from _bounded(fitted, name, dtype, width, arch)
        if name in COLUMN_VARIANTS:
            yield _column(fitted, COLUMN_VARIANTS[name], name, dtype, width, arch, small=False)


def _of_small(tiling, dtype: torch.dtype, width: int, arch: int) -> Iterator[Case]:
    """Yields the sweeps of small calls that are not those of large ones."""
    fitted = _fitted(tiling, width, arch)
    if fitted is None:
        return
    for name in SMALL_VARIANTS:
        about = f"{name}, small", dtype, width, arch
        made = [(_column, COLUMN_VARIANTS[name])] if name in COLUMN_VARIANTS else []
        for make, variant in [*made, (_row, ROW_VARIANTS[name])]:
            case = make(fitted, variant, *about, small=True)
            if case != make(fitted, variant, *about, small=False):
                yield case


def _row(
    fitted,
    variant: dict[str, bool],
    name: str,
    dtype: torch.dtype,
    width: int,
    arch: int,
    small: bool,
) -> Case:
    config = _row_config(fitted, variant)
    own_dtype = torch.float32 if fitted.kind == "bf16x3" else dtype
    own = {
        "HAS_MARGIN": False,
        "FIXED_MAX": not small and _has_fixed_max(variant, own_dtype, config),
    }
    if config.five_products:  # the anchor sweep accumulates
        own["NEED_D_ANCHORS"] = False
    values = {"META": meta_of(dtype, fitted.kind, width, width, config)} | variant | own
    return Case("row_sweep", name, fitted.kind, dtype, width, arch, config, values)


def _anchors(
    fitted, variant: dict[str, bool], name: str, dtype: torch.dtype, width: int, arch: int
) -> Case:
    config = _row_config(fitted, variant)
    masks = {flag: variant[flag] for flag in IMPLICIT}
    values = {"META": meta_of(dtype, fitted.kind, width, width, config)} | masks
    return Case("anchor_sweep", name, fitted.kind, dtype, width, arch, config, values)


def _bounded(fitted, name: str, dtype: torch.dtype, width: int, arch: int) -> Iterator[Case]:
    """Yields the sweep of rows whose logits are bounded, and those of the others."""
    config = fitted.row_sweep
    blocks = {"META": meta_of(dtype, fitted.kind, width, width, config)}
    own = {"HAS_MARGIN": False}
    kernels = {"bounded_sweep": own, "unbounded_row_sweep": own, "unbounded_anchor_sweep": {}}
    for kernel, values in kernels.items():
        yield Case(kernel, name, fitted.kind, dtype, width, arch, config, blocks | values)


def _column(
    fitted,
    masks: dict[str, bool],
    name: str,
    dtype: torch.dtype,
    width: int,
    arch: int,
    small: bool,
) -> Case:
    config = fitted.column_sweep
    folded = not _is_explicit(masks) and folds_scale(dtype, config)
    joins = small and fitted.kind in JOINING
    own = {"FOLDED": folded, "REDUCES": small and not config.five_products}
    own |= {"JOINS": joins, "BRANCHES": config.five_products}
    values = {"META": meta_of(dtype, fitted.kind, width, width, config)} | masks | own
    return Case("column_sweep", name, fitted.kind, dtype, width, arch, config, values)


def _of_alternatives(arch: int) -> Iterator[Case]:
    """Yields the training sweeps in the blocks that an environment variable selects."""
    for each in ALTERNATIVES:
        if each.min_capability == arch:
            width = int(each.max_width)
            blocks = choose_tiling("half", width, arch, each.kind)
            about = f"train, {each.kind}", HALF_DTYPES[0], width, arch
            yield _row(blocks, ROW_VARIANTS["train"], *about, small=False)
            yield _column(blocks, COLUMN_VARIANTS["train"], *about, small=False)


def _of_sigmoid(
    tiling, dtype: torch.dtype, width: int, arch: int, variants: dict[str, dict]
) -> Iterator[Case]:
    fitted = _fitted(tiling, width, arch)
    if fitted is None or tiling.kind == "bf16x3":  # sigmoid.py takes TF32 instead
        return
    sides = (
        ("sigmoid_rows", True, fitted.sigmoid_rows),
        ("sigmoid_columns", False, fitted.sigmoid_columns),
    )
    for name, variant in variants.items():
        for kernel, owns_rows, config in sides:
            own = {"OWNS_ROWS": owns_rows}
            values = {"META": meta_of(dtype, tiling.kind, width, width, config)} | variant | own
            yield Case(kernel, name, tiling.kind, dtype, width, arch, config, values)


def _of_symmetric(tiling, arch: int, quick: bool) -> Iterator[Case]:
    """Yields the sweeps of the symmetric loss in half types, at the greatest width of a tiling."""
    width = int(min(tiling.max_width, UNBOUNDED[tiling.kind]))
    fitted = _fitted(tiling, width, arch)
    if fitted is None or fitted.sums is None:
        return
    variants, dtypes = (("train",), HALF_DTYPES[:1]) if quick else (SYMMETRIC_VARIANTS, HALF_DTYPES)
    for name, dtype in product(variants, dtypes):
        for sweep, config in (("sums", fitted.sums), ("gradient", fitted.gradient)):
            grouped = SYMMETRIC_VARIANTS[name]
            own: dict[str, Any] = {
                "HAS_GROUP": grouped,
                "COMMON": has_common(sweep, config, grouped),
            }
            if sweep == "gradient":
                own |= {"NEED_GRADIENT": True, "NEED_D_TAU": True}
            values = {"META": meta_of(dtype, tiling.kind, width, width, config)} | own
            yield Case(f"symmetric_{sweep}", name, tiling.kind, dtype, width, arch, config, values)


def _of_symmetric_entries(arch: int) -> Iterator[Case]:
    """Yields the kernels of the symmetric loss that are no sweeps, in Triton's default warps and
    stages.
    """
    dtype = torch.bfloat16
    config = Config(POSITIVES_BLOCK, 0, 64, 64, 4, 3)
    values = {"META": meta_of(dtype, "half", 256, 256, config)}
    yield Case("symmetric_positives", "train", "", dtype, 256, arch, config, values)
    own = {"COMMON": True, "BLOCK_M": COMBINE_BLOCK, "ACC_DTYPE": values["META"].ACC_DTYPE.value}
    yield Case(
        "symmetric_combine",
        "train",
        "",
        dtype,
        256,
        arch,
        Config(COMBINE_BLOCK, 0, 0, 0, 4, 3),
        own,
    )


def _of_blocks(arch: int) -> Iterator[Case]:
    """Yields the kernel of blocks of rows, which has no loop over tiles, with all outputs."""
    needs = dict.fromkeys(("NEED_D_ANCHORS", "NEED_D_CANDIDATES", "NEED_D_TAU", "NEED_STATS"), True)
    for kind in ("half", "tf32", "ieee", "float64"):
        dtype, config = DTYPES[kind], block_config(kind, 256)
        yield Case(
            "blocks",
            kind,
            "",
            dtype,
            256,
            arch,
            config,
            {"META": meta_of(dtype, kind, 256, 256, config)} | needs,
        )


def _row_config(tiling, variant: dict[str, bool]) -> Config:
    """As launch.py chooses it."""
    if variant["NEED_SUM_PZ"]:
        return tiling.row_sweep_pz
    return tiling.row_sweep_explicit if _is_explicit(variant) else tiling.row_sweep


def _is_explicit(variant: dict[str, bool]) -> bool:
    """As Flags.masks of launch.py."""
    return variant["HAS_POSITIVE"] or variant["HAS_GROUP"] or variant["IGNORES"]


def _has_fixed_max(variant: dict[str, bool], dtype: torch.dtype, config: Config) -> bool:
    """As launch.py decides."""
    return not _is_explicit(variant) and has_fixed_max(dtype, config, variant["NEED_SUM_PZ"])


def _combine(dtype: torch.dtype, arch: int, variant: str) -> Case:
    """``train``: row r's positive is column r; ``everything``: explicit positives."""
    names = ("HAS_POSITIVE", "NEED_D_ANCHORS", "NEED_D_CANDIDATES", "NEED_D_TAU", "NEED_STATS")
    acc_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    blocks = {"BLOCK_M": COMBINE_BLOCK_M, "BLOCK_D": COMBINE_BLOCK_D[dtype]}
    values = (
        dict.fromkeys(names, True)
        | blocks
        | {"D": 256, "D_PADDED": 256, "ACC_DTYPE": TYPES[acc_dtype]}
    )
    everything = variant == "everything"
    values |= {"HAS_POSITIVE": everything, "HAS_MARGIN": False, "HAS_WEIGHT": False}
    values |= {"JOINS": everything and dtype == torch.float32}
    # warps and stages: Triton's defaults
    config = Config(COMBINE_BLOCK_M, 0, blocks["BLOCK_D"], 0, 4, 3)
    return Case("combine", variant, "", dtype, 256, arch, config, values)
