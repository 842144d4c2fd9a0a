"""The ranks of positives, compared with a sort in float64, and the FLOP formulas of the losses."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adaftr_fast import adaptive_infonce, positive_ranks, sigmoid_contrast
from adaftr_fast.ops.infonce import ranks


def by_sorting(a, b, positive, row_group, column_group):
    """The place of each positive among the similarities that are not excluded, in
    descending order.
    """
    found = []
    for r, y in enumerate(positive.tolist()):
        s = b.double() @ a[r].double()
        rivals = [float(s[j]) for j in range(len(b)) if j != y and row_group[r] != column_group[j]]
        found.append(0 if y == -100 else 1 + sum(x >= float(s[y]) for x in rivals))
    return torch.tensor(found)


@pytest.mark.parametrize("height", [1 << 22, 64])
def test_ranks_are_those_of_a_sort(monkeypatch, height):
    monkeypatch.setattr(ranks, "BLOCK_ELEMENTS", height)
    a = torch.randn(37, 6)
    b = torch.cat([a[:20] + torch.randn(20, 6), torch.randn(31, 6)])
    b[3] = b[4]  # a tie counts against the positive
    positive = torch.randint(0, 51, (37,))
    positive[5], positive[4] = -100, 3
    rows = torch.randint(0, 9, (37,))
    columns = torch.randint(0, 9, (51,))
    found = positive_ranks(a, b, positive_index=positive, row_group=rows, column_group=columns)
    assert torch.equal(found, by_sorting(a, b, positive, rows, columns))
    assert found[4] > 1
    assert torch.equal(positive_ranks(a, b.double()[:, :]), positive_ranks(a.double(), b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_one_is_the_top1_of_the_loss(dtype):
    a, b = torch.randn(2, 90, 8).to(dtype)
    b[:60] += a[:60]
    group = torch.randint(0, 30, (90,))
    _, stats = adaptive_infonce(a.float(), b.float(), 0.1, row_group=group, return_stats=True)
    assert torch.equal(positive_ranks(a.T.contiguous().T, b, row_group=group) == 1, stats.top1)
    assert stats.top1.any()


def test_autocast_does_not_round_the_similarities():
    a = torch.randn(64, 32)
    b = torch.randn(64, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = positive_ranks(a, b)
    assert torch.equal(found, positive_ranks(a, b))


def test_nan_is_last_and_empty_batches_are_empty():
    a = torch.eye(3)
    a[1, 0] = torch.nan
    assert positive_ranks(a, torch.eye(3)).tolist() == [1, 3, 1]
    assert positive_ranks(a[:0], a).shape == (0,)
    assert positive_ranks(a, a[:0], positive_index=torch.full((3,), -100)).tolist() == [0, 0, 0]


def test_bad_arguments_of_positive_ranks():
    a = torch.eye(3)
    with pytest.raises(ValueError, match="positive_ranks: column_group requires row_group"):
        positive_ranks(a, a, column_group=torch.arange(3))
    with pytest.raises(TypeError, match="positive_ranks: row_group must be int64"):
        positive_ranks(a, a, row_group=torch.ones(3))
    with pytest.raises(RuntimeError, match=r"positive_ranks: .* got positive_index\[2\] = 3"):
        positive_ranks(a, a, positive_index=torch.tensor([0, 1, 3]))


def test_the_products_of_pairs_are_counted():
    a, c = torch.randn(2, 64, 16).requires_grad_()
    b = torch.randn(48, 16, requires_grad=True)
    index = torch.arange(64) % 48
    for call, pairs in (
        (lambda: adaptive_infonce(a, c, 0.1).backward(), 64 * 64 * 3),
        (lambda: adaptive_infonce(a.detach(), c, 0.1).backward(), 64 * 64 * 2),
        (lambda: adaptive_infonce(a, b, 0.1, positive_index=index).backward(), 64 * 48 * 3),
        (lambda: adaptive_infonce(a, c, 0.1, symmetric=True).backward(), 64 * 64 * 3),
        (lambda: adaptive_infonce(a, c, 0.1, block=24).backward(), (2 * 24**2 + 16**2) * 3),
        # similarities twice
        (lambda: adaptive_infonce(a, c, 0.1, reduction="none").sum().backward(), 64 * 64 * 4),
        (lambda: sigmoid_contrast(a, c, 10, -10, backend="reference").backward(), 64 * 64 * 3),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == 2 * 16 * pairs
