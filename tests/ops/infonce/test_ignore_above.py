"""The option ignore_above of adaptive_infonce: candidates far more similar than the positive are no negatives."""

import math

import pytest
import torch
import torch.nn.functional as F

import adaftr_fast as af
from adaftr_fast.ops.infonce.reference import infonce_rows
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.marks import needs_extension, on_threads
from tests.tolerances import assert_as_accurate

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def apart(tensors, dtype, margin, positive=None):
    """Returns the tensors without the rows that have a similarity so near the bound that rounding may cross it."""
    a, b, tau = (t.to(dtype).double() if i < 2 else t for i, t in enumerate(tensors))
    positive = torch.arange(len(a)) if positive is None else positive
    for factor in (0.5, 0.6, 0.7, 0.8):
        gap = a @ b.T - (a * b[positive]).sum(1, keepdim=True) - margin  # [B, N]
        gap.scatter_(1, positive[:, None], math.inf)
        near = (gap.abs() < 1e-4).any(1)
        if not near.any():
            return a, b, tau
        a[near] = (factor * b[positive[near]]).to(dtype).double()  # the positive is then among the most similar
    raise AssertionError("a similarity remains near the bound")


def literal(a, b, tau, margin=0.0, **_):
    """The loss in PyTorch, with the similarities stored."""
    s = a @ b.T
    y = torch.arange(len(a))
    ignored = (s > s[y, y][:, None] + margin).scatter(1, y[:, None], False).detach()
    return F.cross_entropy((s.to(tau.dtype) / tau[:, None]).masked_fill(ignored, -torch.inf), y)


@pytest.mark.parametrize("margin", [0.0, 0.3, -0.5])
def test_reference_equals_the_masked_softmax(margin):
    tensors = inputs(60, 80, 9)
    found = loss_and_gradients(af.adaptive_infonce, tensors, torch.float64, ignore_above=margin, backend="reference")
    for x, y in zip(found, loss_and_gradients(literal, tensors, torch.float64, margin=margin)):
        torch.testing.assert_close(x, y)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "d"), [(1, 5, 8), (63, 63, 64), (100, 129, 8), (257, 700, 100)])
def test_matches_reference(rows, columns, d, dtype, instruction_set):
    tensors = apart(inputs(rows, columns, d), dtype, 0.25)
    assert_matches(tensors, dtype, ignore_above=0.25)


@needs_extension
@pytest.mark.parametrize("seed", range(12))
def test_gradient_of_tau_where_it_nearly_cancels(seed, instruction_set):
    tensors = apart(inputs(70, 70, 128, seed=seed), torch.bfloat16, 0.25)
    assert_matches(tensors, torch.bfloat16, ignore_above=0.25)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_thread_apart_match_reference(dtype, instruction_set):
    with on_threads(3):
        assert_matches(apart(inputs(801, 900, 33), dtype, 0.25), dtype, ignore_above=0.25)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_reference_beyond_the_stored_columns(dtype, instruction_set):
    assert_matches(apart(inputs(65, 33_000, 33), dtype, 0.5), dtype, ignore_above=0.5)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_with_positives_groups_and_weights(dtype, reduction, instruction_set):
    options = masks(90, 130)
    tensors = apart(inputs(90, 130, 24), dtype, 0.1, options["positive_index"].clamp(min=0))
    options["row_weight"] = options["row_weight"].to(dtype if dtype == torch.float64 else torch.float32)
    upstream = torch.linspace(-1, 2, 90) if reduction == "none" else None
    options |= {"reduction": reduction, "ignore_above": 0.1}
    results = {
        name: loss_and_gradients(af.adaptive_infonce, tensors, kind, upstream, backend=backend, **options)
        for name, backend, kind in (
            ("own", "cpu", dtype), ("truth", "reference", torch.float64), ("torch", "reference", dtype)
        )
    }  # fmt: skip
    for own, truth, theirs in zip(results["own"], results["truth"], results["torch"]):
        assert_as_accurate(own, truth, theirs, dtype)


@needs_extension
def test_statistics(instruction_set):
    a, b, tau = apart(inputs(50, 70, 12, scale=3), torch.float64, 1.0)
    truth = infonce_rows(a, b, tau, ignore_above=1.0)
    _, stats = af.adaptive_infonce(a, b, tau, return_stats=True, backend="cpu", ignore_above=1.0)
    for x, y in zip(stats, (truth.lse, truth.positive_logit, truth.top1, truth.entropy)):
        torch.testing.assert_close(x, y)


@needs_extension
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_frozen_inputs(frozen, dtype, instruction_set):
    tensors = apart(inputs(90, 90, 20), dtype, 0.2)
    results = []
    for fixed in ((), frozen):
        leaves = [t.to(dtype).requires_grad_(i not in fixed) for i, t in enumerate(tensors)]
        af.adaptive_infonce(*leaves, backend="cpu", ignore_above=0.2).backward()
        results.append([leaf.grad for leaf in leaves])
    for i, (whole, partial) in enumerate(zip(*results)):
        if i not in frozen:
            torch.testing.assert_close(partial, whole, rtol=1e-4, atol=1e-6)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, 100, 300])
def test_a_tie_with_the_positive_is_a_negative(d, dtype, instruction_set):
    """The bound is exclusive, and equal candidates have equal similarities to the bit, wherever they stand."""
    a, b, tau = (t.to(dtype) for t in inputs(70, 70, d))
    loss = af.adaptive_infonce(a, torch.cat((b, b)), tau.float(), ignore_above=0.0, reduction="none", backend="cpu")
    assert (loss > math.log(2) - 1e-6).all(), "the copy of the positive has its logit"


@needs_extension
def test_rows_without_a_negative_left(instruction_set):
    a, b, tau = (t.float() for t in inputs(40, 40, 8))
    loss, d_a, d_b, d_tau = loss_and_gradients(
        af.adaptive_infonce, (a, b, tau), torch.float32, ignore_above=-1e4, backend="cpu"
    )
    assert loss == 0
    assert not any(g.any() for g in (d_a, d_b, d_tau))


@needs_extension
def test_nan_propagates(instruction_set):
    a, b, tau = (t.float() for t in inputs(40, 40, 4))
    b[17, 2] = math.nan
    assert not torch.isfinite(af.adaptive_infonce(a, b, tau, ignore_above=0.5, backend="cpu"))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_first_and_second_derivatives(symmetric, backend):
    tensors = [t.requires_grad_() for t in apart(inputs(6, 6, 3), torch.float64, 0.2)]

    def function(*x):
        return af.adaptive_infonce(*x, symmetric=symmetric, ignore_above=0.2, backend=backend)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_symmetric_masks_each_direction_by_its_own_positives():
    a, b, _ = inputs(30, 30, 6)
    tau = torch.full((30,), 0.5, dtype=torch.float64)
    found = af.adaptive_infonce(a, b, tau, symmetric=True, ignore_above=0.1)
    torch.testing.assert_close(found, (literal(a, b, tau, 0.1) + literal(b, a, tau, 0.1)) / 2)


def test_column_bias_counts_as_part_of_the_similarity():
    a, b, tau = inputs(30, 30, 6)
    bias = torch.linspace(-1, 1, 30, dtype=torch.float64)
    s = a @ b.T + tau[:, None] * bias
    y = torch.arange(30)
    ignored = (s > s.diagonal()[:, None] + 0.1).scatter(1, y[:, None], False)
    expected = F.cross_entropy((s / tau[:, None]).masked_fill(ignored, -torch.inf), y)
    torch.testing.assert_close(af.adaptive_infonce(a, b, tau, column_bias=bias, ignore_above=0.1), expected)


def test_under_torch_func():
    tensors = inputs(20, 20, 5)
    found = torch.func.grad(lambda *x: af.adaptive_infonce(*x, ignore_above=0.1), argnums=(0, 1, 2))(*tensors)
    true = torch.func.grad(lambda *x: literal(*x, margin=0.1), argnums=(0, 1, 2))(*tensors)
    torch.testing.assert_close(found, true)


def test_compiles_to_one_graph_for_each_margin():
    tensors = inputs(33, 33, 7)
    compiled = torch.compile(af.adaptive_infonce, fullgraph=True, backend="aot_eager")
    for margin in (0.1, 0.2, 0.3):
        leaves, true = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
        compiled(*leaves, ignore_above=margin).backward()
        literal(*true, margin=margin).backward()
        for x, y in zip(leaves, true):
            torch.testing.assert_close(x.grad, y.grad)


def test_opcheck():
    a, b, tau = (t.requires_grad_() for t in inputs(9, 11, 4))
    arguments = (a, b, tau, None, None, None, torch.ones(9).double(), True, True, True, True, 0.2)
    for op in (torch.ops.adaftr_fast.infonce.default, torch.ops.adaftr_fast.infonce_reference.default):
        torch.library.opcheck(op, arguments)


@pytest.mark.parametrize(
    ("margin", "error"),
    [(math.nan, ValueError), (math.inf, ValueError), (-math.inf, ValueError), ("0.1", TypeError), (True, TypeError)],
)
def test_bad_margins(margin, error):
    a, b, tau = inputs(4, 4, 3)
    with pytest.raises(error, match="adaptive_infonce: ignore_above must be a finite number or None, got "):
        af.adaptive_infonce(a, b, tau, ignore_above=margin)
