"""Options and special inputs of adaptive_infonce on CPU, for every instruction set."""

import math

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.ops.infonce.reference import infonce_rows
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.marks import needs_extension
from tests.tolerances import assert_as_accurate


@needs_extension
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 3.4e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_excluded_candidates_may_be_nan_or_infinite(rows, bad, dtype, instruction_set):
    a, b, tau = (x.float() for x in inputs(rows, 64, 8))
    b[40] = bad
    elsewhere = torch.zeros(rows, dtype=torch.int64)
    groups = {"row_group": torch.ones(rows, dtype=torch.int64), "column_group": (torch.arange(64) == 40).long()}
    for options in (
        {"positive_index": torch.full((rows,), -100)},
        {"positive_index": elsewhere, "row_weight": torch.zeros(rows)},
        {"positive_index": elsewhere, **groups},
    ):
        leaves = [x.to(dtype).requires_grad_() for x in (a, b)]
        af.adaptive_infonce(*leaves, tau, reduction="sum", backend="cpu", **options).backward()
        others = torch.arange(64) != 40
        assert leaves[1].grad[others].isfinite().all()
        if "row_group" not in options:
            assert not any(leaf.grad.any() for leaf in leaves)


@needs_extension
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("options", [{"reduction": "mean"}, {"reduction": "none"}, {"label_smoothing": 0.1}])
def test_a_row_of_weight_0_adds_nothing_whatever_it_holds(options, backend, instruction_set):
    a, b, tau = inputs(20, 20, 4)
    weight = (torch.arange(20) != 3).float()
    upstream = torch.ones(20) if options.get("reduction") == "none" else None

    def results():
        given = {"row_weight": weight, "backend": backend, **options}
        return loss_and_gradients(af.adaptive_infonce, (a, b, tau), torch.float32, upstream, **given)

    clean = results()
    for value in (math.nan, math.inf):
        a[3, 1] = value
        assert all(torch.equal(x, y) for x, y in zip(results(), clean))


@needs_extension
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_options(reduction, symmetric, dtype, instruction_set):
    rows, columns = 61, 80
    options = masks(rows, columns)
    options["row_weight"] = options["row_weight"].to(dtype)
    upstream = torch.linspace(-1, 2, rows) if reduction == "none" else None
    a, b, tau = inputs(rows, columns, 24)
    options |= {"reduction": reduction, "symmetric": symmetric}
    function = af.adaptive_infonce
    if symmetric:
        tau_column = torch.linspace(0.1, 1, columns, dtype=torch.float64)
        function = lambda a, b, tau, **o: af.adaptive_infonce(a, b, (tau, tau_column.to(tau.dtype)), **o)  # noqa: E731
    results = {}
    for name, backend, kind in (
        ("truth", "reference", torch.float64),
        ("own", "cpu", dtype),
        ("torch", "reference", dtype),
    ):
        results[name] = loss_and_gradients(function, (a, b, tau), kind, upstream, backend=backend, **options)
    for own, truth, theirs in zip(results["own"], results["truth"], results["torch"]):
        assert_as_accurate(own, truth, theirs, dtype)


@needs_extension
def test_statistics(instruction_set):
    a, b, tau = inputs(50, 70, 12, scale=3)
    options = masks(50, 70)
    truth = infonce_rows(a, b, tau, options["positive_index"], options["row_group"], options["column_group"])
    _, stats = af.adaptive_infonce(a, b, tau, return_stats=True, backend="cpu", **options)
    assert not any(s.requires_grad for s in stats)
    torch.testing.assert_close(stats.lse, truth.lse)
    torch.testing.assert_close(stats.positive_logit, truth.positive_logit)
    torch.testing.assert_close(stats.entropy, truth.entropy)
    assert torch.equal(stats.top1, truth.top1)


@needs_extension
@pytest.mark.parametrize("frozen", ["h_ctr", "h_cvr", "tau", "h_ctr h_cvr", "h_cvr tau", "h_ctr tau"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_frozen_inputs_do_not_change_other_gradients(frozen, reduction, instruction_set):
    tensors = dict(zip(("h_ctr", "h_cvr", "tau"), inputs(90, 90, 20)))

    def gradients(frozen):
        leaves = {k: v.clone().requires_grad_(k not in frozen) for k, v in tensors.items()}
        af.adaptive_infonce(*leaves.values(), reduction=reduction, backend="cpu").sum().backward()
        return {k: v.grad for k, v in leaves.items()}

    whole, partial = gradients(()), gradients(frozen.split())
    for name, gradient in partial.items():
        if name in frozen.split():
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, whole[name], rtol=1e-12, atol=1e-14)


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
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [[3, 700], [3, 20, 700], [700, 3, 899]])
def test_groups_mask_all_but_a_few_negatives(kept, dtype, instruction_set):
    rows, columns = 5, 900  # more columns than a block has, of whose vectors most lanes are masked
    column_group = torch.ones(columns, dtype=torch.int64)
    column_group[kept] = 0
    options = {"row_group": torch.ones(rows, dtype=torch.int64), "column_group": column_group}
    assert_matches(inputs(rows, columns, 8), dtype, positive_index=torch.full((rows,), 850), **options)


@needs_extension
def test_ignored_row_does_not_leak_nan(instruction_set):
    a, b, tau = (t.float() for t in inputs(20, 20, 4))
    a[3] = float("nan")
    positive = torch.arange(20)
    positive[3] = -100
    a.requires_grad_(), b.requires_grad_()
    loss = af.adaptive_infonce(a, b, tau, positive_index=positive, backend="cpu")
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


@needs_extension
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_propagate_to_the_loss(value, instruction_set):
    a, b, tau = (t.float() for t in inputs(40, 40, 4))
    b[17, 2] = value
    for backend in ("cpu", "reference"):
        loss, stats = af.adaptive_infonce(a, b, tau, backend=backend, return_stats=True)
        assert not torch.isfinite(loss)
        if value != value:
            assert not stats.top1.any()
            assert stats.entropy.isnan().all()


@needs_extension
def test_strided_offset_and_expanded_inputs(instruction_set):
    a, b, tau = inputs(40, 40, 10)
    plain = af.adaptive_infonce(a, b, tau[:1].expand(40), backend="cpu")
    padded = torch.zeros(41, 23, dtype=torch.float64)
    padded[1:, 3:13] = a
    strided = af.adaptive_infonce(padded[1:, 3:13], b.T.contiguous().T, tau[:1].expand(40), backend="cpu")
    assert torch.equal(plain, strided)
    assert torch.equal(plain, af.adaptive_infonce(a, b, tau[0], backend="cpu"))
    assert torch.equal(plain, af.adaptive_infonce(a, b, tau[0].item(), backend="cpu"))


@needs_extension
def test_mixed_dtypes_and_autocast():
    a, b, tau = inputs(30, 30, 16)
    mixed = af.adaptive_infonce(a.bfloat16(), b.float(), tau.float())
    assert torch.equal(mixed, af.adaptive_infonce(a.bfloat16().float(), b.float(), tau.float()))
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
