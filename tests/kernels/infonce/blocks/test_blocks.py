"""The kernel of the loss within blocks, on a GPU or else under the interpreter, against the float64 reference."""

import math
from itertools import product

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import DTYPES, inputs, loss_and_gradients
from tests.tolerances import assert_as_accurate

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
compiled_elsewhere = DEVICE == "cpu" and not config.INTERPRETED
pytestmark = pytest.mark.skipif(compiled_elsewhere, reason="needs a GPU or TRITON_INTERPRET=1")

# (B, d, k): tiles with rows to spare, a smaller last block, widths of several slices, blocks beyond a tile.
SIZES = [(2, 3, 1), (5, 8, 2), (70, 31, 3), (97, 100, 16), (64, 130, 32), (70, 8, 33)]
NAMES = ("loss", "row_loss", "lse", "positive_logit", "top1", "entropy", "d_anchors", "d_candidates", "d_tau")


def arguments(tensors, dtype, block, scale=None):
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    a, b, tau = (x.to(DEVICE, dtype if i < 2 else acc) for i, x in enumerate(tensors))
    scale = torch.full((len(a),), 1 / max(1, len(a))) if scale is None else scale
    return a, b, tau, scale.to(DEVICE, acc), True, True, True, True, block


def by_triton(*arguments):
    return [x.cpu() for x in torch.ops.adaftr_fast.infonce_blocks_triton(*arguments)]


def assert_matches(tensors, dtype, block, scale=None):
    given = arguments(tensors, dtype, block, scale)
    given_on_cpu = [x.cpu() if isinstance(x, torch.Tensor) else x for x in given]
    exact = [x.double() if isinstance(x, torch.Tensor) else x for x in given_on_cpu]
    own = by_triton(*given)
    theirs = torch.ops.adaftr_fast.infonce_blocks_reference(*given_on_cpu)
    truth = torch.ops.adaftr_fast.infonce_blocks_reference(*exact)
    for name, x, p, t in zip(NAMES, own, theirs, truth, strict=True):
        if x.dtype == torch.bool:
            assert torch.equal(x, t)
        else:
            assert x.dtype == p.dtype
            assert_as_accurate(x, t, p, dtype, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference(dtype):
    for rows, d, block in SIZES:
        assert_matches(inputs(rows, rows, d), dtype, block)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_any_sign_and_size(dtype):
    scale = torch.logspace(-6, 0, 70, dtype=torch.float64)
    scale[::7] *= -1
    scale[::5] = 0
    for factor in (1.0, 1e-25, 1e25):
        assert_matches(inputs(70, 70, 16), dtype, 4, scale * factor)


def test_equal_logits():
    a = torch.full((64, 4), 500.0, device=DEVICE)
    row_loss, stats = af.adaptive_infonce(a, a, 1.0, block=16, reduction="none", return_stats=True, backend="triton")
    torch.testing.assert_close(row_loss.cpu(), torch.full((64,), math.log(16)), rtol=1e-6, atol=0)
    assert not stats.top1.any(), "a tie counts as top-1"


@pytest.mark.parametrize("side", [0, 1, 2])
def test_a_bad_number_stays_in_its_block(side):
    for value in (math.nan, math.inf, -math.inf):
        tensors = [x.abs() for x in inputs(40, 40, 8)]  # a logit of -inf leaves a row's loss finite
        clean = by_triton(*arguments(tensors, torch.float32, 4))
        tensors[side][7] = value
        found = by_triton(*arguments(tensors, torch.float32, 4))
        others = torch.arange(40) // 4 != 1
        for x, y in zip(found[1:], clean[1:], strict=True):
            assert torch.equal(x[others], y[others])
        if side < 2:
            given = [x.cpu() if isinstance(x, torch.Tensor) else x for x in arguments(tensors, torch.float32, 4)]
            for x, t in zip(found, torch.ops.adaftr_fast.infonce_blocks_reference(*given), strict=True):
                assert not x[~t.isfinite()].isfinite().any()
        else:
            assert not found[1][7].isfinite()
            assert not found[0].isfinite()


@pytest.mark.parametrize("block", [4, 33])  # 33: plain PyTorch, which checks the values on CPU
def test_a_bad_temperature_gives_nan_in_its_row(block):
    if DEVICE == "cpu" and block > 32:
        pytest.skip("needs a GPU")
    for tau in (0.0, -0.1, math.nan, math.inf):
        tensors = inputs(40, 40, 8)
        tensors[2][7] = tau
        loss, row_loss, *_ = by_triton(*arguments(tensors, torch.float32, block))
        assert loss.isnan()
        assert torch.equal(row_loss.isnan(), torch.arange(40) == 7)


def test_only_what_is_needed():
    given = arguments(inputs(9, 9, 4), torch.float32, 4)
    whole = by_triton(*given)
    for needs in product((False, True), repeat=4):
        part = by_triton(*given[:4], *needs, 4)
        for x, y, needed in zip(part, whole, (*[True] * 4, needs[3], needs[3], *needs[:3]), strict=True):
            torch.testing.assert_close(x, y if needed else y.new_empty(0), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"reduction": "none"}])
def test_loss_and_gradients(options):
    tensors = [x.to(DEVICE) for x in inputs(7, 7, 3)]
    upstream = torch.linspace(-1, 2, 7, device=DEVICE) if options.get("reduction") == "none" else None
    found, true = (
        loss_and_gradients(af.adaptive_infonce, tensors, torch.float64, upstream, block=3, backend=backend, **options)
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(found, true)


def test_an_empty_batch():
    empty = torch.empty(0, 4)
    found = by_triton(*arguments((empty, empty, torch.empty(0)), torch.float32, 4))
    assert [tuple(x.shape) for x in found] == [(), *[(0,)] * 5, (0, 4), (0, 4), (0,)]
    assert found[0] == 0


def test_opcheck():
    tensors = [t.to(DEVICE).requires_grad_() for t in inputs(9, 9, 4)]
    op = torch.ops.adaftr_fast.infonce_blocks_triton.default
    torch.library.opcheck(op, (*tensors, torch.ones(9, dtype=torch.float64, device=DEVICE), True, True, True, True, 4))


def test_other_shapes_are_refused():
    a, b, *rest = arguments(inputs(5, 5, 4), torch.float32, 2)
    with pytest.raises(ValueError, match=r"candidates must have anchors' shape \(5, 4\), got \(4, 4\)"):
        by_triton(a, b[:4], *rest)
