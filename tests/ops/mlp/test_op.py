"""The ops for stacks of dense layers and for mixtures of experts, beside their accuracy
(tests/ops/test_cases.py).
"""

import math
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
SMALL = ([3, 2], [(0, [4, 2], 1), (1, [3], 1), (0, [2], 0)])


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
    for own, true, theirs in zip(found, *of_reference, strict=True):
        assert_as_accurate(own, true, theirs, dtype)


@pytest.mark.parametrize("instruction_set", ["avx512_bf16", "neon_bf16"], indirect=True)
def test_bfloat16_products_round_both_operands(instruction_set):
    stacks = drawn(70, EXPERTS).to(torch.float32)
    rounded = stacks.to(torch.bfloat16).to(torch.float32)
    same = stacks._replace(inputs=rounded.inputs, weights=rounded.weights)
    assert_same_bits(OP(*stacks, True), OP(*same, True))


@needs_extension
@pytest.mark.parametrize("reduced", [False, True])
def test_the_same_bits_in_every_run(reduced):
    stacks = drawn(1024, TOWERS).to(torch.float32, requires_grad=True)
    results = []
    for _ in range(3):
        outputs = OP(*stacks, reduced)
        results.append(
            [*outputs, *torch.autograd.grad(sum(y.sum() for y in outputs), stacks.tensors)]
        )
    assert_same_bits(results[1:], results[:1] * 2)


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
    stacks.weights[1].requires_grad_(False)
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
