"""The ops for stacks of dense layers and for mixtures of experts, against their references in
float64.
"""

import math
from itertools import product

import pytest
import torch

import adaftr_fast as af
import adaftr_fast.ops.mlp.op  # defines the ops
from adaftr_fast.ops.mlp import reference
from tests.ops.marks import needs_cpp_gradients, needs_extension, on_kernels
from tests.tolerances import assert_as_accurate, assert_same_bits

OP, MIXTURE = torch.ops.adaftr_fast.mlp, torch.ops.adaftr_fast.mixture
BACKWARD = torch.ops.adaftr_fast.mlp_backward
# Widths of the inputs; then per stack the input it reads, the widths of its layers, and how many
# end in a relu.
EXPERTS = ([184], [(0, [192], 1), (0, [6], 0)])
TOWERS = ([64, 37], [(0, [64, 32, 16, 1], 3), (1, [5, 1, 70], 3), (0, [33], 0)])
ONES = ([1], [(0, [1, 1], 1)])
SMALL = ([3, 2], [(0, [4, 2], 1), (1, [3], 1), (0, [2], 0)])
ROWS = (1, 13, 65, 200)


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(rows, shape):
    """Returns float64 inputs, weights and biases, and the op's lists of integers."""
    widths, stacks = shape
    inputs = [normal(rows, width, seed=width) for width in widths]
    weights = []
    biases = []
    for read, layers, _ in stacks:
        width = widths[read]
        for out in layers:
            weights.append(normal(out, width, seed=out) / width**0.5)
            biases.append(normal(out, seed=width))
            width = out
    reads, depths, rectified = zip(*((read, len(layers), relus) for read, layers, relus in stacks))
    return (inputs, weights, biases), (list(reads), list(depths), list(rectified))


def experts(rows, tasks, count, width):
    return normal(rows, count, width), 5 * normal(rows, tasks, count, seed=1)


def gradients(outputs, leaves, kept=None):
    """Returns outputs and gradients, with an upstream gradient for the outputs in ``kept``
    (default: all).
    """
    kept = range(len(outputs)) if kept is None else kept
    upstream = [normal(*outputs[i].shape, seed=i).to(outputs[i].dtype) for i in kept]
    grads = torch.autograd.grad(
        [outputs[i] for i in kept], leaves, upstream, materialize_grads=True
    )
    return [*(y.detach() for y in outputs), *grads]


def run(function, tensors, lists, dtype, kept=None, *, reduced=False):
    inputs, weights, biases = (
        [t.to(dtype).detach().requires_grad_() for t in each] for each in tensors
    )
    outputs = function(inputs, lists[0], weights, biases, *lists[1:], reduced)
    return gradients(outputs, [*inputs, *weights, *biases], kept)


def mix(function, tensors, dtype, kept=None):
    leaves = [t.to(dtype).detach().requires_grad_() for t in tensors]
    return gradients(function(*leaves), leaves, kept)


def assert_accurate(found, truth, pytorch, dtype, what):
    for own, true, theirs in zip(found, truth, pytorch, strict=True):
        assert_as_accurate(own, true, theirs, dtype, what)


@on_kernels("mlp", torch.float64, torch.float32)
def test_as_accurate_as_pytorch(dtype, instruction_set):
    for shape, rows in product((EXPERTS, TOWERS, ONES), ROWS):
        of_op, *of_reference = (
            run(function, *arguments(rows, shape), kind)
            for function, kind in (
                (OP, dtype),
                (reference.mlp, torch.float64),
                (reference.mlp, dtype),
            )
        )
        assert_accurate(of_op, *of_reference, dtype, f"{shape}, {rows} rows")


@on_kernels("mixture", torch.float64, torch.float32, torch.bfloat16)
def test_mixtures_as_accurate_as_pytorch(dtype, instruction_set):
    for size in ((1, 1, 1, 1), (65, 2, 3, 64), (200, 5, 7, 37)):
        of_op, *of_reference = (
            mix(function, experts(*size), kind)
            for function, kind in (
                (MIXTURE, dtype),
                (reference.mixture, torch.float64),
                (reference.mixture, dtype),
            )
        )
        assert_accurate(of_op, *of_reference, dtype, str(size))


@on_kernels("mlp", torch.bfloat16)
def test_bfloat16_as_accurate_as_pytorch(dtype, instruction_set):
    for shape, rows in product((EXPERTS, TOWERS, ONES), ROWS):
        (inputs, weights, biases), lists = arguments(rows, shape)
        # Autocast gives inputs of both types.
        inputs = [x.to([torch.float32, torch.bfloat16][i % 2]) for i, x in enumerate(inputs)]
        assert_bfloat16_accurate((inputs, weights, biases), lists)


def assert_bfloat16_accurate(tensors, lists):
    def at(dtype):
        return [[t.to(dtype) for t in each] for each in tensors]

    inputs, (_, w, b) = tensors[0], at(torch.float32)
    outputs = OP(inputs, lists[0], w, b, *lists[1:], True)
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    truth, pytorch = (
        reference.mlp(x, lists[0], w, b, *lists[1:], False)
        for x, w, b in (at(torch.float64), at(torch.bfloat16))
    )
    assert_accurate(outputs, truth, pytorch, torch.bfloat16, "forward")

    # All gradients are taken at these outputs: at others a sum may have another sign, and the relu
    # another mask. Five draws are compared together, because the sum of one may be near 0 by chance
    # and no measure of its terms' error.
    draws = ([], [], [])
    wanted = [1] * len(inputs)
    for _ in range(5):
        upstream = [torch.randn(y.shape).bfloat16() for y in outputs]
        draws[0].append(BACKWARD(upstream, inputs, outputs, lists[0], w, b, *lists[1:], wanted))
        assert [g.dtype for g in draws[0][-1]] == [t.dtype for t in (*inputs, *w, *b)]
        for found, dtype in zip(draws[1:], (torch.float64, torch.bfloat16)):
            above, below = ([t.to(dtype) for t in each] for each in (upstream, outputs))
            x, *parameters = at(dtype)
            found.append(
                reference.mlp_backward(above, x, below, lists[0], *parameters, *lists[1:], wanted)
            )
    assert_accurate(
        *([torch.stack(x) for x in zip(*each)] for each in draws), torch.bfloat16, "backward"
    )


@pytest.mark.parametrize("instruction_set", ["avx512_bf16", "neon_bf16"], indirect=True)
def test_bfloat16_products_round_both_operands(instruction_set):
    (inputs, weights, biases), lists = arguments(70, EXPERTS)
    x, w, b = ([t.float() for t in each] for each in (inputs, weights, biases))
    rounded_x, rounded_w = ([t.bfloat16().float() for t in each] for each in (x, w))
    found, same = (
        OP(*each, b, *lists[1:], True)
        for each in ((x, lists[0], w), (rounded_x, lists[0], rounded_w))
    )
    assert_same_bits(found, same)


def test_outputs_without_an_upstream_gradient_and_extreme_logits():
    tensors, lists = arguments(70, TOWERS)
    for kept in ([0], [3], [1, 5], [7]):
        found, truth = (
            run(function, tensors, lists, torch.float64, kept) for function in (OP, reference.mlp)
        )
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    x, logits = experts(9, 2, 3, 4)
    logits[0] = torch.tensor([1e4, 1e4 - 1, -1e4])
    truth = mix(reference.mixture, (x, logits), torch.float64, [1])
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for found, true in zip(mix(MIXTURE, (x, logits), dtype, [1]), truth, strict=True):
            torch.testing.assert_close(found.double(), true, rtol=tolerance, atol=tolerance)


def test_strided_inputs_and_frozen_parameters():
    (inputs, weights, biases), (reads, depths, rectified) = arguments(40, EXPERTS)
    x, weight = inputs[0].T.contiguous().T, weights[0].T.contiguous().T.requires_grad_()
    expected = reference.mlp(inputs, reads, weights, biases, depths, rectified, False)
    found = OP([x], reads, [weight, weights[1]], biases, depths, rectified)
    torch.testing.assert_close(list(found), list(expected), rtol=1e-12, atol=1e-12)
    found[0].sum().backward()
    torch.testing.assert_close(
        weight.grad, (expected[0] > 0).double().T @ inputs[0], rtol=1e-12, atol=1e-12
    )
    assert x.grad is None
    assert weights[1].grad is None


@needs_extension
@pytest.mark.parametrize("reduced", [False, True])
def test_empty_batches_and_the_same_bits_in_every_run(reduced):
    found = run(OP, *arguments(0, TOWERS), torch.float32, reduced=reduced)
    assert [tuple(y.shape) for y in found[:2]] == [(0, 64), (0, 32)]
    assert all(not grad.any() for grad in found[8:])
    assert [tuple(y.shape) for y in MIXTURE(*experts(0, 2, 3, 4))] == [(0, 4)] * 2
    first, *others = (
        run(OP, *arguments(1024, TOWERS), torch.float32, reduced=reduced) for _ in range(3)
    )
    for other in others:
        assert_same_bits(first, other)


@on_kernels("mlp", torch.float32, torch.bfloat16)
def test_nan_propagates_through_relu(dtype, instruction_set):
    (inputs, weights, biases), lists = arguments(20, EXPERTS)
    inputs[0][3, 5] = torch.nan
    x, w, b = ([t.float() for t in each] for each in (inputs, weights, biases))
    hidden = OP(x, lists[0], w, b, *lists[1:], dtype == torch.bfloat16)[0]
    assert hidden.isnan().all(1).nonzero().tolist() == [[3]]
    assert hidden.isfinite().all(1).sum() == 19


def test_first_and_second_derivatives():
    tensors, (reads, depths, rectified) = arguments(4, SMALL)
    sizes = [len(each) for each in tensors]
    leaves = [t.requires_grad_() for each in tensors for t in each]

    def stacks(*leaves):
        inputs, weights, biases = (leaves[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(3))
        return tuple(OP(inputs, reads, weights, biases, depths, rectified))

    def mixtures(*leaves):
        return tuple(MIXTURE(*leaves))

    for function, given in (
        (stacks, leaves),
        (mixtures, [x.requires_grad_() for x in experts(4, 2, 3, 5)]),
    ):
        assert torch.autograd.gradcheck(function, given)
        if af.cpu_capability() != "none":
            assert torch.autograd.gradgradcheck(function, given)


def test_opcheck():
    """Compilation to one graph among the rest."""
    tensors, (reads, depths, rectified) = arguments(9, SMALL)
    inputs, weights, biases = ([t.float().requires_grad_() for t in each] for each in tensors)
    torch.library.opcheck(OP.default, (inputs, reads, weights, biases, depths, rectified))
    torch.library.opcheck(
        MIXTURE.default, [x.float().requires_grad_() for x in experts(7, 2, 3, 5)]
    )


@needs_extension
@on_kernels("mlp", torch.float32, torch.bfloat16)
def test_infinity_does_not_reach_padding(dtype, instruction_set):
    """Kernels read pairs of numbers; at odd widths the last number is paired with padding."""
    x = torch.tensor([[math.inf, 1.0]])
    for width in (1, 2, 3, 16, 17, 33):
        weights = [-torch.ones(width, 2), torch.ones(4, width)]
        biases = [torch.zeros(width), torch.ones(4)]
        hidden, out = OP([x], [0], weights, biases, [2], [1], dtype == torch.bfloat16)
        assert hidden.dtype == dtype
        assert torch.equal(hidden.float(), torch.zeros(1, width))
        assert torch.equal(out.float(), torch.ones(1, 4))
        above = torch.full((1, width), math.inf, dtype=dtype)
        parameters = [torch.ones(width, 2)], [torch.zeros(width)]
        found = BACKWARD([above], [torch.ones(1, 2)], [above], [0], *parameters, [1], [0], [1])
        assert torch.equal(found[0], torch.full((1, 2), math.inf))


@needs_cpp_gradients
def test_autocast_returns_bfloat16():
    tensors, lists = arguments(20, EXPERTS)
    inputs, weights, biases = ([x.float() for x in each] for each in tensors)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = OP(inputs, lists[0], weights, biases, *lists[1:])
    assert [y.dtype for y in outputs] == [torch.bfloat16] * 2
