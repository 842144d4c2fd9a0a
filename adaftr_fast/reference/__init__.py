"""The plain-PyTorch reference of every op, by name: the truth that the kernels are tested against.

Each stands beside its op, as ``adaftr_fast/ops/<op>/reference``.

NaN and infinity. Where an input holds a number that is not finite, on every backend and instruction
set:

- A result that is not finite in the reference is not finite in the op, so a training loop sees that
  it has diverged.
- A result that depends on such a number and is finite in the op is that of the reference. The op
  may have NaN where the reference is finite, as it may multiply an infinity by 0; a gradient that
  is None counts as zeros.
- A result that depends on no such number is as accurate as ever. Results of a row depend on the
  inputs of that row and on what rows share: candidates, tables and weights. A row that is ignored
  is no input. Nor is one of weight 0 of the loss and the gradients, except those in the weights,
  and except in the Triton kernels, which multiply by it.
"""

from adaftr_fast.ops.embedding.reference import bags as embedding_bags
from adaftr_fast.ops.embedding.reference import int8 as embedding_int8
from adaftr_fast.ops.embedding.reference import lookup as embedding
from adaftr_fast.ops.embedding.reference import optim as embedding_optim
from adaftr_fast.ops.infonce import reference as infonce
from adaftr_fast.ops.mlp import reference as mlp

__all__ = ["embedding", "embedding_bags", "embedding_int8", "embedding_optim", "infonce", "mlp"]
