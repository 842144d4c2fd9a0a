"""FusedEmbedding from the tables of torch.nn."""

import pytest
import torch
from torch import nn

from adaftr_fast import FusedEmbedding, optim


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("sizes", [[9], [4, 5]])
def test_a_state_dict_of_torch_loads(kind, sizes):
    table = kind(9, 3)
    emb = FusedEmbedding(sizes, 3)
    optimizer = optim.Adam(emb, lr=0.1)
    emb(torch.zeros(2, len(sizes), dtype=torch.int64)).sum().backward()
    optimizer.step()
    emb(torch.ones(2, len(sizes), dtype=torch.int64)).sum().backward()
    optimizer.step()  # rows have missed steps, which must not move what is loaded
    emb.load_state_dict(table.state_dict())
    emb.flush()
    assert torch.equal(emb.weight, table.weight)
    model = nn.Sequential(FusedEmbedding(sizes, 3))
    other = nn.Sequential(table)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model[0].weight, table.weight)


@pytest.mark.parametrize("widths", [3, [3, 2]])
def test_the_state_of_a_module_per_field_loads(widths):
    emb = FusedEmbedding([4, 5], widths, field_names=["user", "item"])
    tables = [nn.Embedding(4, 3), nn.EmbeddingBag(5, emb.widths[1])]
    for several in (nn.ModuleList(tables), nn.ModuleDict(zip(["user", "item"], tables))):
        model = nn.Sequential(emb)
        for weight in emb.parameters():
            nn.init.zeros_(weight)
        model.load_state_dict(nn.Sequential(several).state_dict())
        for f, table in enumerate(tables):
            assert torch.equal(emb.field_weight(f), table.weight)
    state = nn.ModuleList(tables).state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight.item"'):
        emb.load_state_dict({"0.weight": state["0.weight"]})
    with pytest.raises(RuntimeError, match=r"size mismatch for weight.user: \[5, 3\] in the check"):
        emb.load_state_dict(state | {"0.weight": torch.ones(5, 3)})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"2.weight"'):
        emb.load_state_dict(state | {"2.weight": torch.ones(4, 3)})


def test_a_state_dict_that_does_not_fit_is_named():
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: .*\[8, 3\].*\[9, 3\]"):
        FusedEmbedding([4, 5], 3).load_state_dict(nn.Embedding(8, 3).state_dict())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"weight"'):
        FusedEmbedding([4, 5], [3, 2]).load_state_dict(nn.Embedding(9, 3).state_dict())
    emb = FusedEmbedding([4], 3)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"weight.0"'):
        emb.load_state_dict({"weight": torch.ones(4, 3), "weight.0": torch.ones(4, 3)})


def test_from_pretrained():
    tables = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)]
    emb = FusedEmbedding.from_pretrained(tables, padding_idx=1, field_names=["user", "item"])
    named = FusedEmbedding.from_pretrained(
        {"user": tables[0], "item": tables[1]}, freeze=False, pooling="sum"
    )
    assert emb.field_names == named.field_names == ["user", "item"]
    assert named.pooling == "sum"
    assert all(parameter.requires_grad for parameter in named.parameters())
    emb.grow("user", 6)
    assert not any(parameter.requires_grad for parameter in emb.parameters())
    for f, table in enumerate(tables):
        assert torch.equal(emb.field_weight(f)[: len(table)], table)  # with the row of padding_idx
        assert torch.equal(named.field_weight(f), table)
    named(torch.tensor([[0, 1], [3, 4]])).sum().backward()
    assert all(parameter.grad.is_coalesced() for parameter in named.parameters())
    with pytest.raises(
        ValueError, match=r"from_pretrained: field_names must be absent .* got \['item'\]"
    ):
        FusedEmbedding.from_pretrained({"user": tables[0]}, field_names=["item"])


def test_from_pretrained_takes_one_tensor_as_one_field():
    table = nn.Embedding(6, 2).weight
    emb = FusedEmbedding.from_pretrained(table)
    assert torch.equal(emb.weight, table)
    assert emb.weight.data_ptr() != table.data_ptr()


@pytest.mark.parametrize("of", [lambda x: x, lambda x: [x], lambda x: {"user": x}])
def test_a_module_in_place_of_its_weight_is_named(of):
    with pytest.raises(
        TypeError, match=r"embeddings must be tensors, such as the weight of .*, got Embedding$"
    ):
        FusedEmbedding.from_pretrained(of(nn.Embedding(6, 2)))


@pytest.mark.parametrize(
    "tables",
    [[], [torch.ones(3)], [torch.ones(3, 2).int()], [torch.ones(3, 2), torch.ones(3, 2).double()]],
)
def test_bad_tables_are_named(tables):
    with pytest.raises(ValueError, match=r"from_pretrained: embeddings must be"):
        FusedEmbedding.from_pretrained(tables)
