"""The operands of a sweep as the kernels read them, the GPU they are on, and the grid and options of a launch.

The kernels read operands as rows of a multiple of 16 elements from 16-byte boundaries, because anything else turns
asynchronous 16-byte copies into 2-byte loads. Other operands are copied, which takes O(B d) and O(N d).
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from adaftr_fast.kernels.infonce.config import (
    INTERPRETED,
    Config,
    cdiv,
    choose_splits,
    choose_tiling,
    chosen_blocks,
    constants,
    product_kind,
)
from torch import Tensor

WIDTH_MULTIPLE = 16  # elements: the least depth of a half-precision product, and Triton's hint for vector loads
ASSUMED_CAPABILITY = 80
ASSUMED_PROCESSORS = 2  # under the interpreter: small test sizes then meet both one and several splits
Sweep = Literal["sigmoid_rows", "sigmoid_columns"]
Grid = tuple[int, int, int]


class Operands(NamedTuple):
    """The operands as the kernels take them, and the GPU they are on."""

    anchors: Tensor  # [B, D_PADDED]
    candidates: Tensor  # [N, D_PADDED]
    swept: tuple[Tensor, Tensor]  # what the sweeps read: anchors and candidates, or their terms [rows, 2 D_PADDED]
    kind: str  # of the products
    d: int
    acc_dtype: torch.dtype
    capability: int  # 10 * major + minor
    processors: int

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.anchors.new_empty(shape, dtype=dtype or self.acc_dtype)

    def launch_options(self, sweep: Sweep, divide_width: bool) -> tuple[Grid, dict]:
        """Returns a sweep's grid and options, see the function below."""
        tiling = choose_tiling(self.kind, self.anchors.shape[1], self.capability, chosen_blocks())
        config: Config = getattr(tiling, sweep)
        sides = self.anchors.shape[0], self.candidates.shape[0]
        of_operands = self.kind, self.anchors.dtype, self.anchors.shape[1], sides
        return launch_options(config, *of_operands, sweep == "sigmoid_columns", divide_width, 0, self.processors)


@lru_cache(maxsize=4096)
def launch_options(
    config: Config,
    kind: str,
    dtype: torch.dtype,
    width: int,
    sides: tuple[int, int],
    owns_columns: bool,
    divide_width: bool,
    few: int,
    processors: int,
) -> tuple[Grid, dict]:
    """Returns a sweep's grid (owned blocks, splits of the streamed side, slices of the width) and its options.

    Up to ``few`` streamed blocks are not split.
    """
    blocks = cdiv(sides[0], config.block_m), cdiv(sides[1], config.block_n)
    owned, streamed = blocks[::-1] if owns_columns else blocks
    slices = cdiv(width, config.block_d) if divide_width else 1
    splits = 1
    if streamed > few:
        splits = choose_splits(owned * slices, streamed, processors * config.programs)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return (owned, splits, slices), options | constants(dtype, kind, width, config)


def check_device(anchors: Tensor) -> None:
    """Raises ValueError unless the tensor is on CUDA or kernels are interpreted."""
    if not anchors.is_cuda and not INTERPRETED:
        raise ValueError(f"kernels.infonce: anchors must be on CUDA without TRITON_INTERPRET=1, got {anchors.device}")


def prepare_operands(
    anchors: Tensor, candidates: Tensor, ignored: Tensor | None = None, splits: bool = False, ieee: bool = False
) -> Operands:
    """Aligns the operands, zeroes the anchors of ``ignored`` rows [B], and looks up the GPU.

    ``splits``: the sweeps have bf16x3 on sm_90; otherwise TF32 takes its place. ``ieee``: see ``product_kind``.
    """
    capability, processors = _gpu(anchors.get_device()) if anchors.is_cuda else (ASSUMED_CAPABILITY, ASSUMED_PROCESSORS)
    aligned = _align(anchors, ignored), _align(candidates)
    kind = product_kind(anchors.dtype, ieee)
    if kind == "bf16x3" and not (splits and 90 <= capability < 100):
        kind = "tf32"
    swept = (_split(aligned[0]), _split(aligned[1])) if kind == "bf16x3" else aligned
    return Operands(*aligned, swept, kind, anchors.shape[1], accumulation_dtype(anchors), capability, processors)


@lru_cache
def _gpu(index: int) -> tuple[int, int]:
    """Returns a GPU's compute capability, times 10, and its number of multiprocessors."""
    properties = torch.cuda.get_device_properties(index)
    capability = properties.major * 10 + properties.minor
    if capability >= 120:  # has the matrix instructions and the shared memory of sm_89, not those of sm_90
        capability = 89
    return capability, properties.multi_processor_count


def accumulation_dtype(h: Tensor) -> torch.dtype:
    return torch.float64 if h.dtype == torch.float64 else torch.float32


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
    aligned = h.stride(1) == 1 and h.stride(0) % WIDTH_MULTIPLE == 0 and h.data_ptr() % 16 == 0
    if aligned and ignored is None and width % WIDTH_MULTIPLE == 0:
        return h
    out = h.new_zeros(h.shape[0], cdiv(width, WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
    out[:, :width] = h if ignored is None else h.masked_fill(ignored[:, None], 0)
    return out
