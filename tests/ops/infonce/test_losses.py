"""What all losses have in common, on CPU: accuracy on every kernel, range, options, derivatives, empty input."""

import math
from functools import partial
from itertools import product

import pytest
import torch

from tests.ops.infonce.inputs import DTYPES, loss_and_gradients, winning
from tests.ops.infonce.losses import EVERY, LOSSES, OTHERS
from tests.ops.marks import each_kernel, needs_extension, on_threads

SIZES = [(1, 1, 1), (1, 5, 8), (2, 2, 31), (63, 63, 64), (100, 129, 8), (257, 300, 100), (600, 700, 40)]
TEMPERED = [name for name in LOSSES if name not in ("ignore_above", "sigmoid")]
MASKED = ("masks", "both, masks", "blocks", "sigmoid", "ignore_above")


def on_losses(names, *dtypes):
    """Runs a test on every kernel of these losses for these types."""
    cases = [case for name in names for case in each_kernel(LOSSES[name].kernels, *dtypes, prefix=(name,))]
    return pytest.mark.parametrize(("name", "dtype", "instruction_set"), cases, indirect=["instruction_set"])


def reductions(name, rows):
    """Returns options of a call whose forward computes the gradients, and of one whose backward does."""
    none = {"reduction": "none", "upstream": torch.linspace(-1, 2, rows)}
    return [{"reduction": "sum"}] if name == "sigmoid" else [{"reduction": "mean"}, none]


def each(names):
    return pytest.mark.parametrize("name", names)


@needs_extension
@on_losses(LOSSES, *DTYPES)
def test_accuracy(name, dtype, instruction_set):
    for size in SIZES:
        tensors, options = LOSSES[name].drawn(*size)
        LOSSES[name].assert_matches(tensors, dtype, what=str(size), **options)


@needs_extension
@each(OTHERS)
def test_accuracy_of_other_options(name):
    for size, dtype in product(((1, 5, 8), *SIZES[3:-1]), DTYPES):
        tensors, options = OTHERS[name].drawn(*size)
        OTHERS[name].assert_matches(tensors, dtype, what=f"{size} {dtype}", **options)


@needs_extension
@pytest.mark.parametrize("instruction_set", ["avx512_bf16", "amx"], indirect=True)
@each(["plain", "ignore_above", "margin, smoothing", "positives, groups"])
def test_more_columns_than_are_stored(name, instruction_set):
    tensors, options = LOSSES[name].drawn(65, 33_000, 33)
    LOSSES[name].assert_matches(tensors, torch.bfloat16, **options)


@needs_extension
@on_losses(("plain", "masks", "ignore_above", "blocks"), torch.float64, torch.float32, torch.bfloat16)
def test_statistics(name, dtype, instruction_set):
    tensors, options = LOSSES[name].drawn(70, 90, 12)
    LOSSES[name].assert_matches(tensors, dtype, return_stats=True, **options)


@each(EVERY)
def test_reference_is_the_loss_written_out(name):
    loss = EVERY[name]
    for size in SIZES[1:5]:
        tensors, options = loss.drawn(*size)
        for way in reductions(name, size[0]):
            given = options | way
            found = loss_and_gradients(loss.call, tensors, torch.float64, backend="reference", **given)
            true = loss_and_gradients(loss.literal, tensors, torch.float64, **given)
            torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-12)


@needs_extension
@on_losses(MASKED, torch.float32, torch.bfloat16)
def test_reductions(name, dtype, instruction_set):
    """With weights among which are zeros, and an upstream gradient per row."""
    tensors, options = LOSSES[name].drawn(61, 80, 24)
    if name != "sigmoid":
        options["row_weight"] = torch.rand(61, dtype=torch.float64) * (torch.arange(61) % 3 > 0)
    for way in (*reductions(name, 61), {"reduction": "sum"}):
        LOSSES[name].assert_matches(tensors, dtype, what=way["reduction"], **options | way)


@needs_extension
@on_losses(TEMPERED, torch.float32)
def test_extreme_temperatures(name, dtype, instruction_set):
    tensors, options = LOSSES[name].drawn(130, 150, 32)
    for taus in ((1e-3, 1e2), (1e-2, 1e-2), (1.0, 1e2), (1e3, 1e-2)):  # of the rows, and of the columns
        temperatures = [torch.full_like(x, tau) for x, tau in zip(tensors[2:], taus)]
        LOSSES[name].assert_matches((*tensors[:2], *temperatures), dtype, what=f"tau {taus}", **options)


@needs_extension
@on_losses(("masks", "both", "blocks"), torch.float32, torch.bfloat16)
def test_operands_of_any_magnitude(name, dtype, instruction_set):
    """tau is of the magnitude of their product."""
    (a, b, *taus), options = LOSSES[name].drawn(70, 500, 24)
    for size, other in ((1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20)):
        tensors = (a * size, b * other, *(tau * (size * other) for tau in taus))
        LOSSES[name].assert_matches(tensors, dtype, what=f"{size}, {other}", **options)


@needs_extension
@on_losses(("plain", "both", "blocks"), torch.float64, torch.float32, torch.bfloat16)
def test_large_logits(name, dtype, instruction_set):
    """The maxima of rows and columns differ by hundreds between blocks, and positives lie far below them."""
    tensors, options = LOSSES[name].drawn(1100, 1300, 64, scale=4.0)
    LOSSES[name].assert_matches(tensors, dtype, **options)


@needs_extension
@on_losses(("plain", "both"), torch.float64, torch.float32, torch.bfloat16)
def test_the_last_row_or_column_dominates(name, dtype, instruction_set):
    """What was summed before underflows to 0, but the positives' terms in it must be kept."""
    for side in (0, 1):
        tensors, options = LOSSES[name].drawn(500, 1000, 16)
        tensors[side][-1] = 400
        tensors[1 - side].add_(1)
        tensors[2].fill_(0.5)
        LOSSES[name].assert_matches(tensors, dtype, **options)


@needs_extension
@on_losses(("plain", "both", "blocks"), torch.float32)
def test_a_positive_of_probability_near_one(name, dtype, instruction_set):
    """p is up to 1 - 1e-7 and more: relative accuracy of a loss and gradients near 0."""
    for gap in (3, 10, 20, 30):
        tensors = winning(96, gap)
        if name == "both":
            tensors = (*tensors, tensors[2] * 1.1)
        LOSSES[name].assert_matches(tensors, dtype, what=f"gap {gap}", **LOSSES[name].options(96, 96))


@needs_extension
@on_losses(("plain", "both", "blocks"), torch.float32, torch.bfloat16, torch.float16)
def test_equal_logits_of_any_magnitude(name, dtype, instruction_set):
    for logit in (1e2, 1e4, 1e6, 1e8):
        a = torch.full((64, 4), logit**0.5 / 2, dtype=torch.float64)
        tensors = (a, a, *[torch.ones(64, dtype=torch.float64)] * (2 if name == "both" else 1))
        options = {"reduction": "sum", "backend": "cpu", **LOSSES[name].options(64, 64)}
        if LOSSES[name].statistics:
            options["return_stats"] = True
        loss, d_a, d_b, *others = loss_and_gradients(LOSSES[name].call, tensors, dtype, **options)
        assert not any(x.any() for x in others if x.dtype == torch.bool), "a tie counts as top-1"
        assert loss.item() == pytest.approx(64 * math.log(options.get("block", 64)), rel=1e-6)
        assert max(d_a.abs().max(), d_b.abs().max()) <= 1e-2 * a[0, 0]


@needs_extension
@on_losses(("plain", "margin, smoothing", "ignore_above", "both", "blocks", "sigmoid"), torch.float64, torch.bfloat16)
def test_frozen_inputs(name, dtype, instruction_set):
    """They change no other gradient."""
    tensors, options = LOSSES[name].drawn(90, 100, 20)
    for way in reductions(name, 90):
        loss = partial(loss_and_gradients, LOSSES[name].call, tensors, dtype, **options | way)
        whole = loss()
        for frozen in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2), tuple(range(len(tensors)))):
            for i, (x, y) in enumerate(zip(loss(frozen=frozen), whole, strict=True), -1):
                assert (x is None) == (i in frozen)
                if x is not None:
                    rtol, atol = (1e-12, 1e-14) if dtype == torch.float64 else (2e-2, 1e-2 * y.abs().max().item())
                    torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


@needs_extension
@on_losses(("plain", "both", "blocks", "sigmoid"), torch.float64, torch.float32, torch.bfloat16)
def test_the_same_bits_in_every_run(name, dtype, instruction_set):
    tensors, options = LOSSES[name].drawn(700, 900, 48)
    for count in (1, 2, 3):
        with on_threads(count):
            first, again = (loss_and_gradients(LOSSES[name].call, tensors, dtype, **options) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@needs_extension
@on_losses(("plain", "both", "ignore_above", "sigmoid"), torch.float32, torch.bfloat16)
def test_rows_of_a_thread_apart(name, dtype, instruction_set):
    """From 256 rows a thread on, and more threads than there are blocks."""
    for count, rows in ((3, 801), (64, 300)):
        with on_threads(count):
            tensors, options = LOSSES[name].drawn(rows, 900, 33)
            LOSSES[name].assert_matches(tensors, dtype, what=f"{count} threads", **options)


@needs_extension
@each(EVERY)
def test_strides(name):
    for backend in ("reference", "cpu"):
        (a, b, *rest), options = EVERY[name].drawn(40, 50, 10)
        options["backend"] = backend
        plain = EVERY[name].call(a, b, *rest, **options)
        padded = torch.zeros(41, 23, dtype=torch.float64)
        padded[1:, 3:13] = a
        spread = [torch.stack((x, x), -1)[..., 0] for x in rest]
        strided = EVERY[name].call(padded[1:, 3:13], b.T.contiguous().T, *spread, **options)
        torch.testing.assert_close(strided, plain, rtol=1e-13, atol=0)


@needs_extension
@each(EVERY)
def test_empty_batch(name):
    tensors, options = EVERY[name].drawn(4, 6, 3)
    # Of a loss that needs N = B, the candidates and their temperatures are empty, too.
    empty = range(4) if EVERY[name].square else (0, 2) if tensors[2].dim() else (0,)
    tensors = [x[:0] if i in empty else x for i, x in enumerate(tensors)]
    of_rows = ("positive_index", "row_group", "row_weight") + ("column_group",) * EVERY[name].square
    options = {k: v[:0] if k in of_rows else v for k, v in options.items()}
    if "positive_group" in options:
        row, column = options["positive_group"]
        options["positive_group"] = row[:0], column
    for backend in ("reference", "cpu"):
        found = loss_and_gradients(EVERY[name].call, tensors, torch.float64, backend=backend, **options)
        assert found[0] == 0
        assert [g.shape for g in found[1:]] == [x.shape for x in tensors]
        assert not any(g.any() for g in found[1:])


@needs_extension
@each(EVERY)
def test_first_and_second_derivatives(name):
    """Also in the weights; where forward computes the gradients, and where backward does, as with "none"."""
    ways = [("sum", "cpu"), ("sum", "reference")] if name == "sigmoid" else [("mean", "cpu"), ("none", "reference")]
    tensors, options = EVERY[name].drawn(3, 4, 2)
    weights = {} if name == "sigmoid" else {"row_weight": torch.linspace(0.5, 2, 3, dtype=torch.float64)}
    leaves = [x.requires_grad_() for x in (*tensors, *weights.values())]
    for reduction, backend in ways:
        given = options | {"reduction": reduction, "backend": backend}

        def loss(*x, given=given):
            return EVERY[name].call(*x[: len(tensors)], **given | dict(zip(weights, x[len(tensors) :])))

        assert torch.autograd.gradcheck(loss, leaves)
        assert torch.autograd.gradgradcheck(loss, leaves)


@each(["plain", "both, masks", "blocks", "positives, groups", "margin, smoothing", "sigmoid"])
def test_compiles_to_one_graph(name):
    tensors, options = LOSSES[name].drawn(33, 40, 7)
    for way in reductions(name, 33):
        loss = partial(LOSSES[name].call, reduction=way["reduction"], **options)
        torch._dynamo.reset()
        compiled = torch.compile(lambda *x, loss=loss: loss(*x), fullgraph=True, backend="aot_eager", dynamic=False)
        results = [loss_and_gradients(f, tensors, torch.float32, way.get("upstream")) for f in (compiled, loss)]
        torch.testing.assert_close(*results)


@each(EVERY)
def test_under_torch_func(name):
    """grad, grad of grad, jacrev, and vmap of grad."""
    tensors, options = EVERY[name].drawn(6, 7, 3)
    every = tuple(range(len(tensors)))
    many = torch.stack((tensors[0], 2 * tensors[0]))

    def transforms(loss, reduction):
        def value(*x):
            return loss(*x, reduction=reduction, **options).square().sum()

        first = torch.func.grad(value, every)(*tensors)
        second = torch.func.grad(lambda *x: torch.func.grad(value)(*x).square().sum(), every)(*tensors)
        jacobian = torch.func.jacrev(value, every)(*tensors)
        return first, second, jacobian, torch.vmap(lambda a: torch.func.grad(value)(a, *tensors[1:]))(many)

    for way in reductions(name, 6):
        found, true = (transforms(loss, way["reduction"]) for loss in (EVERY[name].call, EVERY[name].literal))
        torch.testing.assert_close(found, true)


@needs_extension
@on_losses(("plain", "both", "margin, smoothing"), torch.float32, torch.bfloat16)
def test_a_row_of_weight_0_adds_nothing_whatever_it_holds(name, dtype, instruction_set):
    # Of both directions, each row is a candidate of all others.
    weight = torch.zeros(40) if name == "both" else (torch.arange(40) != 3).float()
    for backend, way in product(("cpu", "reference"), reductions(name, 40)):
        tensors, options = LOSSES[name].drawn(40, 40, 8)
        options |= way | {"backend": backend, "row_weight": weight}
        clean = loss_and_gradients(LOSSES[name].call, tensors, dtype, **options)
        for value in (math.nan, math.inf):
            tensors[0][3, 1] = value
            found = loss_and_gradients(LOSSES[name].call, tensors, dtype, **options)
            assert all(torch.equal(x, y) for x, y in zip(found, clean, strict=True))


@needs_extension
@on_losses(("plain", "ignore_above", "both", "sigmoid"), torch.float32, torch.bfloat16)
def test_nan_and_infinity_show_in_the_loss(name, dtype, instruction_set):
    for backend in ("cpu", "reference"):
        for value in (math.nan, math.inf)[: 1 if name == "ignore_above" else 2]:  # it leaves an infinity out
            tensors, options = LOSSES[name].drawn(40, 40, 4)
            tensors[1][17, 2] = value
            loss, *_ = loss_and_gradients(LOSSES[name].call, tensors, dtype, backend=backend, **options)
            assert not loss.isfinite()
