"""A program of the sanitizer stage: ``python -m benchmarks.gpu.stages.sanitized PROGRAM`` runs it.

A program of the loss takes B = 300 rows, which are no whole blocks, and goes through the row and
column sweeps of small and of large calls, the join of splits, the bounded rows (d = 512), both
directions at once and the sigmoid loss.
"""

from __future__ import annotations

import os
import sys
from functools import partial

ROWS = 300
TYPES = ("bfloat16", "float16", "float32")
OPTIMIZERS = ("SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam", "AdamW")


def loss(dtype: str, width: int, device: str = "cuda") -> None:
    import torch
    from torch.nn.functional import normalize

    import adaftr_fast as af

    a, b = (normalize(torch.randn(ROWS, width, device=device)) for _ in range(2))
    a, b = (x.to(getattr(torch, dtype)).requires_grad_() for x in (a, b))
    tau = torch.full((ROWS,), 0.3, device=device, requires_grad=True)

    def sweep() -> None:
        af.adaptive_infonce(a, b, tau).backward()
        af.adaptive_infonce(a, b, tau, return_stats=True)[0].backward()
        af.adaptive_infonce(a, b, 0.3, symmetric=True).backward()
        af.sigmoid_contrast(a, b, 1.0, -5.0).backward()

    sweep()
    if device == "cuda":
        from adaftr_fast.kernels.infonce import launch

        launch.SMALL_PART = launch.FEW_BLOCKS = 0  # every call is a large one
        sweep()
        torch.cuda.synchronize()


def tables(optimizer: str, device: str = "cuda") -> None:
    import torch

    import adaftr_fast as af

    sizes = [50, 1, 20]
    ids = torch.cat([torch.randint(0, size, (ROWS, 1), device=device) for size in sizes], 1)
    lengths = torch.randint(0, 4, (ROWS * len(sizes),), device=device)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), lengths.cumsum(0)])
    values = torch.zeros(int(offsets[-1]), dtype=torch.int64, device=device)
    for widths in (8, [8, 3, 16]):
        table = af.FusedEmbedding(sizes, widths, device=device)
        update = getattr(af.optim, optimizer)(table, lr=0.01)
        for _ in range(3):
            for inputs in ((ids,), (values, offsets)):
                update.zero_grad()
                table(*inputs).sin().sum().backward()
                af.optim.clip_grad_norm_(table.parameters(), 1.0)
                update.step()
        table.flush()
    if device == "cuda":
        torch.cuda.synchronize()


def gluon(width: int, device: str = "cuda") -> None:
    os.environ["ADAFTR_FAST_INFONCE_SWEEPS"] = "gluon"
    loss("bfloat16", width, device)


PROGRAMS = {
    f"loss {dtype} {width}": partial(loss, dtype, width) for width in (64, 512) for dtype in TYPES
}
PROGRAMS |= {f"gluon {width}": partial(gluon, width) for width in (64, 128)}
PROGRAMS |= {f"tables {name}": partial(tables, name) for name in OPTIMIZERS}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
