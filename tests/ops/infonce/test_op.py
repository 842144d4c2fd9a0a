"""The loss as an op: gradcheck, double backward, opcheck, torch.compile, empty and bad input."""

import numpy as np
import pytest
import torch

import adaftr_fast as af
from adaftr_fast.ops.infonce.reference import infonce_gradients, infonce_rows
from tests.ops.infonce.inputs import inputs, masks


def test_closed_form_gradients_equal_autograd():
    tensors = [t.requires_grad_() for t in inputs(17, 23, 5)]
    o = masks(17, 23)
    mask = (o["positive_index"], o["row_group"], o["column_group"])
    found = torch.autograd.grad((infonce_rows(*tensors, *mask).loss * o["row_weight"]).sum(), tensors)
    closed = infonce_gradients(*(t.detach() for t in tensors), o["row_weight"], *mask)
    for x, y in zip(found, closed):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("create_graph", [False, True])
def test_inputs_computed_from_one_another(create_graph):
    a, _, _ = (t.requires_grad_() for t in inputs(6, 6, 4))
    tau = a[:, 0].sigmoid() + 0.1
    expected = torch.nn.functional.cross_entropy(a @ a.flip(0).T / tau[:, None], torch.arange(6))
    for backend in ("auto", "reference"):
        loss = af.adaptive_infonce(a, a.flip(0), tau, backend=backend)
        (found,) = torch.autograd.grad(loss, a, create_graph=create_graph, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(expected, a, retain_graph=True)[0])


@pytest.mark.parametrize("given", [(), ("positive_index",), ("positive_index", "row_group", "column_group")])
def test_each_gradient_alone_beside_optional_arguments(given):
    a, b, tau = (t.requires_grad_() for t in inputs(9, 11, 4))
    options = {name: masks(9, 11)[name] for name in given}
    weight = masks(9, 11)["row_weight"].requires_grad_()

    def gradients(backend):
        loss = af.adaptive_infonce(a, b, tau, row_weight=weight, reduction="sum", backend=backend, **options)
        return [torch.autograd.grad(loss, x, retain_graph=True)[0] for x in (weight, a, b, tau, a)]

    for x, y in zip(gradients("auto"), gradients("reference")):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False, True, True)])
def test_opcheck(needs):
    a, b, tau = (t.requires_grad_(n) for t, n in zip(inputs(9, 11, 4), needs))
    scale = torch.full((9,), 0.5, dtype=torch.float64)
    positive = torch.randint(0, 11, (9,))
    for op in (torch.ops.adaftr_fast.infonce.default, torch.ops.adaftr_fast.infonce_reference.default):
        torch.library.opcheck(op, (a, b, tau, positive, None, None, scale, *needs, True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_to_one_graph(reduction):
    def function(a, b, tau):
        return af.adaptive_infonce(a, b, tau, reduction=reduction, return_stats=True)

    tensors = [t.float() for t in inputs(33, 33, 7)]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for f in (function, compiled):
        leaves = [t.clone().requires_grad_() for t in tensors]
        loss, stats = f(*leaves)
        loss.sum().backward()
        results.append([loss, *stats, *(t.grad for t in leaves)])
    for x, y in zip(*results):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_candidates(backend, symmetric):
    a = torch.randn(3, 4, requires_grad=True)
    ignored = torch.full((3,), -100)
    loss = af.adaptive_infonce(a, a[:0], 0.1, positive_index=ignored, symmetric=symmetric, backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert a.grad.abs().sum() == 0


A, B = torch.randn(4, 3), torch.randn(6, 3)


@pytest.mark.parametrize(
    "tau", [2, np.float32(2), np.int64(2), torch.tensor(2), torch.full((1,), 2.0), torch.full((4, 1), 2.0)], ids=repr
)
def test_forms_of_tau(tau):
    assert torch.equal(af.adaptive_infonce(A, B, tau), af.adaptive_infonce(A, B, torch.full((4,), 2.0)))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((A[0], B, 0.1), {}, ValueError, "h_ctr must be a 2-dim tensor"),
        ((A, B[:, :2], 0.1), {}, ValueError, "same width"),
        ((A[:, :0], B[:, :0], 0.1), {}, ValueError, "same width d >= 1"),
        ((A.long(), B, 0.1), {}, TypeError, "h_ctr must be float32"),
        ((A, B[:2], 0.1), {}, ValueError, r"at least one row per row of h_ctr \(4\)"),
        ((A, B, 0.0), {}, ValueError, "positive finite"),
        ((A, B, torch.ones(5)), {}, ValueError, r"shape \(1,\), \(4,\) or \(4, 1\), got \(5,\)"),
        ((A, B, torch.ones(4, dtype=torch.bool)), {}, TypeError, "tau must be of real numbers, got torch.bool"),
        ((A, B, (0.1, 0.1)), {}, ValueError, "requires symmetric=True, got 2 elements"),
        ((A, B, (0.1, 0.1, 0.1)), {"symmetric": True}, ValueError, "must be a pair"),
        ((A, B, True), {}, ValueError, "positive finite number"),
        ((A, B, 0.1), {"row_weight": [1.0] * 4}, TypeError, "row_weight must be a tensor, got list"),
        ((A, B, 0.1), {"reduction": "max"}, ValueError, "reduction must be"),
        ((A, B, 0.1), {"backend": "cuda"}, ValueError, "backend must be"),
        (
            (A, B, 0.1),
            {"positive_index": torch.zeros(3, dtype=torch.long)},
            ValueError,
            "positive_index must have shape",
        ),
        ((A, B, 0.1), {"positive_index": torch.zeros(4)}, TypeError, "positive_index must be int64"),
        ((A, B, 0.1), {"row_group": torch.zeros(4, dtype=torch.long)}, ValueError, "requires N = B"),
        ((A, B, 0.1), {"column_group": torch.zeros(6, dtype=torch.long)}, ValueError, "requires row_group"),
        ((A, B, 0.1), {"row_weight": torch.ones(4, dtype=torch.long)}, TypeError, "row_weight must be floating"),
        ((A, B.to("meta"), 0.1), {}, ValueError, "on one device, got cpu and meta"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        af.adaptive_infonce(*arguments, **options)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_temperature_names_the_row(backend):
    ignored = torch.tensor([0, 1, -100, 3])
    for value in (0.0, -1.0, float("nan"), float("inf")):
        tau = torch.ones(4)
        tau[2] = value
        with pytest.raises(RuntimeError, match=r"tau must be positive and finite, got tau\[2\]"):
            af.adaptive_infonce(A, B, tau, backend=backend)
        assert torch.isfinite(af.adaptive_infonce(A, B, tau, positive_index=ignored, backend=backend))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_positive_index_names_the_row(backend):
    with pytest.raises(RuntimeError, match=r"got positive_index\[1\] = 6"):
        af.adaptive_infonce(A, B, 0.1, positive_index=torch.tensor([0, 6, 1, 2]), backend=backend)


def test_forward_mode_is_refused():
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    with pytest.raises(NotImplementedError, match="adaptive_infonce: has no forward-mode derivative"):
        torch.func.jvp(lambda a: af.adaptive_infonce(a, b, 0.5), (a,), (torch.ones_like(a),))
    with pytest.raises(NotImplementedError, match="adaptive_infonce"):
        torch.func.jvp(lambda t: af.adaptive_infonce(a, b, t), (torch.rand(5) + 0.1,), (torch.ones(5),))
