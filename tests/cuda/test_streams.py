"""Streams, devices and large logits on a GPU: nothing of this shows without one."""

import pytest
import torch

import adaftr_fast as af
from adaftr_fast._extension import has_cuda_kernels
from tests.cuda.test_on_a_card import KINDS, trained
from tests.kernels.infonce.agreement import assert_matches, evaluate
from tests.ops.infonce.inputs import inputs

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not has_cuda_kernels(), reason="the CUDA kernels are not built"),
]


def results(kind, device="cuda"):
    """Returns loss and gradients, or the tables that an optimizer has trained."""
    if kind == "loss":
        return [x.cpu() for x in evaluate(inputs(1000, 1000, 128), torch.float32, device)]
    return [*trained(device, kind, 8, False).values()]


@pytest.mark.parametrize("kind", ["loss", *KINDS])
def test_a_stream_of_its_own_gives_the_same_bits(kind):
    expected = results(kind)
    torch.cuda._sleep(50_000_000)  # the default stream is busy, so work that wrongly waits for it is seen
    with torch.cuda.stream(torch.cuda.Stream()):
        found = results(kind)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
@pytest.mark.parametrize("kind", ["loss", "SGD", "Adam"])
def test_a_second_device_gives_the_same_bits(kind):
    assert all(torch.equal(x, y) for x, y in zip(results(kind, "cuda:1"), results(kind), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_logits(dtype):
    """The column sweep forms the row sweep's scores again, transposed; where they differ, d h_cvr is off."""
    a, b, tau = inputs(1000, 1000, 128, scale=100.0 if dtype == torch.float16 else 2500.0)
    assert_matches((a.to(dtype).double(), b.to(dtype).double(), torch.ones_like(tau)), dtype, "cuda")


def test_a_temperature_on_the_cpu():
    """In a graph, too, the loss is that of a temperature on the GPU, unless it is refused."""
    a, b, _ = (x.float().cuda() for x in inputs(1000, 1000, 128))
    tau, graph = torch.tensor(0.07), torch.cuda.CUDAGraph()
    expected = af.adaptive_infonce(a, b, tau.cuda())
    assert torch.equal(af.adaptive_infonce(a, b, tau), expected)
    try:
        with torch.cuda.graph(graph):
            loss = af.adaptive_infonce(a, b, tau)
    except RuntimeError:
        return
    graph.replay()
    assert torch.equal(loss, expected)
