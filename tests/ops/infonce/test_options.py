"""What single options of the losses mean, beside what tests of all losses compare
(test_losses.py).
"""

import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

import adaftr_fast as af
from adaftr_fast.ops.infonce.targets import scan_by
from tests.ops.infonce.inputs import DTYPES, assert_matches, inputs, loss_and_gradients
from tests.ops.infonce.losses import (
    EVERY,
    SIGMOID,
    biased,
    both_directions,
    draw_apart,
    draw_biased,
    draw_both,
    literal,
    literal_rows,
)
from tests.ops.marks import needs_extension, on_kernels
from tests.tolerances import assert_as_accurate, assert_same_bits

BACKENDS = pytest.mark.parametrize(
    "backend", ["reference", pytest.param("cpu", marks=needs_extension)]
)


@pytest.mark.parametrize("create_graph", [False, True])
def test_inputs_computed_from_one_another(create_graph):
    a = inputs(6, 6, 4)[0].requires_grad_()
    tau = a[:, 0].sigmoid() + 0.1
    expected = F.cross_entropy(a @ a.flip(0).T / tau[:, None], torch.arange(6))
    for backend in ("auto", "reference"):
        loss = af.adaptive_infonce(a, a.flip(0), tau, backend=backend)
        (found,) = torch.autograd.grad(loss, a, create_graph=create_graph, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(expected, a, retain_graph=True)[0])


@pytest.mark.parametrize(
    "tau",
    [
        2,
        np.float32(2),
        np.int64(2),
        torch.tensor(2),
        torch.full((1,), 2.0),
        torch.full((4, 1), 2.0),
    ],
    ids=repr,
)
def test_forms_of_tau(tau):
    a, b, _ = inputs(4, 6, 3)
    assert torch.equal(
        af.adaptive_infonce(a, b, tau), af.adaptive_infonce(a, b, torch.full((4,), 2.0))
    )


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_excluded_candidates_may_be_nan_or_infinite(dtype, instruction_set):
    others = torch.arange(64) != 40
    for rows, bad in product((1, 5, 33), (math.nan, math.inf, 3.4e38)):
        a, b, tau = inputs(rows, 64, 8)
        b[40] = bad
        ones = torch.ones(rows, dtype=torch.int64)
        groups = {"row_group": ones, "column_group": (~others).long()}
        for options in (
            {"positive_index": -100 * ones},
            {"positive_index": 0 * ones, "row_weight": torch.zeros(rows)},
            {"positive_index": 0 * ones, **groups},
        ):
            given = options | {"reduction": "sum", "backend": "cpu"}
            _, d_a, d_b, _ = loss_and_gradients(af.adaptive_infonce, (a, b, tau), dtype, **given)
            assert d_b[others].isfinite().all()
            if "row_group" not in options:
                assert not d_a.any()
                assert not d_b.any()


@needs_extension
def test_autocast_and_the_scale_of_a_loss():
    a, b, tau = (x.float() for x in inputs(30, 30, 16))
    layer = torch.nn.Linear(16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = af.adaptive_infonce(layer(a), b.requires_grad_(), 0.5)
    loss.backward()
    assert loss.dtype == layer.weight.grad.dtype == torch.float32
    a, b, tau = inputs(512, 512, 16)  # whose gradients are small numbers of float16
    leaf = a.half().requires_grad_()
    (af.adaptive_infonce(leaf, b.half(), tau.float()) * 65536).backward()
    truth = loss_and_gradients(
        af.adaptive_infonce, (a.half().double(), b.half().double(), tau), torch.float64
    )[1]
    assert ((leaf.grad / 65536 - truth).abs().max() / truth.abs().max()).item() < 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"block": 10}, {"symmetric": True}, {"label_smoothing": 0.1}], ids=str
)
def test_autocast_rounds_no_product_of_plain_pytorch(options):
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            call = partial(af.adaptive_infonce, backend="reference", **options)
            results.append(loss_and_gradients(call, inputs(30, 30, 16), torch.float32))
    assert_same_bits(*results)


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_sums_by_scans(rows):
    """What CUDA tensors take."""
    x = inputs(1, rows, 5)[1]
    for size in (1, 2, 5, 400):
        number = torch.randint(0, size, (rows,), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            scan_by(number, x, size), x.new_zeros(size, 5).index_add(0, number, x)
        )
        if rows > 1 and size > 1:
            spoiled = x.clone()
            spoiled[number == number[0]] = torch.nan
            assert scan_by(number, spoiled, size).isnan().any(1).nonzero().tolist() == [[number[0]]]


@BACKENDS
@pytest.mark.parametrize(
    "case", [name for name in EVERY if name.startswith(("positives", "smoothing", "margin"))]
)
def test_symmetric_is_the_mean_of_two_directions(case, backend):
    (a, b, tau), options = EVERY[case].drawn(40, 50, 10)
    group = {k: options[k] for k in ("row_group", "column_group") if k in options}
    rows = torch.arange(40)
    back = {k: v for k, v in options.items() if k in ("margin", "label_smoothing")}
    index = options.get("positive_index", rows)
    anchor = index.clamp(min=0)
    if group:
        back |= {"row_group": group["column_group"][anchor], "column_group": group["row_group"]}
    if "positive_group" in options:
        row, column = options["positive_group"]
        column[:40] = row  # so that every anchor has a positive
        if group:
            back["row_group"] = group["column_group"][:40] = torch.arange(40) + 100
        back["positive_group"] = (row, row)
    else:
        back["positive_index"] = torch.where(index == -100, -100, rows)
    tau_b = torch.linspace(0.1, 1, 50, dtype=torch.float64)
    expected = (
        literal_rows(a, b, tau, **options) + literal_rows(b[anchor], a, tau_b[anchor], **back)
    ) / 2
    found = af.adaptive_infonce(
        a, b, (tau, tau_b), symmetric=True, reduction="none", backend=backend, **options
    )
    torch.testing.assert_close(found, expected)


def test_a_bias_of_candidates_beyond_the_batch():
    """Sampled negatives with a correction each, weights exp(bias), of which no row has its
    positive.
    """
    a, b, tau = inputs(20, 60, 8)
    index = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    given = {"positive_index": index, "column_bias": weight.log()}
    for options in ({"label_smoothing": 0.2}, {"margin": 0.3}, {"ignore_above": 0.1}):
        found = af.adaptive_infonce(a, b, tau, **given, **options)
        torch.testing.assert_close(found, literal(a, b, tau, **given, **options))
    logits = a @ b.T / tau[:, None]
    lse = (weight * logits.exp()).sum(1).log()
    positive = (logits + weight.log())[torch.arange(20), index]
    loss, stats = af.adaptive_infonce(a, b, tau, reduction="none", return_stats=True, **given)
    torch.testing.assert_close(
        (loss, stats.lse, stats.positive_logit), (lse - positive, lse, positive)
    )


@pytest.mark.parametrize("case", [1, 10, "similarities take the bias back"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_accuracy_of_a_bias(dtype, case):
    """The half types hold tau and the bias as sums of two terms: of one, a large bias would lose
    digits.
    """
    index = torch.arange(0, 33, 3)
    a, b, tau, bias = draw_biased(11, 40, 12)
    size = case if isinstance(case, int) else 1
    if size != case:
        bias = 50 * (torch.arange(40) % 2).double()
        a[:, 0], b[:, 0] = tau, -bias
    exact = [
        a.to(dtype).double(),
        b.to(dtype).double(),
        tau.float().double(),
        (size * bias).float().double(),
    ]
    found = loss_and_gradients(
        partial(biased, af.adaptive_infonce), exact, dtype, positive_index=index
    )
    truth, pytorch = (
        loss_and_gradients(partial(biased, literal), exact, kind, positive_index=index)
        for kind in (torch.float64, torch.promote_types(dtype, torch.float32))
    )
    for what, own, true, eager in zip(
        ("loss", "h_ctr", "h_cvr", "tau", "bias"), found, truth, pytorch, strict=True
    ):
        assert_as_accurate(own, true, eager, dtype, what)


@needs_extension
@on_kernels("infonce", torch.bfloat16)
def test_ignore_above_where_the_gradient_of_tau_nearly_cancels(dtype, instruction_set):
    for seed in range(6):
        assert_matches(
            draw_apart(70, 70, 128, seed=seed), dtype, ignore_above=0.25, what=f"seed {seed}"
        )


def test_any_bound_of_ignore_above_in_both_directions():
    for bound in (0.0, 0.3, -0.5):
        found, true = (
            loss_and_gradients(loss, draw_both(30, 30, 6), torch.float64, ignore_above=bound)
            for loss in (both_directions, literal)
        )
        torch.testing.assert_close(found, true)


@BACKENDS
def test_any_number_ignores_a_row(backend):
    tensors = inputs(12, 12, 5)
    index = torch.arange(12)
    expected = index.masked_fill(index % 3 == 0, -100)
    call = partial(af.adaptive_infonce, *tensors, backend=backend, reduction="none")
    truth = call(positive_index=expected)
    for ignored in (-1, 11):  # a candidate, too
        given = expected.masked_fill(expected == -100, ignored)
        own = call(positive_index=given, ignore_index=ignored)
        kept = given != ignored
        assert torch.equal(own[kept], truth[kept])
        assert not own[~kept].any()
    with pytest.raises(RuntimeError, match=r"in \[0, 12\) or -1, got positive_index\[0\] = -100"):
        call(positive_index=expected, ignore_index=-1)
    labels = torch.arange(12) % 4 - 100  # of which -100 is a label of its own
    own = call(positive_group=labels, ignore_index=-98)
    truth = call(positive_group=torch.where(labels == -98, -100, labels + 200))
    assert torch.equal(own, truth)


def test_weights_that_cancel_have_a_sum_and_weights_of_0_a_mean():
    a, b, tau = inputs(4, 4, 3)
    weight = torch.tensor([1.0, -1.0, 2.0, -2.0])
    assert af.adaptive_infonce(a, b, tau, row_weight=weight, reduction="sum") != 0
    assert af.adaptive_infonce(a, b, tau, row_weight=weight * 0) == 0
    for call in (af.adaptive_infonce, torch.compile(af.adaptive_infonce, backend="aot_eager")):
        assert not call(a, b, tau, row_weight=weight).isfinite()


@pytest.mark.parametrize("block", [12, 13])
@pytest.mark.parametrize("options", [{"return_stats": True}, {"symmetric": True}])
def test_a_block_of_all_rows_is_the_ordinary_call(options, block):
    tensors = inputs(12, 12, 5)
    own, plain = (
        af.adaptive_infonce(*tensors, **options, **more) for more in ({"block": block}, {})
    )
    assert_same_bits(own, plain)


@BACKENDS
def test_a_row_alone_in_its_block_has_no_loss(backend):
    options = {"block": 4, "reduction": "none", "return_stats": True, "backend": backend}
    found = loss_and_gradients(
        af.adaptive_infonce, inputs(9, 9, 5), torch.float64, torch.ones(9), **options
    )
    losses, d_a, d_b, d_tau, lse, positive_logit, top1, entropy = found
    assert losses[8] == entropy[8] == 0
    assert top1[8]
    assert lse[8] == positive_logit[8]
    for gradient in (d_a, d_b, d_tau):
        assert (gradient[8] == 0).all()
        assert (gradient[:8] != 0).all()


def test_the_reference_of_the_sigmoid_loss_takes_parts_of_large_batches():
    tensors = SIGMOID.draw(2100, 2100, 2)  # more than 2^22 similarities
    found, true = (
        loss_and_gradients(loss, tensors, torch.float64, **options)
        for loss, options in (
            (af.sigmoid_contrast, {"backend": "reference"}),
            (SIGMOID.literal, {}),
        )
    )
    torch.testing.assert_close(found, true)


@pytest.mark.parametrize(
    "options", [{}, {"symmetric": True}, {"margin": 0.1}, {"block": 4}], ids=str
)
def test_backward_under_torch_func_and_compiled_autograd(options):
    """Backward is linear in the upstream gradient, so the tangent of that passes through."""
    a, b = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    loss = af.adaptive_infonce(a, b, torch.ones(8), **options)
    expected = torch.autograd.grad(loss, a, retain_graph=True)[0]

    def gradient(upstream):
        return torch.autograd.grad(loss, a, upstream, retain_graph=True)[0]

    one = torch.tensor(1.0)
    three = torch.tensor(3.0)
    several = torch.autograd.grad(
        loss, a, torch.stack((one, three)), retain_graph=True, is_grads_batched=True
    )
    torch.testing.assert_close(several[0], torch.stack((expected, 3 * expected)))
    tangents = [torch.func.jvp(gradient, (one,), (three,))[1]]
    with forward_ad.dual_level():
        tangents.append(forward_ad.unpack_dual(gradient(forward_ad.make_dual(one, three))).tangent)
    for each in tangents:
        torch.testing.assert_close(each, 3 * expected)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        af.adaptive_infonce(a, b, torch.ones(8), **options).backward()
    torch.testing.assert_close(a.grad, expected)
