"""The ops for stacks of dense layers and for mixtures of experts, against their references in
float64.
"""

import math
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import adaftr_fast as af
import adaftr_fast.ops.mlp.op  # defines the ops
from adaftr_fast.nn.log_loss import log_loss
from adaftr_fast.ops.mlp import reference
from tests.ops.marks import needs_cpp_gradients, needs_extension, on_kernels
from tests.tolerances import assert_as_accurate, assert_same_bits

OP = torch.ops.adaftr_fast.mlp
MIXTURE = torch.ops.adaftr_fast.mixture
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


class Stacks(NamedTuple):
    """The arguments of the op, in order."""

    inputs: list[Tensor]
    reads: list[int]
    weights: list[Tensor]
    biases: list[Tensor]
    depths: list[int]
    rectified: list[int]

    @property
    def tensors(self):
        return [*self.inputs, *self.weights, *self.biases]

    def to(self, dtype, requires_grad=False):
        """Returns copies of another type, which are leaves."""
        lists = {name: getattr(self, name) for name in ("inputs", "weights", "biases")}
        return self._replace(
            **{
                name: [t.detach().to(dtype).requires_grad_(requires_grad) for t in each]
                for name, each in lists.items()
            }
        )


def drawn(rows, shape):
    """Returns float64 arguments."""
    widths, stacks = shape
    weights = []
    biases = []
    for read, layers, _ in stacks:
        width = widths[read]
        for out in layers:
            weights.append(normal(out, width, seed=out) / width**0.5)
            biases.append(normal(out, seed=width))
            width = out
    inputs = [normal(rows, width, seed=width) for width in widths]
    reads, depths, rectified = zip(*((read, len(layers), relus) for read, layers, relus in stacks))
    return Stacks(inputs, list(reads), weights, biases, list(depths), list(rectified))


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


def run(function, stacks, dtype, kept=None, *, reduced=False):
    stacks = stacks.to(dtype, requires_grad=True)
    return gradients(function(*stacks, reduced), stacks.tensors, kept)


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
            run(function, drawn(rows, shape), kind)
            for function, kind in (
                (OP, dtype),
                (reference.mlp, torch.float64),
                (reference.mlp, dtype),
            )
        )
        assert_accurate(of_op, *of_reference, dtype, f"{shape}, {rows} rows")


@on_kernels("mixture", torch.bfloat16)
def test_gradients_of_mixtures_may_have_two_types_or_be_missing(dtype, instruction_set):
    values = [x.to(dtype) for x in experts(65, 3, 4, 40)]
    types = (torch.float32, None, dtype)
    above = [kind and normal(65, 40, seed=t).to(kind) for t, kind in enumerate(types)]
    found = torch.ops.adaftr_fast.mixture_backward(above, *values)
    of_reference = []
    for kind in (torch.float64, dtype):
        leaves = [x.to(kind).requires_grad_() for x in values]
        outputs = reference.mixture(*leaves)
        upstream = [above[0].to(kind), above[2].to(kind)]
        of_reference.append(torch.autograd.grad([outputs[0], outputs[2]], leaves, upstream))
    assert_accurate(found, *of_reference, dtype, "backward")


@on_kernels("mlp", torch.bfloat16)
def test_bfloat16_as_accurate_as_pytorch(dtype, instruction_set):
    for shape, rows in product((EXPERTS, TOWERS, ONES), ROWS):
        stacks = drawn(rows, shape)
        # Autocast gives inputs of both types.
        types = [torch.float32, torch.bfloat16]
        inputs = [x.to(types[i % 2]) for i, x in enumerate(stacks.inputs)]
        assert_bfloat16_accurate(stacks._replace(inputs=inputs))


def assert_bfloat16_accurate(stacks):
    op = stacks.to(torch.float32)._replace(inputs=stacks.inputs)
    outputs = OP(*op, True)
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    of_reference = [stacks.to(dtype) for dtype in (torch.float64, torch.bfloat16)]
    truth, pytorch = (reference.mlp(*each, False) for each in of_reference)
    assert_accurate(outputs, truth, pytorch, torch.bfloat16, "forward")

    # All gradients are taken at these outputs: at others a sum may have another sign, and the relu
    # another mask. Five draws are compared together, because the sum of one may be near 0 by chance
    # and no measure of its terms' error.
    draws = ([], [], [])
    wanted = [1] * len(op.inputs)
    for _ in range(5):
        upstream = [torch.randn(y.shape).bfloat16() for y in outputs]
        found = BACKWARD(upstream, op.inputs, outputs, *op[1:], wanted)
        assert [g.dtype for g in found] == [t.dtype for t in op.tensors]
        draws[0].append(found)
        for draw, each in zip(draws[1:], of_reference):
            above, below = ([t.to(each.weights[0]) for t in ts] for ts in (upstream, outputs))
            draw.append(reference.mlp_backward(above, each.inputs, below, *each[1:], wanted))
    stacked = ([torch.stack(x) for x in zip(*draw)] for draw in draws)
    assert_accurate(*stacked, torch.bfloat16, "backward")


@pytest.mark.parametrize("instruction_set", ["avx512_bf16", "neon_bf16"], indirect=True)
def test_bfloat16_products_round_both_operands(instruction_set):
    stacks = drawn(70, EXPERTS).to(torch.float32)
    rounded = stacks.to(torch.bfloat16).to(torch.float32)
    same = stacks._replace(inputs=rounded.inputs, weights=rounded.weights)
    assert_same_bits(OP(*stacks, True), OP(*same, True))


def test_outputs_without_an_upstream_gradient_and_extreme_logits():
    stacks = drawn(70, TOWERS)
    for kept in ([0], [3], [1, 5], [7]):
        found, truth = (run(f, stacks, torch.float64, kept) for f in (OP, reference.mlp))
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    x, logits = experts(9, 2, 3, 4)
    logits[0] = torch.tensor([1e4, 1e4 - 1, -1e4])
    truth = mix(reference.mixture, (x, logits), torch.float64, [1])
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for found, true in zip(mix(MIXTURE, (x, logits), dtype, [1]), truth, strict=True):
            torch.testing.assert_close(found.double(), true, rtol=tolerance, atol=tolerance)


def test_strided_inputs_and_frozen_parameters():
    stacks = drawn(40, EXPERTS)
    x, weight = (t.T.contiguous().T for t in (stacks.inputs[0], stacks.weights[0]))
    weight.requires_grad_()
    expected = reference.mlp(*stacks, False)
    found = OP(*stacks._replace(inputs=[x], weights=[weight, stacks.weights[1]]))
    torch.testing.assert_close(list(found), list(expected), rtol=1e-12, atol=1e-12)
    found[0].sum().backward()
    gradient = (expected[0] > 0).double().T @ x
    torch.testing.assert_close(weight.grad, gradient, rtol=1e-12, atol=1e-12)
    assert x.grad is None
    assert stacks.weights[1].grad is None


@needs_extension
@pytest.mark.parametrize("reduced", [False, True])
def test_empty_batches_and_the_same_bits_in_every_run(reduced):
    found = run(OP, drawn(0, TOWERS), torch.float32, reduced=reduced)
    assert [tuple(y.shape) for y in found[:2]] == [(0, 64), (0, 32)]
    assert all(not grad.any() for grad in found[8:])
    assert [tuple(y.shape) for y in MIXTURE(*experts(0, 2, 3, 4))] == [(0, 4)] * 2
    first, *others = (
        run(OP, drawn(1024, TOWERS), torch.float32, reduced=reduced) for _ in range(3)
    )
    for other in others:
        assert_same_bits(first, other)


def test_outputs_of_other_rows_or_widths_raise():
    stacks = drawn(4, SMALL).to(torch.float32)
    outputs = OP(*stacks)
    for number, output in enumerate(outputs):
        for wrong in (output[:1], output[:, :1], output[None], output[0]):
            given = [*outputs[:number], wrong, *outputs[number + 1 :]]
            upstream = [torch.ones_like(y) for y in given]
            with pytest.raises(ValueError, match=rf"outputs\[{number}\] must be \[4, "):
                BACKWARD(upstream, stacks.inputs, given, *stacks[1:], [1, 1])


@needs_extension
def test_depths_whose_sum_overflows_raise():
    x, weight, bias = torch.ones(2, 3), torch.ones(3, 3), torch.ones(3)
    depths = [2**62] * 4 + [1]
    with pytest.raises(ValueError, match="as many as the sum of depths, got 1 and 1"):
        OP([x], [0] * 5, [weight], [bias], depths, [0] * 5)


@on_kernels("mlp", torch.float32, torch.bfloat16)
def test_nan_propagates_through_relu(dtype, instruction_set):
    stacks = drawn(20, EXPERTS).to(torch.float32)
    stacks.inputs[0][3, 5] = torch.nan
    hidden = OP(*stacks, dtype == torch.bfloat16)[0]
    assert hidden.isnan().all(1).nonzero().tolist() == [[3]]
    assert hidden.isfinite().all(1).sum() == 19


def test_first_and_second_derivatives():
    stacks = drawn(4, SMALL).to(torch.float64, requires_grad=True)
    inputs = len(stacks.inputs)
    layers = len(stacks.weights)

    def outputs(*leaves):
        x = leaves[:inputs]
        weights = leaves[inputs:-layers]
        biases = leaves[-layers:]
        return tuple(OP(*stacks._replace(inputs=x, weights=weights, biases=biases)))

    def mixtures(*leaves):
        return tuple(MIXTURE(*leaves))

    mixed = [x.requires_grad_() for x in experts(4, 2, 3, 5)]
    for function, given in ((outputs, stacks.tensors), (mixtures, mixed)):
        assert torch.autograd.gradcheck(function, given)
        if af.cpu_capability() != "none":
            assert torch.autograd.gradgradcheck(function, given)


def test_opcheck():
    """Compilation to one graph among the rest."""
    torch.library.opcheck(OP.default, drawn(9, SMALL).to(torch.float32, requires_grad=True))
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
    with torch.autocast("cpu", torch.bfloat16):
        outputs = OP(*drawn(20, EXPERTS).to(torch.float32))
    assert [y.dtype for y in outputs] == [torch.bfloat16] * 2


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradients_of_log_loss(weighted):
    logits = normal(6, 3).requires_grad_()
    labels = (normal(6, 3, seed=1) > 0).double()
    weight = normal(6, seed=2).abs() if weighted else None

    def loss(z):
        return log_loss(z, labels, weight)

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_log_loss_under_autocast_has_the_dtype_of_pytorch(dtype):
    logits = normal(5, 2).to(dtype)
    labels = torch.ones(5, 2, dtype=torch.promote_types(dtype, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        found = log_loss(logits, labels)
        pytorch = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert found.dtype == pytorch.dtype
    torch.testing.assert_close(found.mean(), pytorch)


@needs_extension
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), torch.ones(3), None), r"must be \[B, T\] both, got \[3\] and \[3\]"),
        ((torch.ones(3, 2), torch.ones(3, 1), None), r"got \[3, 2\] and \[3, 1\]"),
        ((torch.ones(3, 2), torch.ones(3, 2), torch.ones(2)), r"weight must be \[3\], got \[2\]"),
        ((torch.ones(3, 2, dtype=torch.half), torch.ones(3, 2), None), "Float or Double, got Half"),
    ],
)
def test_log_loss_refuses(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        torch.ops.adaftr_fast.log_loss(*arguments, 3.0)
