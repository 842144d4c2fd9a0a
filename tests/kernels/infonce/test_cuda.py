"""The compiled kernels on a GPU, beside what tests of all losses compare there (test_losses.py)."""

from functools import partial

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients
from tests.ops.infonce.losses import LOSSES, check_op
from tests.ops.infonce.test_precision import under
from tests.tolerances import assert_same_bits

config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(config.INTERPRETED, reason="TRITON_INTERPRET is set"),
]
evaluate = partial(loss_and_gradients, af.adaptive_infonce, device="cuda", return_stats=True)
check = partial(assert_matches, backend="triton", device="cuda")


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9, reason="for sm_90"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bounded_rows_agree_with_the_others(dtype, swept):
    """Without masks, wide blocks of rows whose logits are bounded have a sweep of their own."""
    a, b, tau = inputs(300, 700, 512)
    a, b = torch.nn.functional.normalize(a), torch.nn.functional.normalize(b)
    a = a + b[:300]
    a[70::90] *= 300
    results = []
    for options in ({}, {"positive_index": torch.arange(300)}):
        call = partial(
            loss_and_gradients, af.adaptive_infonce, (a, b, tau + 0.3), dtype, torch.ones(300)
        )
        results.append(call(device="cuda", reduction="none", **options))
    assert swept == [[1, 0, 0, 0, 1]]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    for own, other in zip(*results):
        torch.testing.assert_close(own, other, rtol=2e-2, atol=1e-2 * other.abs().max().item())


@pytest.mark.parametrize(("precision", "bound"), [("high", 1e-4), ("medium", 2e-2)])
def test_reduced_precision_of_float32_products(precision, bound):
    tensors = inputs(300, 400, 64)
    truth = evaluate(tensors, torch.float64, backend="reference")
    with under(precision):
        own = evaluate(tensors, torch.float32)
    for x, t in zip(own[:4], truth):
        assert (x - t).abs().max() <= bound * t.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["masks", "ignore_above", "both", "blocks", "sigmoid"])
def test_same_bits_every_time(name, dtype):
    for rows in (1000, 20_000):
        tensors, options = LOSSES[name].drawn(rows, rows, 64)
        call = partial(
            loss_and_gradients, LOSSES[name].call, tensors, dtype, device="cuda", **options
        )
        assert_same_bits(call(), call())


@pytest.mark.parametrize("d", [64, 300])
def test_the_column_sweep_of_a_small_call_joins_its_splits(monkeypatch, d):
    monkeypatch.undo()  # conftest makes every call large
    tensors = inputs(1024, 1024, d)
    check(tensors, torch.float32, return_stats=True)
    first = evaluate(tensors, torch.float32)
    for _ in range(100):  # whichever program comes last
        assert_same_bits(evaluate(tensors, torch.float32), first)


def test_large_batch_in_little_memory():
    """65,536 rows, whose matrix of logits would take 8 GiB in bfloat16. Some rows are checked
    against float64.
    """
    rows, d = 65_536, 64
    a, b = (torch.randn(rows, d, device="cuda").bfloat16() for _ in range(2))
    tau = torch.full((rows,), 8.0, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    leaves = [t.clone().requires_grad_() for t in (a, b, tau)]
    _, stats = af.adaptive_infonce(*leaves, return_stats=True)
    af.adaptive_infonce(*leaves).backward()
    af.sigmoid_contrast(*leaves[:2], 1.0, -10.0).backward()
    assert torch.cuda.max_memory_allocated() - before < 400 * 2**20
    some = torch.arange(0, rows, 997, device="cuda")
    lse = (a[some].double() @ b.double().T / 8).logsumexp(1)
    torch.testing.assert_close(stats.lse[some].double(), lse, rtol=1e-5, atol=1e-5)
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_cuda_graph():
    """A graph captured once gives the results of other inputs on replay: nothing is read back to
    the host.
    """
    a, b, tau = (t.float().cuda().requires_grad_() for t in inputs(300, 300, 64))

    def step():
        a.grad = b.grad = tau.grad = None
        loss = af.adaptive_infonce(a, b, tau)
        loss.backward()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    others = inputs(300, 300, 64, seed=1)
    with torch.no_grad():
        for leaf, other in zip((a, b, tau), others):
            leaf.copy_(other)
    graph.replay()
    replayed = [x.detach().clone() for x in (loss, a.grad, b.grad, tau.grad)]
    eager = [x.detach() for x in (step(), a.grad, b.grad, tau.grad)]
    assert_same_bits(replayed, eager)


@pytest.mark.parametrize("name", ["plain", "sigmoid"])
def test_compiles_whole_and_opcheck(name):
    loss = LOSSES[name].call
    tensors = [x.float().cuda() for x in LOSSES[name].draw(200, 200, 64)]
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(*tensors), loss(*tensors))
    check_op(name, device="cuda")
