"""FusedEmbedding as a module: initialisation, gradients for torch's optimizers, copies, torch.compile."""

import copy

import pytest
import torch
from torch import nn

from adaftr_fast import FusedEmbedding

SIZES = [5, 1, 40]


def batch(size: int = 16) -> torch.Tensor:
    return torch.stack([torch.randint(0, n, (size,)) for n in SIZES], 1)


def twin(emb: FusedEmbedding) -> nn.Embedding:
    """The same table as one nn.Embedding with sparse gradients."""
    return nn.Embedding.from_pretrained(emb.weight.detach().clone(), freeze=False, sparse=True)


def look_up(table: nn.Embedding, emb: FusedEmbedding, ids: torch.Tensor) -> torch.Tensor:
    return table(ids + emb.offsets[:-1]).flatten(1)


def test_initialisation_and_shape():
    torch.manual_seed(0)
    emb = FusedEmbedding([4000, 6000], 8)
    assert emb.weight.shape == (10_000, 8)
    assert abs(emb.weight.std().item() - 0.01) < 1e-4
    assert emb(torch.zeros(3, 2, dtype=torch.int32)).shape == (3, 16) == (3, emb.out_features)
    assert list(emb.state_dict()) == ["weight"]


@pytest.mark.parametrize(("sizes", "width"), [([], 8), ([3, 0], 8), ([3], 0)])
def test_bad_sizes_are_named(sizes, width):
    with pytest.raises(ValueError, match="FusedEmbedding: "):
        FusedEmbedding(sizes, width)


def check_gradient(emb: FusedEmbedding, backwards: int) -> None:
    table = twin(emb)
    for _ in range(backwards):
        ids = batch()
        (emb(ids) ** 2).sum().backward()
        (look_up(table, emb, ids) ** 2).sum().backward()
    grad = emb.weight.grad
    assert grad.is_coalesced()
    assert (grad.indices()[0].diff() > 0).all()
    torch.testing.assert_close(grad.to_dense(), table.weight.grad.to_dense())


@pytest.mark.parametrize("backwards", [1, 3])
def test_gradient_is_coalesced_and_accumulates(backwards):
    check_gradient(FusedEmbedding(SIZES, 8), backwards)


def test_a_copy_keeps_its_gradients_coalesced():
    check_gradient(copy.deepcopy(FusedEmbedding(SIZES, 8)), 2)


def test_assigned_weights_keep_their_gradients_coalesced():
    emb = FusedEmbedding(SIZES, 8)
    emb.load_state_dict({"weight": torch.randn(46, 8)}, assign=True)
    check_gradient(emb, 2)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.SparseAdam(p, lr=0.1),
    ],
    ids=["SGD", "Adagrad", "SparseAdam"],
)
def test_torch_optimizers_work_unchanged(optimizer):
    emb = FusedEmbedding(SIZES, 8)
    table = twin(emb)
    ours, theirs = optimizer(emb.parameters()), optimizer(table.parameters())
    for _ in range(5):
        ids = batch()
        for step, out in ((ours, emb(ids)), (theirs, look_up(table, emb, ids))):
            step.zero_grad()
            (out - 1).square().sum().backward()
            step.step()
    torch.testing.assert_close(emb.weight, table.weight)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph_with_its_sparse_gradient(dynamic):
    emb = FusedEmbedding(SIZES, 8)
    model = nn.Sequential(emb, nn.Linear(24, 4))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (16, 17):
        ids = batch(size)
        model.zero_grad()
        model(ids).square().sum().backward()
        expected = emb.weight.grad
        model.zero_grad()
        compiled(ids).square().sum().backward()
        assert emb.weight.grad.is_coalesced()
        torch.testing.assert_close(emb.weight.grad.to_dense(), expected.to_dense())


def test_float64():
    emb = FusedEmbedding(SIZES, 3, dtype=torch.float64)
    emb(batch()).sum().backward()
    assert emb.weight.grad.dtype == torch.float64
