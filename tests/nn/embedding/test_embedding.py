"""FusedEmbedding as a module: initialisation, gradients for torch's optimizers, copies, torch.compile."""

import copy

import pytest
import torch
from torch import nn

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn import embedding_table

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


@pytest.mark.parametrize(("sizes", "width"), [([], 8), ([3, 0], 8), ([3], 0)])
def test_bad_sizes_are_named(sizes, width):
    with pytest.raises(ValueError, match="FusedEmbedding: "):
        FusedEmbedding(sizes, width)


def test_one_number_in_place_of_one_per_field_is_refused():
    with pytest.raises(TypeError, match="FusedEmbedding: num_embeddings must be a list, one number per field, got int"):
        FusedEmbedding(10, 4)


def test_a_bad_id_is_named_with_its_field():
    emb = FusedEmbedding([3, 5], 2, field_names=["user", "item"])
    with pytest.raises(
        IndexError, match=r"ids\[1, 1\] = 5 is out of range for field 1 \('item'\), whose ids are 0 to 4"
    ):
        emb(torch.tensor([[2, 4], [0, 5]]))


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


def test_field_weight_is_a_view():
    emb = FusedEmbedding(SIZES, 8, field_names=["user", "day", "item"])
    emb.field_weight("item").fill_(2.0)
    assert torch.equal(emb.weight[6:], torch.full((40, 8), 2.0))
    assert torch.equal(emb.field_weight(0), emb.weight[:5])
    with pytest.raises(KeyError, match="no field 'hour'"):
        emb.field_weight("hour")


def test_out_of_range_ids_count_into_the_oov_row():
    emb = FusedEmbedding(SIZES, 8, on_bad_id="oov")
    ids = torch.tensor([[7, 0, 3], [-1, 1, 39], [4, 0, 40]])
    expected = emb(torch.tensor([[0, 0, 3], [0, 0, 39], [4, 0, 0]]))
    assert torch.equal(emb(ids), expected)
    assert emb.oov_counts.tolist() == [2, 1, 1]
    pooled = emb(ids.flatten(), torch.arange(10))
    assert torch.equal(pooled, expected)
    assert emb.oov_counts.tolist() == [4, 2, 2]


@pytest.mark.parametrize("widths", [2, [2, 3, 2]], ids=["one width", "mixed"])
@pytest.mark.parametrize("on_bad_id", ["raise", "oov"])
def test_wrong_shapes_are_named_and_counted_nowhere(widths, on_bad_id):
    emb = FusedEmbedding([5, 6, 7], widths, on_bad_id=on_bad_id, pooling="sum")
    nines, three = torch.tensor([9, 9, 9]), torch.tensor([0, 1, 2, 3])
    for ids in (nines, nines[:1, None], torch.full((4, 2), 9), torch.full((4, 5), 9)):
        with pytest.raises(ValueError, match=r"ids must be \[B, 3\] \(one column per field\), got"):
            emb(ids)
    with pytest.raises(TypeError, match="ids must be int32 or int64"):
        emb(torch.zeros(4, 3))
    with pytest.raises(TypeError, match="values must be int32 or int64"):
        emb(nines.float(), three)
    with pytest.raises(ValueError, match=r"values must be \[N\]"):
        emb(nines[:, None], three)
    for bags in ([0, 3], [0], [[0, 1, 2, 3]]):
        with pytest.raises(ValueError, match="offsets must "):
            emb(nines, torch.tensor(bags))
    for bags in ([0, 3, 2, 3], [0, 1, 2, 2], [1, 1, 2, 3]):
        with pytest.raises(ValueError, match="offsets must rise from 0 to the number of values, 3"):
            emb(nines, torch.tensor(bags))
    with pytest.raises(ValueError, match="embedding_bags: per_sample_weights must be "):
        emb(nines, three, torch.ones(2))
    assert emb.oov_counts.tolist() == [0, 0, 0]


def test_growing_keeps_a_pending_gradient():
    emb, ids = FusedEmbedding(SIZES, 8), batch()
    emb(ids).sin().sum().backward()
    for dense in (False, True):
        if dense:
            emb.weight.grad = emb.weight.grad.to_dense()
        before = emb.weight.grad.to_dense().split(emb.num_embeddings)
        emb.grow(1, emb.num_embeddings[1] + 3)
        assert dense or emb.weight.grad.is_coalesced()
        after = emb.weight.grad.to_dense().split(emb.num_embeddings)
        for old, new in zip(before, after, strict=True):
            assert torch.equal(new[: len(old)], old)
            assert not new[len(old) :].any()
        assert before[2].any()


@pytest.mark.parametrize("kind", ["ids", "bags", "deferred"])
def test_gradients_can_be_differentiated_again(kind):
    """A penalty on the gradient of the table reaches what its look-ups went through."""
    torch.manual_seed(0)
    emb, ids = FusedEmbedding(SIZES, 3, dtype=torch.float64), torch.stack([batch(), batch()], 2)  # [B, F, 2]
    if kind == "deferred":
        optimizer = optim.Adam(emb, lr=0.1)
        for _ in range(2):
            emb(batch(2)).sum().backward()
            optimizer.step()
        emb.weight.grad = None
    if kind != "bags":
        ids = ids[..., :1]
    out = emb(ids.flatten(), torch.arange(0, ids.numel() + 1, 2)) if kind == "bags" else emb(ids[..., 0])
    emb.flush()
    table = emb.weight.detach().clone().requires_grad_()
    expected = table[ids + emb.offsets[:-1, None]].mean(2).flatten(1)
    scale = torch.randn(9, dtype=torch.float64, requires_grad=True)
    penalties = []
    for found, weight in ((out, emb.weight), (expected, table)):
        (grad,) = torch.autograd.grad((found * scale).sin().sum(), weight, create_graph=True)
        penalties.append(torch.autograd.grad(grad.to_dense().square().sum(), (scale, weight)))
    torch.testing.assert_close(penalties[0][0], penalties[1][0])
    torch.testing.assert_close(penalties[0][1].to_dense(), penalties[1][1])
    for _ in range(2):
        emb(batch()).sin().sum().backward(create_graph=True)
    assert emb.weight.grad.is_coalesced()
    assert emb.weight.grad.requires_grad
    emb.weight.grad = None  # or the graph that holds the gradient would be held by it


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam"])
def test_growing_keeps_weights_and_optimizer_state(name):
    torch.manual_seed(0)
    emb = FusedEmbedding(SIZES, 8)
    other = FusedEmbedding([5, 4, 40], 8)
    for f in range(3):
        other.field_weight(f)[: SIZES[f]] = emb.field_weight(f)
    optimizers = [getattr(optim, name)(e, lr=0.1) for e in (emb, other)]
    grown = False
    for step in range(6):
        if step == 3:
            emb.grow(1, 4)
            emb.field_weight(1)[1:] = other.field_weight(1)[1:]
            grown = True
        ids = batch(8)
        if grown:
            ids[:, 1] = torch.randint(0, 4, (8,))
        for e, optimizer in zip((emb, other), optimizers, strict=True):
            optimizer.zero_grad()
            e(ids).sin().sum().backward()
            optimizer.step()
    emb.flush()
    other.flush()
    assert torch.equal(emb.weight, other.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_tables(dtype):
    emb = FusedEmbedding(SIZES, 8, dtype=dtype)
    ids = batch(64)
    emb(ids).backward(torch.randn(64, 24).to(dtype))
    assert emb.weight.grad.dtype == dtype
    truth = twin(emb.double())
    assert emb(ids).dtype == torch.float64
    assert look_up(truth, emb, ids).dtype == torch.float64


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


@pytest.mark.parametrize(("fields", "width"), [([3], 4), ([100, 7], 4), ([96], 4), ([33], 3), ([65], 1), ([64], 8)])
def test_tables_elsewhere_have_no_memory_and_are_drawn_later_in_the_same_bits(fields, width, monkeypatch):
    monkeypatch.setattr(embedding_table, "DRAWN", 16)
    torch.manual_seed(3)
    here, after = FusedEmbedding(fields, width), torch.rand(3)
    torch.manual_seed(3)
    with embedding_table.tables_elsewhere():
        there = FusedEmbedding(fields, width)
    assert torch.equal(torch.rand(3), after)
    assert there.weight.is_meta
    assert torch.equal(there.offsets, here.offsets)
    generator = torch.Generator()
    generator.set_state(there.initial_rng)
    blocks = list(embedding_table.drawn_rows(sum(fields), width, generator))
    assert torch.equal(torch.cat(blocks), here.weight)
    assert len(blocks) > 1 or sum(fields) < 17
    assert not FusedEmbedding([3], 4).weight.is_meta


def test_a_shared_parameter_has_one_hook():
    one, two = FusedEmbedding([2, 3], 4), FusedEmbedding([2, 3], 4)
    two.weight = one.weight
    two.weight = one.weight
    assert len(one.weight._post_accumulate_grad_hooks) == 1
    twin = copy.deepcopy(one)
    assert len(twin.weight._post_accumulate_grad_hooks) == 1
