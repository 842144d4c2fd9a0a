"""The op for stacks of dense layers, against its reference in float64; opcheck and torch.compile with mixtures."""

import math
from itertools import product

import pytest
import torch

import adaftr_fast as af
import adaftr_fast.ops.mlp.op  # defines the ops
from adaftr_fast.ops.mlp import reference
from tests.ops.marks import needs_extension, on_kernels
from tests.tolerances import assert_as_accurate

OP, MIXTURE = torch.ops.adaftr_fast.mlp, torch.ops.adaftr_fast.mixture
BACKWARD = torch.ops.adaftr_fast.mlp_backward
# Widths of the inputs; then per stack the input it reads, the widths of its layers, and how many end in a relu.
EXPERTS = ([184], [(0, [192], 1), (0, [6], 0)])
TOWERS = ([64, 37], [(0, [64, 32, 16, 1], 3), (1, [5, 1, 70], 3), (0, [33], 0)])
ONES = ([1], [(0, [1, 1], 1)])
ROWS = (1, 13, 64, 65, 200)


def arguments(rows, shape, seed=0):
    """Returns float64 inputs, weights and biases, and the op's lists of integers."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    widths, stacks = shape
    inputs = [normal(rows, width) for width in widths]
    weights = []
    biases = []
    for read, layers, _ in stacks:
        width = widths[read]
        for out in layers:
            weights.append(normal(out, width) / width**0.5)
            biases.append(normal(out))
            width = out
    reads, depths, rectified = zip(*((read, len(layers), relus) for read, layers, relus in stacks))
    return (inputs, weights, biases), (list(reads), list(depths), list(rectified))


def run(function, tensors, lists, dtype, *, reduced=False, keep=lambda layer: True):
    """Returns outputs and gradients, with an upstream gradient for the layers where ``keep`` is true."""
    inputs, weights, biases = ([t.to(dtype).detach().requires_grad_() for t in each] for each in tensors)
    reads, depths, rectified = lists
    outputs = function(inputs, reads, weights, biases, depths, rectified, reduced)
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype) for y in outputs]
    kept = [layer for layer in range(len(outputs)) if keep(layer)]
    grads = torch.autograd.grad(
        [outputs[layer] for layer in kept],
        [*inputs, *weights, *biases],
        [upstream[layer] for layer in kept],
        materialize_grads=True,
    )
    return [*(y.detach() for y in outputs), *grads]


@on_kernels("mlp", torch.float64, torch.float32)
def test_as_accurate_as_pytorch(dtype, instruction_set):
    for shape, rows in product((EXPERTS, TOWERS, ONES), ROWS):
        tensors, lists = arguments(rows, shape)
        truth = run(reference.mlp, tensors, lists, torch.float64)
        own = run(reference.mlp, tensors, lists, dtype)
        for found, true, pytorch in zip(run(OP, tensors, lists, dtype), truth, own):
            assert_as_accurate(found, true, pytorch, dtype, f"{shape}, {rows} rows")


@on_kernels("mlp", torch.bfloat16)
@pytest.mark.parametrize("shape", [EXPERTS, TOWERS, ONES], ids=["experts", "towers", "ones"])
def test_bfloat16_as_accurate_as_pytorch(shape, dtype, instruction_set):
    for rows in ROWS:
        assert_bfloat16_as_accurate(rows, shape)


def assert_bfloat16_as_accurate(rows, shape):
    (inputs, weights, biases), lists = arguments(rows, shape)
    inputs = [x.to([torch.float32, torch.bfloat16][i % 2]) for i, x in enumerate(inputs)]  # autocast gives both types

    def at(dtype):
        return [[t.to(dtype) for t in each] for each in (inputs, weights, biases)]

    _, w, b = at(torch.float32)
    outputs = OP(inputs, lists[0], w, b, *lists[1:], True)
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    truth, pytorch = (
        reference.mlp(x, lists[0], w, b, *lists[1:], False) for x, w, b in (at(torch.float64), at(torch.bfloat16))
    )
    for found, true, own in zip(outputs, truth, pytorch):
        assert_as_accurate(found, true, own, torch.bfloat16)

    # All gradients are taken at these outputs: at others a sum may have another sign, and the relu another mask. Five
    # draws are compared together, because the sum of one may be near 0 by chance and no measure of its terms' error.
    found = []
    truth = []
    pytorch = []
    for _ in range(5):
        upstream = [torch.randn(y.shape).bfloat16() for y in outputs]
        wanted = [1] * len(inputs)
        found.append(BACKWARD(upstream, inputs, outputs, lists[0], w, b, *lists[1:], wanted))
        assert [g.dtype for g in found[-1]] == [t.dtype for t in (*inputs, *w, *b)]
        for draws, dtype in ((truth, torch.float64), (pytorch, torch.bfloat16)):
            above, below = ([t.to(dtype) for t in each] for each in (upstream, outputs))
            x, *parameters = at(dtype)
            draws.append(reference.mlp_backward(above, x, below, lists[0], *parameters, *lists[1:], wanted))
    for each in zip(*(map(torch.stack, zip(*draws)) for draws in (found, truth, pytorch))):
        assert_as_accurate(*each, torch.bfloat16)


@pytest.mark.parametrize("instruction_set", ["avx512_bf16"], indirect=True)
def test_bfloat16_products_round_both_operands(instruction_set):
    (inputs, weights, biases), (reads, depths, rectified) = arguments(70, EXPERTS)
    x, w, b = ([t.float() for t in each] for each in (inputs, weights, biases))
    rounded_x, rounded_w = ([t.bfloat16().float() for t in each] for each in (x, w))
    for y, same in zip(
        OP(x, reads, w, b, depths, rectified, True), OP(rounded_x, reads, rounded_w, b, depths, rectified, True)
    ):
        assert torch.equal(y, same)


@pytest.mark.parametrize("kept", [[0], [3], [1, 5], [7]])
def test_layers_without_an_upstream_gradient(kept):
    tensors, lists = arguments(70, TOWERS)
    truth = run(reference.mlp, tensors, lists, torch.float64, keep=lambda layer: layer in kept)
    for x, true in zip(run(OP, tensors, lists, torch.float64, keep=lambda layer: layer in kept), truth):
        torch.testing.assert_close(x, true, rtol=1e-12, atol=1e-12)


def test_closed_form_gradients_equal_autograd():
    (inputs, weights, biases), lists = arguments(9, TOWERS)
    found = run(reference.mlp, (inputs, weights, biases), lists, torch.float64)
    outputs, grads = found[:8], found[8:]
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=g, dtype=torch.float64) for y in outputs]
    reads, depths, rectified = lists
    closed = reference.mlp_backward(
        upstream, inputs, outputs, reads, weights, biases, depths, rectified, [1] * len(inputs)
    )
    for x, y in zip(closed, grads):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_strided_inputs_and_frozen_parameters():
    (inputs, weights, biases), (reads, depths, rectified) = arguments(40, EXPERTS)
    x, weight = inputs[0].T.contiguous().T, weights[0].T.contiguous().T.requires_grad_()
    expected = reference.mlp(inputs, reads, weights, biases, depths, rectified, False)
    found = OP([x], reads, [weight, weights[1]], biases, depths, rectified)
    for y, true in zip(found, expected):
        torch.testing.assert_close(y, true, rtol=1e-12, atol=1e-12)
    found[0].sum().backward()
    torch.testing.assert_close(weight.grad, (expected[0] > 0).double().T @ inputs[0], rtol=1e-12, atol=1e-12)
    assert x.grad is None
    assert weights[1].grad is None


@pytest.mark.parametrize("reduced", [False, True])
def test_empty_batch(reduced):
    tensors, lists = arguments(0, TOWERS)
    found = run(OP, tensors, lists, torch.float32, reduced=reduced)
    assert [tuple(y.shape) for y in found[:2]] == [(0, 64), (0, 32)]
    assert all(not grad.any() for grad in found[8:])


@on_kernels("mlp", torch.float32, torch.bfloat16)
def test_nan_propagates_through_relu(dtype, instruction_set):
    (inputs, weights, biases), (reads, depths, rectified) = arguments(20, EXPERTS)
    inputs[0][3, 5] = torch.nan
    x, w, b = ([t.float() for t in each] for each in (inputs, weights, biases))
    hidden = OP(x, reads, w, b, depths, rectified, dtype == torch.bfloat16)
    assert hidden[0][3].isnan().all()
    assert hidden[0][:3].isfinite().all()
    assert hidden[0][4:].isfinite().all()


@needs_extension
@pytest.mark.parametrize("reduced", [False, True])
def test_bitwise_equal_across_runs(reduced):
    tensors, lists = arguments(1024, TOWERS)
    first, *others = (run(OP, tensors, lists, torch.float32, reduced=reduced) for _ in range(4))
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(first, other))


def test_gradcheck_and_double_backward():
    tensors, (reads, depths, rectified) = arguments(4, ([3, 2], [(0, [4, 2], 1), (1, [3], 1), (0, [2], 0)]))
    sizes = [len(each) for each in tensors]
    flat = [t.requires_grad_() for each in tensors for t in each]

    def function(*leaves):
        inputs, weights, biases = _split(list(leaves), sizes)
        return tuple(OP(inputs, reads, weights, biases, depths, rectified))

    assert torch.autograd.gradcheck(function, flat)
    if af.cpu_capability() != "none":
        assert torch.autograd.gradgradcheck(function, flat)


def _split(leaves, sizes):
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [leaves[end - size : end] for size, end in zip(sizes, ends)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_opcheck(dtype):
    tensors, (reads, depths, rectified) = arguments(9, ([3, 2], [(0, [4, 2], 1), (1, [3], 1)]))
    inputs, weights, biases = ([t.to(dtype).requires_grad_() for t in each] for each in tensors)
    torch.library.opcheck(OP.default, (inputs, reads, weights, biases, depths, rectified))
    experts, logits = torch.randn(7, 3, 5, dtype=dtype), torch.randn(7, 2, 3, dtype=dtype)
    torch.library.opcheck(MIXTURE.default, (experts.requires_grad_(), logits.requires_grad_()))


def test_compiles_to_one_graph():
    (inputs, weights, biases), (reads, depths, rectified) = arguments(33, EXPERTS)

    def function(x, *parameters):
        hidden, logits = OP([x], reads, list(parameters[:2]), list(parameters[2:]), depths, rectified)
        return sum(each.square().sum() for each in MIXTURE(hidden.unflatten(1, (3, -1)), logits.unflatten(1, (2, -1))))

    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaves = [t.float().detach().requires_grad_() for t in (*inputs, *weights, *biases)]
        loss = f(*leaves)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for x, y in zip(*results):
        torch.testing.assert_close(x, y)


@needs_extension
@on_kernels("mlp", torch.float32, torch.bfloat16)
def test_infinity_does_not_reach_padding(dtype, instruction_set):
    """Kernels read pairs of numbers; at odd widths the last number is paired with padding."""
    x = torch.tensor([[math.inf, 1.0]])
    for width in (1, 2, 3, 16, 17, 33):
        weights, biases = [-torch.ones(width, 2), torch.ones(4, width)], [torch.zeros(width), torch.ones(4)]
        hidden, out = OP([x], [0], weights, biases, [2], [1], dtype == torch.bfloat16)
        assert hidden.dtype == dtype
        assert torch.equal(hidden.float(), torch.zeros(1, width))
        assert torch.equal(out.float(), torch.ones(1, 4))
        above = torch.full((1, width), math.inf, dtype=dtype)
        found = BACKWARD(
            [above], [torch.ones(1, 2)], [above], [0], [torch.ones(width, 2)], [torch.zeros(width)], [1], [0], [1]
        )
        assert torch.equal(found[0], torch.full((1, 2), math.inf))


@needs_extension
def test_autocast_returns_bfloat16():
    (inputs, weights, biases), (reads, depths, rectified) = arguments(20, EXPERTS)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = OP(
            [inputs[0].float()], reads, [w.float() for w in weights], [b.float() for b in biases], depths, rectified
        )
    assert [y.dtype for y in outputs] == [torch.bfloat16] * 2


@needs_extension
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": []}, ValueError, "mlp: expected one input"),
        ({"inputs": [torch.randn(4, 3), torch.randn(5, 2)]}, ValueError, "mlp: inputs must be .* of one B"),
        ({"inputs": [torch.randn(4, 3).long()]}, TypeError, "mlp: inputs must be Float or BFloat16, got Long"),
        ({"weights": [torch.randn(4, 2)]}, ValueError, r"mlp: weights\[0\] must be \[out, 3\]"),
        ({"weights": [torch.randn(4, 3).double()]}, TypeError, r"mlp: weights\[0\] and biases\[0\] must be Float"),
        ({"biases": [torch.randn(3)]}, ValueError, r"mlp: biases\[0\] must be \[4\]"),
        ({"reads": [1]}, ValueError, r"mlp: reads\[0\] must number one of 1 inputs, got 1"),
        ({"depths": [2]}, ValueError, "mlp: expected 2 weights"),
        ({"rectified": [2]}, ValueError, r"rectified\[0\] between 0 and it"),
    ],
)
def test_bad_arguments(change, error, message):
    good = {"inputs": [torch.randn(4, 3)], "reads": [0], "weights": [torch.randn(4, 3)], "biases": [torch.randn(4)]}
    with pytest.raises(error, match=message):
        OP(**(good | {"depths": [1], "rectified": [1]} | change))
