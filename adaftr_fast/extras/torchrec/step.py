"""The look-up of a training step: one for the whole batch, and one update of the rows by its
gradient.

Shapes: B rows of this rank's batch, F fields, E width, N ids of all bags, U distinct table rows, W
ranks.

TorchRec updates the rows in backward. A step therefore looks up its batch once and gives the model
the vectors outside of TorchRec's graph. Their gradient accumulates over the parts of the batch and
can be clipped. Then TorchRec's backward runs once, so that a row gets one update by the sum of its
gradients.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from adaftr_fast.data.dataset.batch import slice_bags
from adaftr_fast.ops.embedding.reference.bags import factors, resolve_ids
from adaftr_fast.ops.embedding.reference.lookup import embedding_rows, merge_rows


class StepLookup:
    """The vectors of a batch, of which the model reads one part at a time.

    Attributes:
        part: the rows of the batch that the model reads now; at first all.

    Args:
        out: the look-up [B, F * E] in TorchRec's graph.
        ids: the ids, [B, F], or [N] with ``offsets``.
        offsets: [B * F + 1], or None.
        field_offsets: [F + 1], the first row of each field.
        mean: whether a bag is the mean of its vectors, rather than their sum.
    """

    def __init__(
        self, out: Tensor, ids: Tensor, offsets: Tensor | None, field_offsets: Tensor, mean: bool
    ) -> None:
        self._out = out
        self._ids = ids
        self._offsets = offsets
        self._field_offsets = field_offsets
        self._mean = mean
        self._vectors = out.detach().requires_grad_()
        self.part = slice(0, len(out))

    def read(self, ids: Tensor, offsets: Tensor | None) -> Tensor:
        """Returns the vectors of the present part [rows, F * E].

        Raises:
            ValueError: the ids are not those of the part.
        """
        if self._offsets is None:
            expected = self._ids[self.part]
        else:
            expected, _ = slice_bags(self._ids, self._offsets, len(self._out), self.part)
        if (offsets is None) != (self._offsets is None) or not torch.equal(
            ids.to(expected.dtype), expected
        ):
            raise ValueError(
                "TorchRecTables: ids must be those of the batch in a training step, which looks "
                "them up once; "
                "train a model that looks up others with training.tables = replicated"
            )
        return self._vectors if self.part == slice(0, len(self._out)) else self._vectors[self.part]

    @torch.no_grad()
    def squared_norm(self, group: dist.ProcessGroup) -> Tensor:
        """Returns the squared norm of the tables' gradient, which is the mean over the ranks,
        0-dim.

        Rank ``row % W`` adds up the gradients of a row. All ranks must call it.
        """
        width = self._out.shape[1] // (len(self._field_offsets) - 1)
        grad = self._gradient().view(-1, width)
        if self._offsets is None:
            rows = embedding_rows(self._ids, self._field_offsets)
        else:
            bag, rows = resolve_ids(
                "sharded_tables", self._ids, self._offsets, None, self._field_offsets
            )
            grad = grad[bag] * factors(bag, self._offsets, None, self._mean, grad.dtype)
        _, merged = merge_rows(*_to_owners(*merge_rows(rows, grad), group))
        total = merged.square().sum()
        dist.all_reduce(total, group=group)
        return total / dist.get_world_size(group) ** 2

    @torch.no_grad()
    def scale(self, factor: Tensor) -> None:
        """Multiplies the gradient by ``factor``, 0-dim."""
        self._gradient().mul_(factor)

    def update(self) -> None:
        """Runs TorchRec's backward, which updates the rows. All ranks must call it."""
        self._out.backward(self._gradient())

    def _gradient(self) -> Tensor:
        if self._vectors.grad is None:
            self._vectors.grad = torch.zeros_like(self._vectors)
        return self._vectors.grad


def _to_owners(rows: Tensor, grad: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Sends each row [U] with its gradient [U, E] to rank ``row % W``; returns what this rank
    receives.
    """
    size = dist.get_world_size(group)
    owner = rows % size
    order = owner.argsort(stable=True)
    sent = owner.bincount(minlength=size)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    to_here = received.tolist()
    from_here = sent.tolist()
    arrived = [each.new_empty(sum(to_here), *each.shape[1:]) for each in (rows, grad)]
    for into, each in zip(arrived, (rows, grad)):
        dist.all_to_all_single(into, each[order].contiguous(), to_here, from_here, group=group)
    return arrived[0], arrived[1]
