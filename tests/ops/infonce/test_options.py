"""Options and special inputs of adaptive_infonce on CPU, for every instruction set."""

import math
from itertools import product

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.infonce.losses import both_directions
from tests.ops.marks import needs_extension, on_kernels


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_excluded_candidates_may_be_nan_or_infinite(dtype, instruction_set):
    for rows, bad in product((1, 5, 33), (math.nan, math.inf, 3.4e38)):
        a, b, tau = (x.float() for x in inputs(rows, 64, 8))
        b[40] = bad
        others = torch.arange(64) != 40
        elsewhere = torch.zeros(rows, dtype=torch.int64)
        groups = {"row_group": torch.ones(rows, dtype=torch.int64), "column_group": (~others).long()}
        for options in (
            {"positive_index": torch.full((rows,), -100)},
            {"positive_index": elsewhere, "row_weight": torch.zeros(rows)},
            {"positive_index": elsewhere, **groups},
        ):
            leaves = [x.to(dtype).requires_grad_() for x in (a, b)]
            af.adaptive_infonce(*leaves, tau, reduction="sum", backend="cpu", **options).backward()
            assert leaves[1].grad[others].isfinite().all()
            if "row_group" not in options:
                assert not any(leaf.grad.any() for leaf in leaves)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_directions_of_a_masked_batch(dtype):
    """They share no similarities where N is not B."""
    tau = torch.linspace(0.1, 1, 80, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        upstream = torch.linspace(-1, 2, 61) if reduction == "none" else None
        options = masks(61, 80) | {"reduction": reduction, "upstream": upstream}
        assert_matches((*inputs(61, 80, 24), tau), dtype, both_directions, **options)


@needs_extension
def test_all_rows_ignored():
    a, b, tau = (t.requires_grad_() for t in inputs(10, 12, 4))
    loss = af.adaptive_infonce(a, b, tau, positive_index=torch.full((10,), -100), backend="cpu")
    loss.backward()
    assert loss.item() == 0
    assert all((t.grad == 0).all() for t in (a, b, tau))


@needs_extension
def test_groups_mask_every_negative():
    a, b, tau = (t.requires_grad_() for t in inputs(10, 10, 4))
    loss = af.adaptive_infonce(a, b, tau, row_group=torch.zeros(10, dtype=torch.int64), backend="cpu")
    loss.backward()
    assert loss.item() == 0
    assert all((t.grad == 0).all() for t in (a, b, tau))


@needs_extension
@on_kernels("infonce", torch.float64, torch.float32, torch.bfloat16)
def test_groups_mask_all_but_a_few_negatives(dtype, instruction_set):
    rows, columns = 5, 900  # more columns than a block has, of whose vectors most lanes are masked
    for kept in ([3, 700], [3, 20, 700], [700, 3, 899]):
        column_group = torch.ones(columns, dtype=torch.int64)
        column_group[kept] = 0
        options = {"row_group": torch.ones(rows, dtype=torch.int64), "column_group": column_group}
        assert_matches(inputs(rows, columns, 8), dtype, positive_index=torch.full((rows,), 850), **options)


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_ignored_row_does_not_leak_nan(dtype, instruction_set):
    a, b, tau = inputs(20, 20, 4)
    a[3] = float("nan")
    positive = torch.arange(20)
    positive[3] = -100
    found = loss_and_gradients(af.adaptive_infonce, (a, b, tau), dtype, positive_index=positive, backend="cpu")
    assert all(x.isfinite().all() for x in found[:3])


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_the_statistics_of_nan(dtype, instruction_set):
    a, b, tau = inputs(40, 40, 4)
    b[17, 2] = math.nan
    for backend in ("cpu", "reference"):
        _, stats = af.adaptive_infonce(a.to(dtype), b.to(dtype), tau.float(), backend=backend, return_stats=True)
        assert not stats.top1.any()
        assert stats.entropy.isnan().all()


@needs_extension
def test_expanded_and_scalar_temperatures():
    a, b, tau = inputs(40, 40, 10)
    for options in ({}, {"symmetric": True}, {"block": 4}):
        plain = af.adaptive_infonce(a, b, tau[:1].expand(40), backend="cpu", **options)
        assert torch.equal(plain, af.adaptive_infonce(a, b, tau[0], backend="cpu", **options))
        assert torch.equal(plain, af.adaptive_infonce(a, b, tau[0].item(), backend="cpu", **options))


@needs_extension
def test_mixed_dtypes_and_autocast():
    a, b, tau = inputs(30, 30, 16)
    for options in ({}, {"block": 4}):
        mixed = af.adaptive_infonce(a.bfloat16(), b.float(), tau.float(), **options)
        assert torch.equal(mixed, af.adaptive_infonce(a.bfloat16().float(), b.float(), tau.float(), **options))
    layer = torch.nn.Linear(16, 16).double().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = af.adaptive_infonce(layer(a.float()), b.float().requires_grad_(), 0.5)
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32


@needs_extension
def test_loss_scale_preserves_small_half_precision_gradients():
    a, b, tau = inputs(512, 512, 16)
    leaf = a.half().requires_grad_()
    (af.adaptive_infonce(leaf, b.half(), tau.float()) * 65536).backward()
    truth = loss_and_gradients(af.adaptive_infonce, (a.half().double(), b.half().double(), tau), torch.float64)[1]
    assert ((leaf.grad / 65536 - truth).abs().max() / truth.abs().max()).item() < 1e-3


@pytest.mark.parametrize("options", [{}, {"block": 10}, {"symmetric": True}, {"label_smoothing": 0.1}])
def test_autocast_rounds_no_product_of_plain_pytorch(options):
    tensors = [x.float() for x in inputs(30, 30, 16)]
    expected = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32, backend="reference", **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32, backend="reference", **options)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
