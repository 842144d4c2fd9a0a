"""A step of the tables never makes the host wait for the device."""

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.ops.embedding.lookup import table_gradient
from tests.cuda.test_bags import bags_for
from tests.watch import Watch

SIZES = [50, 1, 20]
KINDS = ["SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam", "AdamW"]


@pytest.mark.parametrize("bags", [False, True], ids=["dense", "bags"])
@pytest.mark.parametrize(
    ("on_bad_id", "widths", "clip"), [("raise", 8, False), ("oov", [8, 3, 8], True)], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_no_reads_in_a_step(on_serial, kind, on_bad_id, widths, bags, clip):
    emb = FusedEmbedding(SIZES, widths, on_bad_id=on_bad_id)
    optimizer = getattr(optim, kind)(emb, lr=0.01)
    counts = set()
    for step in range(4):
        inputs = bags_for(20) if bags else (torch.randint(0, 1, (20, 3), dtype=torch.int32),)
        with Watch() as watch:
            optimizer.zero_grad()
            emb(*inputs).sum().backward()
            if clip:
                optim.clip_grad_norm_(emb.parameters(), 1.0)
            optimizer.step()
        assert not watch.reads
        if step > 1:
            counts.add(watch.ops.total())
    assert len(counts) == 1


@pytest.mark.skipif(torch.version.cuda is None, reason="torch has no CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_traces_with_fake_cuda_tensors(monkeypatch, kind):
    """FakeTensorMode has no values, so whatever reads one raises. Its autograd asks for a device;
    gradients are set.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    for module in ("ops.embedding.lookup", "ops.embedding.bags", "nn.embedding_fields"):
        monkeypatch.setattr(
            f"adaftr_fast.{module}.runs_cuda_kernels", lambda tensor: tensor.is_cuda
        )
    with FakeTensorMode():
        emb = FusedEmbedding(SIZES, [8, 3, 8], device="cuda")
        optimizer = getattr(optim, kind)(emb, lr=0.01)
        ids = torch.zeros(16, 3, dtype=torch.int32, device="cuda")
        bags = (
            torch.zeros(40, dtype=torch.int64, device="cuda"),
            torch.zeros(49, dtype=torch.int64, device="cuda"),
        )
        for _ in range(3):
            assert emb(ids).shape == emb(*bags).shape == (16, 19)
            for weight in emb.table_weights():
                grad = torch.zeros(16, weight.shape[1], device="cuda")
                field = torch.zeros(2, dtype=torch.int64, device="cuda")
                with torch.no_grad():
                    weight.grad = table_gradient(grad, ids[:, :1], field, weight.shape)
            optim.clip_grad_norm_(emb.parameters(), 1.0)
            optimizer.step()
        assert emb(ids).is_cuda
