"""The plain-PyTorch reference of every op, by name: the truth that the kernels are tested against.

Each stands beside its op, as ``adaftr_fast/ops/<op>/reference``.
"""

from adaftr_fast.ops.embedding.reference import bags as embedding_bags
from adaftr_fast.ops.embedding.reference import lookup as embedding
from adaftr_fast.ops.embedding.reference import optim as embedding_optim
from adaftr_fast.ops.infonce import reference as infonce
from adaftr_fast.ops.mlp import reference as mlp

__all__ = ["embedding", "embedding_bags", "embedding_optim", "infonce", "mlp"]
