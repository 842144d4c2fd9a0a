"""Programs of torch.fx are shortened without a change of their results."""

import operator

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from adaftr_fast.training.program import shorten
from tests.tolerances import assert_same_bits


def shortened(work, *inputs):
    """Returns the program of a function, shortened, and the names of its calls."""
    program = make_fx(work)(*inputs)
    shorten(program)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return program, [str(each) for each in calls if each is not operator.getitem]


def test_the_gradient_of_the_sum_of_the_losses_is_folded():
    weights = [nn.Parameter(torch.randn(3)) for _ in range(2)]

    def work(x):
        losses = torch.stack([(w * x).sum() for w in weights] + [(w * w).sum() for w in weights])
        losses.backward(torch.ones(4))
        gradients = [w.grad for w in weights]
        for w in weights:
            w.grad = None
        return losses.detach(), gradients

    x = torch.randn(3)
    program, calls = shortened(work, x)
    assert not [each for each in calls if "ones" in each or "select" in each]
    assert calls.count("aten._foreach_add.List") == 1
    for given in (x, torch.randn(3)):
        losses, gradients = program(given)
        expected, wanted = work(given)
        assert_same_bits([losses, *gradients], [expected, *wanted])


def test_a_tensor_that_is_held_is_no_constant():
    held = torch.ones(3)
    program, _ = shortened(lambda x: x * (held * 2), torch.ones(3))
    held.fill_(5)
    assert program(torch.ones(3)).tolist() == [10, 10, 10]


def test_values_drawn_at_random_and_written_in_place_are_no_constants():
    program, _ = shortened(lambda x: x + torch.rand(3), torch.zeros(3))
    assert not torch.equal(program(torch.zeros(3)), program(torch.zeros(3)))
    program, _ = shortened(lambda x: torch.zeros(3).add_(x), torch.ones(3))
    assert [program(torch.ones(3)).tolist() for _ in range(2)] == [[1, 1, 1], [1, 1, 1]]


def test_sums_stay_before_a_write_in_place():
    def work(x):
        y = x * 2
        first, second = y + x, y + y
        y.mul_(3)
        return first, second

    program, _ = shortened(work, torch.ones(3))
    assert_same_bits(program(torch.ones(3)), work(torch.ones(3)))


def test_a_product_with_ones_that_changes_shape_dtype_or_strides_stays():
    def work(x):
        products = x * torch.ones(2, 3), x * torch.ones(3, dtype=torch.float64)
        dense = x.expand(2, 3) * torch.ones(2, 3)
        return [each + 1 for each in products], dense.view(6) + 1

    program, calls = shortened(work, torch.ones(3))
    (wide, double), flat = program(torch.full((3,), 2.0))
    assert wide.tolist() == [[3, 3, 3]] * 2
    assert double.dtype == torch.float64
    assert flat.tolist() == [3] * 6
    assert calls.count("aten.mul.Tensor") == 3


def test_results_are_memory_of_their_own():
    """Clipping writes gradients, which must be neither inputs nor constants."""

    def work(x):
        ones = torch.ones(3)
        return x * ones, (x * ones)[:2], ones * 2, x * (ones * ones) + 1

    program, _ = shortened(work, torch.ones(3))
    x = torch.full((3,), 2.0)
    expected = work(x)
    for _ in range(2):
        results = program(x)
        assert_same_bits(results, expected)
        for each in results:
            each.mul_(0.5)
    assert x.tolist() == [2, 2, 2]
