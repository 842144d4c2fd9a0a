"""What all losses have in common, on CPU: accuracy on every kernel, range, options, derivatives,
empty input.
"""

import math
from functools import partial
from itertools import product

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.extremes import EXTREMES
from tests.ops.infonce.inputs import DTYPES, inputs, loss_and_gradients
from tests.ops.infonce.losses import EVERY, LOSSES, OTHERS, check_op
from tests.ops.infonce.promises import PROMISES
from tests.ops.marks import each_kernel, needs_cpp_gradients, needs_extension, on_threads
from tests.tolerances import assert_same_bits

SIZES = [(1, 1, 1), (1, 5, 8), (2, 2, 31), (63, 63, 64), (100, 129, 8), (257, 300, 100)]
MASKED = ("masks", "both, masks", "blocks", "sigmoid", "ignore_above")


def on_losses(names, *dtypes):
    """Runs a test on every kernel of these losses for these types."""
    cases = [
        case
        for name in names
        for case in each_kernel(LOSSES[name].kernels, *dtypes, prefix=(name,))
    ]
    return pytest.mark.parametrize(
        ("name", "dtype", "instruction_set"), cases, indirect=["instruction_set"]
    )


def reductions(name, rows):
    """Returns options of a call whose forward computes the gradients, and of one whose backward
    does.
    """
    none = {"reduction": "none", "upstream": torch.linspace(-1, 2, rows)}
    return [{"reduction": "sum"}] if name.startswith("sigmoid") else [{"reduction": "mean"}, none]


def each(names):
    return pytest.mark.parametrize("name", names)


@needs_extension
@on_losses(LOSSES, *DTYPES)
def test_accuracy(name, dtype, instruction_set):
    """With statistics at some of the sizes, as they take other ways through a kernel."""
    loss = LOSSES[name]
    large = [(600, 700, 40), (300, 1024, 256)] if name == "plain" else []
    for number, size in enumerate((*SIZES, *large)):
        tensors, options = loss.drawn(*size)
        if loss.statistics and number % 2:
            options["return_stats"] = True
        loss.assert_matches(tensors, dtype, what=str(size), **options)


@needs_extension
@each(OTHERS)
def test_accuracy_of_other_options(name):
    for size, dtype in product(((1, 5, 8), (63, 80, 24), (257, 300, 100)), DTYPES):
        tensors, options = OTHERS[name].drawn(*size)
        OTHERS[name].assert_matches(tensors, dtype, what=f"{size} {dtype}", **options)


CASES = [
    parameters
    for case, extreme in EXTREMES.items()
    if extreme.cpu is not None
    for name in extreme.cpu.losses
    for parameters in each_kernel(LOSSES[name].kernels, *extreme.cpu.dtypes, prefix=(case, name))
]


@needs_extension
@pytest.mark.parametrize(
    ("case", "name", "dtype", "instruction_set"), CASES, indirect=["instruction_set"]
)
def test_extremes(case, name, dtype, instruction_set):
    extreme = EXTREMES[case]
    for number, (tensors, options) in enumerate(
        extreme.problems(LOSSES[name], dtype, *extreme.cpu.size)
    ):
        LOSSES[name].assert_matches(tensors, dtype, what=f"problem {number}", **options)


@needs_extension
@pytest.mark.parametrize("instruction_set", ["avx512_bf16", "amx"], indirect=True)
@each(["plain", "ignore_above", "margin, smoothing", "positives, groups"])
def test_more_columns_than_are_stored(name, instruction_set):
    """With operands of any magnitude."""
    (a, b, tau), options = LOSSES[name].drawn(65, 33_000, 33)
    LOSSES[name].assert_matches((a, b, tau), torch.bfloat16, **options)
    if name == "plain":
        LOSSES[name].assert_matches((a * 1e-20, b * 1e30, tau * 1e10), torch.bfloat16)


@each(EVERY)
def test_reference_is_the_loss_written_out(name):
    loss = EVERY[name]
    if loss.literal is None:
        pytest.skip("has positives that are not rows of the other direction")
    for size in SIZES[1:5]:
        tensors, options = loss.drawn(*size)
        for way in reductions(name, size[0]):
            given = options | way
            found = loss_and_gradients(
                loss.call, tensors, torch.float64, backend="reference", **given
            )
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


KEPT = [
    parameters
    for promise, (_, op, dtypes) in PROMISES.items()
    for parameters in each_kernel(op, *dtypes, prefix=(promise,))
]


@needs_extension
@pytest.mark.parametrize(
    ("promise", "dtype", "instruction_set"), KEPT, indirect=["instruction_set"]
)
def test_promises(promise, dtype, instruction_set):
    PROMISES[promise].check("cpu", dtype)


@needs_extension
@on_losses(
    (
        "plain",
        "positives, groups",
        "margin, smoothing",
        "ignore_above",
        "both",
        "blocks",
        "sigmoid",
    ),
    torch.float64,
    torch.bfloat16,
)
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
                    rtol = 1e-12 if dtype == torch.float64 else 2e-2
                    atol = 1e-14 if dtype == torch.float64 else 1e-2 * y.abs().max().item()
                    torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


# rows of a thread from which on it may sweep them by itself (csrc/cpu/infonce/driver.inl)
APART = 256


@needs_extension
@on_losses(("plain", "both", "blocks", "sigmoid"), torch.float64, torch.float32, torch.bfloat16)
def test_the_same_bits_in_every_run(name, dtype, instruction_set):
    """For one direction and blocks on any number of threads, but for sums that each thread adds up
    by itself.
    """
    for size in ((700, 900, 48), (3, 129, 33)):
        tensors, options = LOSSES[name].drawn(*size)
        if LOSSES[name].statistics:
            options["return_stats"] = True
        results = []
        for count in (1, 2, 3):
            with on_threads(count):
                first, again = (
                    loss_and_gradients(LOSSES[name].call, tensors, dtype, **options)
                    for _ in range(2)
                )
            assert_same_bits(first, again)
            results.append(first)
        for count, other in zip((2, 3), results[1:]):
            for place, (x, y) in enumerate(zip(results[0], other, strict=True)):
                sums_apart = name == "plain" and place == 2 and size[0] >= APART * count  # of h_cvr
                assert name in ("both", "sigmoid") or sums_apart or torch.equal(x, y), (
                    size,
                    count,
                    place,
                )


@needs_extension
@on_losses(
    ("plain", "masks", "margin, smoothing", "both", "ignore_above", "sigmoid"),
    torch.float32,
    torch.bfloat16,
)
def test_rows_of_a_thread_apart(name, dtype, instruction_set):
    """From 256 rows a thread on, also with frozen inputs and far values; and more threads than
    there are blocks.
    """
    for count, rows in ((3, 801), (64, 300)):
        with on_threads(count):
            tensors, options = LOSSES[name].drawn(rows, 900, 33)
            for frozen in ((), (0,), (1,), (2,)) if name == "plain" and rows > 300 else ((),):
                what = f"{count} threads, frozen {frozen}"
                LOSSES[name].assert_matches(tensors, dtype, what=what, frozen=frozen, **options)
            if name == "masks":  # scales an operand by a power of 2
                a, b, tau = tensors
                LOSSES[name].assert_matches((1e-4 * a, 1e12 * b, 1e8 * tau), dtype, **options)


@needs_extension
@each(LOSSES)
def test_strides(name):
    for backend in ("reference", "cpu"):
        (a, b, *rest), options = LOSSES[name].drawn(40, 50, 10)
        options["backend"] = backend
        plain = LOSSES[name].call(a, b, *rest, **options)
        padded = torch.zeros(41, 23, dtype=torch.float64)
        padded[1:, 3:13] = a
        spread = [torch.stack((x, x), -1)[..., 0] for x in rest]
        strided = LOSSES[name].call(padded[1:, 3:13], b.T.contiguous().T, *spread, **options)
        torch.testing.assert_close(strided, plain, rtol=1e-13, atol=0)


@needs_extension
@each(EVERY)
def test_first_and_second_derivatives(name):
    """Also in the weights; where forward computes the gradients, and where backward does, as with
    "none".
    """
    sigmoid = name.startswith("sigmoid")
    ways = (
        [("sum", "cpu"), ("sum", "reference")]
        if sigmoid
        else [("mean", "cpu"), ("none", "reference")]
    )
    tensors, options = EVERY[name].drawn(3, 4, 2)
    weights = {} if sigmoid else {"row_weight": torch.linspace(0.5, 2, 3, dtype=torch.float64)}
    leaves = [x.requires_grad_() for x in (*tensors, *weights.values())]
    for reduction, backend in ways:
        given = options | {"reduction": reduction, "backend": backend}

        def loss(*x, given=given):
            return EVERY[name].call(
                *x[: len(tensors)], **given | dict(zip(weights, x[len(tensors) :]))
            )

        assert torch.autograd.gradcheck(loss, leaves)
        assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)


@each(
    [
        "plain",
        "ignore_above",
        "both, masks",
        "blocks",
        "positives, groups",
        "margin, smoothing",
        "sigmoid",
    ]
)
def test_compiles_to_one_graph(name):
    tensors, options = LOSSES[name].drawn(33, 40, 7)
    options |= {"return_stats": True} if LOSSES[name].statistics else {}
    for way in reductions(name, 33):
        loss = partial(LOSSES[name].call, reduction=way["reduction"], **options)
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda *x, loss=loss: loss(*x), fullgraph=True, backend="aot_eager", dynamic=False
        )
        results = [
            loss_and_gradients(f, tensors, torch.float32, way.get("upstream"))
            for f in (compiled, loss)
        ]
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "options", [{}, {"symmetric": True}, {"block": 4}, {"block": 4, "reduction": "none"}], ids=str
)
def test_compiles_to_one_graph_for_any_number_of_rows(options):
    def loss(a, b, tau):
        return af.adaptive_infonce(a, b, tau, **options).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (33, 18, 3, 0):
        torch.testing.assert_close(
            *(loss_and_gradients(f, inputs(rows, rows, 7), torch.float32) for f in (loss, compiled))
        )


@each(EVERY)
def test_under_torch_func(name):
    """grad, grad of grad, jacrev, and vmap of grad."""
    tensors, options = EVERY[name].drawn(6, 7, 3)
    every = tuple(range(len(tensors)))
    many = torch.stack((tensors[0], 2 * tensors[0]))

    def transforms(loss, reduction):
        def value(*x):
            return loss(*x, reduction=reduction, **options).square().sum()

        gradient = torch.func.grad(value, every)
        return (
            gradient(*tensors),
            torch.func.grad(lambda *x: gradient(*x)[0].square().sum(), every)(*tensors),
            torch.func.jacrev(value, every)(*tensors),
            torch.vmap(lambda a: gradient(a, *tensors[1:]))(many),
        )

    plain = EVERY[name].literal or partial(EVERY[name].call, backend="reference")
    for way in reductions(name, 6):
        found, true = (transforms(loss, way["reduction"]) for loss in (EVERY[name].call, plain))
        torch.testing.assert_close(found, true)


@needs_extension
def test_grad_of_torch_func_has_the_bits_of_the_kernel():
    """The reference would store the similarities; only a second derivative calls it."""
    tensors = [x.float() for x in inputs(200, 200, 50)]
    expected = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32, backend="cpu")[1:]
    theirs = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32, backend="reference")[
        1:
    ]
    assert not any(torch.equal(x, y) for x, y in zip(expected, theirs, strict=True))
    leaves = [x.requires_grad_() for x in tensors]
    for found in (
        torch.func.grad(af.adaptive_infonce, (0, 1, 2))(*tensors),
        torch.autograd.grad(af.adaptive_infonce(*leaves), leaves, create_graph=True),
    ):
        assert_same_bits(found, expected)


@needs_cpp_gradients
@pytest.mark.parametrize(
    "options", [{}, {"block": 2}, {"symmetric": True}, {"margin": 0.1}], ids=str
)
def test_the_gradient_in_cpp_serves_every_device(options):
    """On meta tensors, for which C++ multiplies as for CUDA tensors."""
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.empty(6, 4, dtype=dtype, device="meta", requires_grad=True) for _ in range(2))
        tau = torch.empty(6, device="meta", requires_grad=True)
        loss = af.adaptive_infonce(a, b, tau, **options)
        assert "LossFunction" in loss.grad_fn.name()
        several = torch.ones(3, device="meta")
        for of_one, of_several, x in zip(
            torch.autograd.grad(loss, (a, b, tau), retain_graph=True),
            torch.autograd.grad(loss, (a, b, tau), several, is_grads_batched=True),
            (a, b, tau),
        ):
            assert (of_one.shape, of_one.dtype) == (x.shape, x.dtype)
            assert (of_several.shape, of_several.dtype) == ((3, *x.shape), x.dtype)


@needs_extension
@on_losses(
    ("plain", "both", "blocks", "margin, smoothing", "positives, groups"),
    torch.float32,
    torch.bfloat16,
)
def test_a_row_of_weight_0_adds_nothing_whatever_it_holds(name, dtype, instruction_set):
    # Of both directions, each row is a candidate of all others; of a block, of the others in it.
    weight = {"both": torch.zeros(40), "blocks": (torch.arange(40) >= 16).float()}
    weight = weight.get(name, (torch.arange(40) != 3).float())
    for backend, way in product(("cpu", "reference"), reductions(name, 40)):
        tensors, options = LOSSES[name].drawn(40, 40, 8)
        options |= way | {"backend": backend, "row_weight": weight}
        clean = loss_and_gradients(LOSSES[name].call, tensors, dtype, **options)
        for value in (math.nan, math.inf):
            for side in (0, 1) if name == "blocks" else (0,):
                tensors[side][3, 1] = value
            found = loss_and_gradients(LOSSES[name].call, tensors, dtype, **options)
            assert_same_bits(found, clean)


@needs_extension
@on_losses(("plain", "ignore_above", "both", "sigmoid"), torch.float32, torch.bfloat16)
def test_nan_and_infinity_show_in_the_loss(name, dtype, instruction_set):
    for backend in ("cpu", "reference"):
        # it leaves an infinity out
        for value in (math.nan, math.inf)[: 1 if name == "ignore_above" else 2]:
            tensors, options = LOSSES[name].drawn(40, 40, 4)
            tensors[1][17, 2] = value
            options |= {"return_stats": True} if name == "plain" else {}
            loss, *others = loss_and_gradients(
                LOSSES[name].call, tensors, dtype, backend=backend, **options
            )
            assert not loss.isfinite()
            if name == "plain" and math.isnan(value):
                assert not others[-2].any(), "a row of NaN counts as top-1"
                assert others[-1].isnan().all(), "the entropy"


@pytest.mark.parametrize("backend", ["auto", "reference"])
@each(
    ["plain", "ignore_above", "both", "blocks", "margin, smoothing", "positives, groups", "sigmoid"]
)
def test_opcheck(name, backend):
    for frozen in ((), (1, 2, 3), (0,)) if name in ("plain", "both") else ((),):
        check_op(name, frozen, backend=backend)
