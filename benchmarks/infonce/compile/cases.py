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
VARIANTS = ROW_VARIANTS | {"ignore_above": ROW_VARIANTS["train"] | {"IGNORES": True}}
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


class Place(NamedTuple):
    """Where a tiling serves."""

    tiling: Any  # with blocks no wider than needed
    dtype: torch.dtype
    width: int
    arch: int

    def case(self, kernel: str, variant: str, config: Config, constants: dict[str, Any]) -> Case:
        kind = self.tiling.kind
        dtype = self.dtype
        width = self.width
        meta = {"META": meta_of(dtype, kind, width, width, config)}
        return Case(kernel, variant, kind, dtype, width, self.arch, config, meta | constants)


def cases(archs: list[int], quick: bool) -> Iterator[Case]:
    """Yields the variants of every row of the table; ``quick``: training at the greatest width."""
    for arch in archs:
        for tiling in TILINGS:
            if arch >= tiling.min_capability:
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
    dtype = DTYPES[tiling.kind]
    widest = int(min(tiling.max_width, UNBOUNDED[tiling.kind]))

    def places(*wanted: tuple[torch.dtype, int]) -> list[Place]:
        """Those that no other tiling serves on this GPU."""
        found = [
            Place(choose_tiling(tiling.kind, width, arch), dtype, width, arch)
            for dtype, width in wanted
        ]
        return [place for place in found if place.tiling[:3] == tiling[:3]]

    if quick:
        for place in places((dtype, widest)):
            yield from _of_infonce(place, "train")
            yield from _of_sigmoid(place, "train")
        return
    for place in places(*((dtype, width) for width in WIDTHS if width <= widest)):
        yield from _of_infonce(place, *ROW_VARIANTS)
    for place in places((dtype, widest)):
        yield from _of_infonce(place, "ignore_above")
    if tiling.row_sweep.five_products:  # blocks that reach beyond the width mask its end
        for place in places((dtype, 384)):
            yield from _of_infonce(place, "train", "explicit")
    if tiling.kind == "half":
        for place in places((torch.float16, widest)):
            yield from _of_infonce(place, *ROW_VARIANTS)
    for each in HALF_DTYPES if tiling.kind == "half" else (dtype,):
        for place in places((each, widest)):
            yield from _of_small(place)
            yield from _of_sigmoid(place, *SIGMOID_VARIANTS)


def _of_gluon(arch: int, quick: bool) -> Iterator[Case]:
    for config in GLUON_SWEEPS:
        for dtype in HALF_DTYPES[:1] if quick else HALF_DTYPES:
            width = config.block_d
            stages = {"STAGES": config.num_stages}
            about = "half", dtype, width, arch, config
            for name in ("train",) if quick else GLUON_ROW_VARIANTS:
                values = GLUON_ROW_VARIANTS[name] | stages
                values |= {"D_PADDED": width, "MAX_OFFSET": max_offset(dtype)}
                yield Case("gluon_row_sweep", name, *about, values)
            values = stages | {"D": width, "FOLDED": folds_scale(dtype, config)}
            yield Case("gluon_column_sweep", "train", *about, values)


def _of_infonce(place: Place, *names: str) -> Iterator[Case]:
    for name in names:
        variant = VARIANTS[name]
        yield _row(place, name)
        sweeps = place.tiling.row_sweep.five_products and variant["NEED_D_ANCHORS"]
        if sweeps and not variant["NEED_SUM_PZ"]:
            masks = {flag: variant[flag] for flag in IMPLICIT}
            yield place.case("anchor_sweep", name, _row_config(place.tiling, variant), masks)
            if not _is_explicit(variant):  # rows whose logits are bounded, and the others
                own = {"HAS_MARGIN": False}
                yield place.case("bounded_sweep", name, place.tiling.row_sweep, own)
                yield place.case("unbounded_row_sweep", name, place.tiling.row_sweep, own)
                yield place.case("unbounded_anchor_sweep", name, place.tiling.row_sweep, {})
        if name in COLUMN_VARIANTS:
            yield _column(place, name)


def _of_small(place: Place) -> Iterator[Case]:
    """Yields the sweeps of small calls that are not those of large ones."""
    for name in SMALL_VARIANTS:
        for make in (_column, _row) if name in COLUMN_VARIANTS else (_row,):
            case = make(place, name, small=True)
            if case.constants != make(place, name).constants:
                yield case._replace(variant=f"{name}, small")


def _row(place: Place, name: str, small: bool = False) -> Case:
    variant = VARIANTS[name]
    config = _row_config(place.tiling, variant)
    dtype = torch.float32 if place.tiling.kind == "bf16x3" else place.dtype
    is_fixed = not small and not _is_explicit(variant)
    own = {"HAS_MARGIN": False}
    own["FIXED_MAX"] = is_fixed and has_fixed_max(dtype, config, variant["NEED_SUM_PZ"])
    if config.five_products:  # the anchor sweep accumulates
        own["NEED_D_ANCHORS"] = False
    return place.case("row_sweep", name, config, variant | own)


def _column(place: Place, name: str, small: bool = False) -> Case:
    config = place.tiling.column_sweep
    masks = COLUMN_VARIANTS[name]
    own = {
        "FOLDED": not _is_explicit(masks) and folds_scale(place.dtype, config),
        "REDUCES": small and not config.five_products,
        "JOINS": small and place.tiling.kind in JOINING,
        "BRANCHES": config.five_products,
    }
    return place.case("column_sweep", name, config, masks | own)


def _of_alternatives(arch: int) -> Iterator[Case]:
    """Yields the training sweeps in the blocks that an environment variable selects."""
    for each in ALTERNATIVES:
        if each.min_capability == arch:
            width = int(each.max_width)
            blocks = choose_tiling("half", width, arch, each.kind)
            place = Place(blocks, HALF_DTYPES[0], width, arch)
            for make in (_row, _column):
                yield make(place, "train")._replace(variant=f"train, {each.kind}")


def _of_sigmoid(place: Place, *names: str) -> Iterator[Case]:
    if place.tiling.kind == "bf16x3":  # sigmoid.py takes TF32 instead
        return
    sides = {
        "sigmoid_rows": place.tiling.sigmoid_rows,
        "sigmoid_columns": place.tiling.sigmoid_columns,
    }
    for name, (kernel, config) in product(names, sides.items()):
        own = {"OWNS_ROWS": kernel == "sigmoid_rows"}
        yield place.case(kernel, name, config, SIGMOID_VARIANTS[name] | own)


def _of_symmetric(tiling, arch: int, quick: bool) -> Iterator[Case]:
    """Yields the sweeps of the symmetric loss in half types, at the greatest width of a tiling."""
    width = int(min(tiling.max_width, UNBOUNDED[tiling.kind]))
    if arch < tiling.min_capability:
        return
    fitted = choose_tiling(tiling.kind, width, arch)
    if fitted[:3] != tiling[:3] or fitted.sums is None:
        return
    variants, dtypes = (("train",), HALF_DTYPES[:1]) if quick else (SYMMETRIC_VARIANTS, HALF_DTYPES)
    for name, dtype in product(variants, dtypes):
        for sweep, config in (("sums", fitted.sums), ("gradient", fitted.gradient)):
            grouped = SYMMETRIC_VARIANTS[name]
            own = {"HAS_GROUP": grouped, "COMMON": has_common(sweep, config, grouped)}
            if sweep == "gradient":
                own |= {"NEED_GRADIENT": True, "NEED_D_TAU": True}
            yield Place(fitted, dtype, width, arch).case(f"symmetric_{sweep}", name, config, own)


def _of_symmetric_entries(arch: int) -> Iterator[Case]:
    """Yields the kernels of the symmetric loss that are no sweeps, in Triton's default warps and
    stages.
    """
    about = "train", "", torch.bfloat16, 256, arch
    config = Config(POSITIVES_BLOCK, 0, 64, 64, 4, 3)
    meta = meta_of(torch.bfloat16, "half", 256, 256, config)
    yield Case("symmetric_positives", *about, config, {"META": meta})
    own = {"COMMON": True, "BLOCK_M": COMBINE_BLOCK, "ACC_DTYPE": meta.ACC_DTYPE.value}
    yield Case("symmetric_combine", *about, Config(COMBINE_BLOCK, 0, 0, 0, 4, 3), own)


def _of_blocks(arch: int) -> Iterator[Case]:
    """Yields the kernel of blocks of rows, which has no loop over tiles, with all outputs."""
    needs = dict.fromkeys(("NEED_D_ANCHORS", "NEED_D_CANDIDATES", "NEED_D_TAU", "NEED_STATS"), True)
    for kind in ("half", "tf32", "ieee", "float64"):
        dtype = DTYPES[kind]
        config = block_config(kind, 256)
        values = {"META": meta_of(dtype, kind, 256, 256, config)} | needs
        yield Case("blocks", kind, "", dtype, 256, arch, config, values)


def _row_config(tiling, variant: dict[str, bool]) -> Config:
    """As launch.py chooses it."""
    if variant["NEED_SUM_PZ"]:
        return tiling.row_sweep_pz
    return tiling.row_sweep_explicit if _is_explicit(variant) else tiling.row_sweep


def _is_explicit(variant: dict[str, bool]) -> bool:
    """As Flags.masks of launch.py."""
    return variant["HAS_POSITIVE"] or variant["HAS_GROUP"] or variant["IGNORES"]


def _combine(dtype: torch.dtype, arch: int, variant: str) -> Case:
    """``train``: row r's positive is column r; ``everything``: explicit positives."""
    names = ("HAS_POSITIVE", "NEED_D_ANCHORS", "NEED_D_CANDIDATES", "NEED_D_TAU", "NEED_STATS")
    block_d = COMBINE_BLOCK_D[dtype]
    acc_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    everything = variant == "everything"
    values = dict.fromkeys(names, True) | {"BLOCK_M": COMBINE_BLOCK_M, "BLOCK_D": block_d}
    values |= {"D": 256, "D_PADDED": 256, "ACC_DTYPE": TYPES[acc_dtype]}
    values |= {"HAS_POSITIVE": everything, "HAS_MARGIN": False, "HAS_WEIGHT": False}
    values |= {"JOINS": everything and dtype == torch.float32}
    # warps and stages: Triton's defaults
    config = Config(COMBINE_BLOCK_M, 0, block_d, 0, 4, 3)
    return Case("combine", variant, "", dtype, 256, arch, config, values)
