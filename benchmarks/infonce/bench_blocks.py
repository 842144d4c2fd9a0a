"""``block=k`` beside ``torch.bmm`` and ``cross_entropy``, and beside the loss over all rows,
forward and backward.

    python -m benchmarks.infonce.bench_blocks        -> results/blocks-*.json

Inputs are those of the loss's benchmark, in float32. Nothing is timed before all agree.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import adaftr_fast as af
from benchmarks.infonce.cases import Loss, forward_backward, inputs
from benchmarks.measure import options, side_by_side, write
from benchmarks.render import blocks

SIZES = [(1024, 64), (8192, 64)]
BLOCKS = (2, 4, 16, 64)


def batched(a: Tensor, b: Tensor, tau: Tensor, block: int) -> Tensor:
    """The loss in PyTorch; B is a multiple of the block."""
    a, b = (x.view(-1, block, x.shape[1]) for x in (a, b))
    z = torch.bmm(a, b.mT).flatten(0, 1) / tau[:, None]  # [B, k]
    return F.cross_entropy(z, torch.arange(len(z), device=z.device) % block)


def losses(block: int) -> dict[str, Loss]:
    literal = partial(batched, block=block)
    ours = partial(af.adaptive_infonce, block=block)
    return {
        "block": ours,
        "bmm": literal,
        "bmm, compiled": torch.compile(literal),
        "all rows": af.adaptive_infonce,
    }


def compare(rows: int, d: int, block: int, seconds: float) -> dict[str, Any]:
    """Returns the milliseconds of each loss."""
    tensors = inputs("gaussian", rows, d)
    contestants = losses(block)
    same = [
        torch.autograd.grad(contestants[name](*tensors), tensors)
        for name in ("block", "bmm", "bmm, compiled")
    ]
    for other in same[1:]:
        for x, y in zip(same[0], other):
            if (x - y).abs().max() > 1e-4 * y.abs().max():
                raise RuntimeError("bench_blocks: the gradients disagree")
    ms = side_by_side(
        {name: forward_backward(loss, tensors) for name, loss in contestants.items()}, seconds
    )
    return {"rows": rows, "d": d, "block": block, "ms": ms}


def main() -> None:
    arguments = options(__doc__, threads=1, seconds=(2.0, "per loss and case"))
    cases = [compare(rows, d, block, arguments.seconds) for rows, d in SIZES for block in BLOCKS]
    print(blocks(cases))
    print(write("blocks", cases))


if __name__ == "__main__":
    main()
