"""The tables on a GPU, against the same training on the CPU."""

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast._extension import has_cuda_kernels
from adaftr_fast.ops.embedding.lookup import raise_bad_ids
from tests.cuda.test_bags import bags_for
from tests.cuda.test_lookup import ids_for
from tests.tolerances import assert_same_bits

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not has_cuda_kernels(), reason="the CUDA kernels are not built"),
]
SIZES = [50, 1, 20]


@pytest.fixture(autouse=True)
def as_users_run():
    """The other tests ask for deterministic algorithms and fill memory, which takes
    other kernels.
    """
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)


KINDS = ["SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam", "AdamW"]


def trained(device, kind, widths, bags, dtype=torch.float32, steps=60):
    torch.manual_seed(0)
    emb = FusedEmbedding(SIZES, widths, dtype=dtype).to(device)
    optimizer = getattr(optim, kind)(emb, lr=0.01)
    for _ in range(steps):
        inputs = bags_for(40) if bags else (ids_for(300, SIZES),)
        optimizer.zero_grad()
        emb(*(each.to(device) for each in inputs)).float().sin().sum().backward()
        optim.clip_grad_norm_(emb.parameters(), 100.0)
        optimizer.step()
    return {name: value.cpu() for name, value in emb.state_dict().items()}


@pytest.mark.parametrize(
    ("widths", "bags"),
    [(8, False), ([8, 3, 16], False), ([8, 3, 16], True), (1, True), (100, False), (256, True)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_cpu(kind, widths, bags):
    card, host = (trained(device, kind, widths, bags) for device in ("cuda", "cpu"))
    for name, value in host.items():
        torch.testing.assert_close(card[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(dtype):
    card, host = (trained(device, "Adam", 8, False, dtype, steps=5) for device in ("cuda", "cpu"))
    tolerance = 1e-10 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    for name, value in host.items():
        torch.testing.assert_close(card[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_in_every_run(kind):
    first, second = (trained("cuda", kind, 8, False) for _ in range(2))
    assert_same_bits(first, second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bags", [False, True], ids=["dense", "bags"])
def test_a_step_does_not_synchronize(kind, bags):
    emb = FusedEmbedding(SIZES, [8, 3, 8], device="cuda")
    optimizer = getattr(optim, kind)(emb, lr=0.01)
    inputs = [each.cuda() for each in (bags_for(40) if bags else (ids_for(300, SIZES),))]
    for step in range(4):
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.zero_grad()
            emb(*inputs).sum().backward()
            optim.clip_grad_norm_(emb.parameters(), 1.0)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_bad_id_is_raised_later():
    emb = FusedEmbedding(SIZES, 8, device="cuda")
    ids = ids_for(40, SIZES)
    ids[20, 2] = 20
    out = emb(ids.cuda())
    assert not out.view(40, 3, 8)[20, 2].any()
    with pytest.raises(
        IndexError,
        match="row 20: 20 is out of range for field 2 of its table, whose ids are 0 to 19",
    ):
        raise_bad_ids(out.device)
    raise_bad_ids(out.device)
    emb(ids_for(40, SIZES).cuda())


@pytest.mark.parametrize("rows", [1, 255, 257, 70_000])
def test_a_row_that_repeats(rows):
    emb = FusedEmbedding([2], 8, device="cuda")
    before = emb.weight.detach().clone()
    optimizer = optim.SGD(emb, lr=1.0)
    emb(torch.zeros(rows, 1, dtype=torch.int64, device="cuda")).sum().backward()
    optimizer.step()
    torch.testing.assert_close(emb.weight[0], before[0] - rows, rtol=1e-6, atol=1e-6)
    assert torch.equal(emb.weight[1], before[1])


def test_a_look_up_and_its_backward_in_a_graph():
    emb = FusedEmbedding(SIZES, 8, device="cuda")
    ids = ids_for(64, SIZES).cuda()
    optimizer = optim.Adam(emb, lr=0.01)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            optimizer.zero_grad()
            emb(ids).sum().backward()
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = emb(ids)
        out.sum().backward()
    for _ in range(3):
        ids.copy_(ids_for(64, SIZES))
        graph.replay()
        assert torch.equal(out, emb(ids))
        optimizer.step()
