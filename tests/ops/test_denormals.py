"""Kernels flush denormals to zero: a processor takes many times as long for them, and the
weights of units that no gradient reaches any more become denormal under weight decay.
"""

import torch

import adaftr_fast.ops.embedding.optim
import adaftr_fast.ops.mlp.op  # noqa: F401  # defines the ops
from tests.ops.marks import needs_extension, on_threads

TINY = 1e-40  # denormal in float32


@needs_extension
def test_kernels_flush_denormals_on_all_threads_and_restore_the_mode():
    weights = [torch.full((200, 100), TINY)]
    gradients, means, squares = ([torch.full((200, 100), TINY)] for _ in range(3))
    with on_threads(2):
        (y,) = torch.ops.adaftr_fast.mlp(
            [torch.ones(200, 100)], [0], weights, [torch.zeros(200)], [1], [0], False
        )
        torch.ops.adaftr_fast.dense_adam_(
            weights, gradients, means, squares, [torch.tensor(9.0)], 0.01, 0.9, 0.999, 1e-8
        )
        kept = torch.full((200, 100), TINY) * 0.5
    for each in (y, *weights, *means, *squares):
        assert each.count_nonzero() == 0
    assert kept.count_nonzero() == kept.numel()
