"""What the losses promise besides accuracy, as a table that tests run on the CPU and
with Triton.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import DTYPES, inputs, loss_and_gradients
from tests.ops.infonce.losses import LOSSES, draw_sigmoid
from tests.tolerances import assert_same_bits

F64, F32, BF16, F16 = DTYPES


class Promise(NamedTuple):
    check: Callable[[str, torch.dtype], None]
    op: str  # of tests.ops.marks.KERNELS
    dtypes: tuple[torch.dtype, ...]


PROMISES: dict[str, Promise] = {}


def promise(op, *dtypes):
    def register(check):
        PROMISES[check.__name__] = Promise(check, op, dtypes)
        return check

    return register


@promise("infonce", F64, F32, BF16)
def rows_without_a_loss_have_no_gradient(backend, dtype):
    call = partial(loss_and_gradients, af.adaptive_infonce, dtype=dtype, backend=backend)
    a, b, tau = inputs(20, 20, 8)
    groups = {"row_group": torch.zeros(20, dtype=torch.int64)}
    for options in (
        groups,
        groups | {"symmetric": True},
        {"ignore_above": -1e4},
        {"positive_index": torch.full((20,), -100)},
    ):
        if "positive_index" in options:
            b[3] = math.nan
        assert not any(x.any() for x in call((a, b, tau), **options)), options
    *_, top1, entropy = call(inputs(20, 20, 8), return_stats=True, **groups)
    assert top1.all()
    assert not entropy.any()


@promise("infonce", F32, BF16)
def an_ignored_row_leaks_nothing(backend, dtype):
    call = partial(
        loss_and_gradients, af.adaptive_infonce, dtype=dtype, backend=backend, return_stats=True
    )
    a, b, tau = inputs(40, 50, 8)
    positive = torch.arange(40)
    positive[[7, 33]] = -100
    clean = call((a, b, tau), positive_index=positive)
    a[7], a[33], tau[33] = math.nan, math.inf, math.nan
    dirty = call((a, b, tau), positive_index=positive)
    assert_same_bits(clean, dirty)


@promise("infonce", *DTYPES)
def a_tie_with_the_positive_is_a_negative(backend, dtype):
    """The bound is exclusive, and equal candidates have equal similarities to the bit, wherever
    they stand.
    """
    for d in (80,) if backend == "triton" else (7, 80, 300):
        a, b, tau = (x.to(dtype) for x in inputs(40, 40, d))
        options = {"ignore_above": 0.0, "reduction": "none", "backend": backend}
        loss = af.adaptive_infonce(a, torch.cat((b, b)), tau.float(), **options)
        assert (loss > math.log(2) - 1e-6).all(), "the copy of the positive has its logit"


@promise("infonce", F32, BF16, F16)
def equal_logits_are_ties(backend, dtype):
    for name, logit in product(("plain", "both", "blocks"), (1e2, 1e6)):
        loss = LOSSES[name]
        a = torch.full((64, 4), logit**0.5 / 2, dtype=torch.float64)
        tensors = (a, a, *[torch.ones(64, dtype=torch.float64)] * (2 if name == "both" else 1))
        options = {"reduction": "sum", "backend": backend, **loss.options(64, 64)}
        options |= {"return_stats": True} if loss.statistics else {}
        total, d_a, d_b, *others = loss_and_gradients(loss.call, tensors, dtype, **options)
        count = options.get("block", 64)
        torch.testing.assert_close(total.item(), 64 * math.log(count), rtol=1e-6, atol=0)
        assert max(d_a.abs().max(), d_b.abs().max()) <= 1e-2 * a[0, 0]
        if loss.statistics:
            *_, top1, entropy = others
            assert not top1.any(), "a tie counts as top-1"
            torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(count)))


@promise("infonce", F32)
def an_overflowing_row_leaves_the_others(backend, dtype):
    for through in ("score", "tau"):
        a, b, tau = inputs(40, 70, 16)
        if through == "score":
            a[7] = 3e38
        else:
            a[7], tau[7] = a[7] * 1e30, 1e-20
        call = partial(
            loss_and_gradients,
            af.adaptive_infonce,
            (a, b, tau),
            dtype,
            torch.ones(40),
            reduction="none",
        )
        others = torch.arange(40) != 7
        (own, d_own, *_), (theirs, d_theirs, *_) = call(backend=backend), call(backend="reference")
        torch.testing.assert_close(own[others], theirs[others], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(d_own[others], d_theirs[others], rtol=1e-4, atol=1e-4)
        assert not own[7].isfinite()
        assert not theirs[7].isfinite()


@promise("infonce", F32)
def numbers_and_narrower_types_are_accepted(backend, dtype):
    a, b, tau = (x.to(dtype) for x in inputs(40, 40, 10))
    for options in ({}, {"symmetric": True}, {"block": 4}):
        loss = partial(af.adaptive_infonce, backend=backend, **options)
        for h in (a, a.bfloat16()):
            plain = loss(h, h.flip(0), tau[:1].expand(40))
            assert torch.equal(plain, loss(h, h.flip(0), tau[0]))
            assert torch.equal(plain, loss(h, h.flip(0), tau[0].item()))
        assert torch.equal(loss(a.bfloat16(), b, tau), loss(a.bfloat16().float(), b, tau))
    loss = partial(af.sigmoid_contrast, backend=backend)
    every_second = torch.arange(80)[::2]
    plain = loss(a, b, torch.tensor(3.0), torch.tensor(-2.0))
    assert torch.equal(plain, loss(a, b, 3.0, -2))
    mixed = loss(a.bfloat16(), b, torch.tensor(3.0).double(), -2)
    assert torch.equal(mixed, loss(a.bfloat16().float(), b, 3.0, -2))
    wide = torch.cat((b, b))
    strided, plain = (
        loss(a, wide, 3.0, -2, positive_index=i) for i in (every_second, every_second.clone())
    )
    assert torch.equal(strided, plain)


@promise("blocks", F32)
def a_bad_number_stays_in_its_block(backend, dtype):
    """What is not finite by the reference is not, and no bit of other blocks changes."""
    options = {"block": 4, "reduction": "none", "return_stats": True}
    call = partial(
        loss_and_gradients, af.adaptive_infonce, dtype=dtype, upstream=torch.ones(40), **options
    )
    clean = call([x.abs() for x in inputs(40, 40, 8)], backend=backend)
    others = torch.arange(40) // 4 != 1
    for value, side in product((math.nan, math.inf, -math.inf), (0, 1)):
        tensors = [x.abs() for x in inputs(40, 40, 8)]  # a logit of -inf leaves a row's loss finite
        tensors[side][7] = value
        found, theirs = (call(tensors, backend=each) for each in (backend, "reference"))
        for x, y, t in zip(found, clean, theirs, strict=True):
            assert torch.equal(x[others], y[others])
            assert not x[~t.isfinite()].isfinite().any()


@promise("sigmoid", *DTYPES)
def small_sigmoid_losses_keep_their_digits(backend, dtype):
    """Every pair is classified right with a margin: the terms are e^bias, far below the rounding of
    1.
    """
    # else its sigmoids are subnormal
    for bias in (-80.0, -30.0, -15.0, -10.0)[2 * (dtype == F16) :]:
        a, b, *terms = draw_sigmoid(40, 60, 16, 1.0, bias)
        rest = (*terms, torch.full((40,), -100), True, True)
        # The op: its gradients are of the accumulation type, in which a small one is no subnormal
        # number.
        ops = torch.ops.adaftr_fast
        op = ops.sigmoid_contrast_triton if backend == "triton" else ops.sigmoid_contrast
        own = op(a.to(dtype), b.to(dtype), *rest)
        truth = ops.sigmoid_contrast_reference(a.to(dtype).double(), b.to(dtype).double(), *rest)
        exact = 1e-12 if dtype == F64 else 2e-5
        rounded = {BF16: 1e-2, F16: 2e-3}.get(dtype, exact)  # the sigmoids, for d h_ctr and d h_cvr
        for i, (x, t) in enumerate(zip(own, truth)):
            assert (x - t).abs().max() <= (rounded if i in (1, 2) else exact) * t.abs().max()


@promise("sigmoid", F32, BF16)
def sigmoids_of_zero_do_not_overflow(backend, dtype):
    """Every factor of the products of 1 + e is 2."""
    rows, columns = (40, 49) if backend == "triton" else (300, 309)
    tensors = (
        torch.zeros(rows, 16),
        torch.zeros(columns, 16),
        torch.tensor(1.0),
        torch.tensor(0.0),
    )
    loss, *gradients = loss_and_gradients(af.sigmoid_contrast, tensors, dtype, backend=backend)
    torch.testing.assert_close(loss.item(), columns * math.log(2), rtol=1e-6, atol=0)
    assert all(g.isfinite().all() for g in gradients)
