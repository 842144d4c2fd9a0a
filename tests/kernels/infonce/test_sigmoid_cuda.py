"""The compiled kernel of the sigmoid loss on a GPU, against the float64 reference on the CPU."""

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import DTYPES, assert_matches, loss_and_gradients
from tests.ops.infonce.losses import draw_sigmoid, positives

config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(config.INTERPRETED, reason="TRITON_INTERPRET is set"),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fewer_candidates_than_rows(dtype):
    options = {"positive_index": positives(1024, 300)}
    assert_matches(draw_sigmoid(1024, 300, 256), dtype, af.sigmoid_contrast, backend="auto", device="cuda", **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scales(dtype):
    for scale in (1e-30, 1e-3, 100.0, 1e30):
        if dtype == torch.float16 and scale == 1e30:
            continue  # the gradients of h_ctr and h_cvr overflow float16
        a, b, *terms = draw_sigmoid(200, 300, 64, scale)
        exact = (a.sign() / 2, b.sign() / 2, *terms)
        assert_matches(exact, dtype, af.sigmoid_contrast, backend="triton", device="cuda")


def test_same_bits_every_time():
    first, second = (
        loss_and_gradients(af.sigmoid_contrast, draw_sigmoid(20_000, 20_000, 64), torch.bfloat16, device="cuda")
        for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second))


def test_large_batch_in_little_memory():
    """65,536 rows, whose matrix of logits would take 8 GiB in bfloat16."""
    a, b = (torch.randn(65_536, 64, device="cuda").bfloat16().requires_grad_() for _ in range(2))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    af.sigmoid_contrast(a, b, 1.0, -10.0).backward()
    assert torch.cuda.max_memory_allocated() - before < 400 * 2**20
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_compiles_whole():
    tensors = [t.float().cuda() for t in draw_sigmoid(200, 200, 64)]
    compiled = torch.compile(af.sigmoid_contrast, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), af.sigmoid_contrast(*tensors))
