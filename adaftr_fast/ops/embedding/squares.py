"""The look-up of one id per field with the sum of the squares of its result, for a penalty on the looked-up rows.

Shapes: B batch, F fields, E width, R rows of all fields, U distinct rows of one batch.

The gradient of the penalty is added where the gradients of the look-ups are merged, so that none of the size of the
look-ups [B, F * E] is written for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaftr_fast._extension import is_built
from adaftr_fast.ops.embedding.lookup import fused_embedding
from adaftr_fast.ops.embedding.reference import lookup as reference
from adaftr_fast.ops.library import library
from adaftr_fast.ops.norms import squared_norm

library.define(
    "embedding_and_squares(Tensor weight, Tensor ids, Tensor field_offsets, Tensor[] state) -> (Tensor, Tensor)"
)
library.define(
    "embedding_and_squares_backward(Tensor grad, Tensor ids, Tensor field_offsets, int width, Tensor looked_up,"
    " Tensor of_squares) -> (Tensor, Tensor)"
)
library.impl("embedding_and_squares_backward", reference.embedding_and_squares_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("adaftr_fast::embedding_and_squares_backward", lib=library)
def _embedding_and_squares_backward_fake(
    grad: Tensor, ids: Tensor, field_offsets: Tensor, width: int, looked_up: Tensor, of_squares: Tensor
) -> tuple[Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(unique, dtype=torch.int64), grad.new_empty(unique, width)


def _embedding_and_squares(
    weight: Tensor, ids: Tensor, field_offsets: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    looked_up = fused_embedding(weight, ids, field_offsets, state)
    return looked_up, squared_norm([looked_up])


# csrc/cpu/embedding/autograd.cpp registers the gradient; without it, PyTorch's ops have theirs.
library.impl(
    "embedding_and_squares",
    _embedding_and_squares,
    "CompositeExplicitAutograd" if is_built() else "CompositeImplicitAutograd",
)


def embedding_and_squares(
    weight: Tensor, ids: Tensor, field_offsets: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Looks up as :func:`fused_embedding`.

    Returns:
        The rows [B, F * E], and the sum of the squares of their elements, 0-dim. Both pass a gradient to ``weight``.

    Raises:
        IndexError, TypeError, ValueError: see :func:`fused_embedding`.
    """
    looked_up, squares = torch.ops.adaftr_fast.embedding_and_squares(weight, ids, field_offsets, state)
    return looked_up, squares
