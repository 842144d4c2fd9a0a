"""FusedEmbedding with fields of different widths, against one nn.Embedding per field."""

import copy
import pickle

import pytest
import torch
from torch import nn

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn.deferred import missed_steps
from adaftr_fast.nn.embedding_table import trained_by

SIZES = [5, 9, 40, 3]
WIDTHS = [8, 3, 8, 1]
NAMES = ["a", "b", "c", "d"]


def make(**options):
    return FusedEmbedding(SIZES, WIDTHS, field_names=NAMES, **options)


def batch(size=17):
    return torch.stack([torch.randint(0, n, (size,)) for n in SIZES], 1)


def expected(emb, ids):
    return torch.cat([emb.field_weight(f)[ids[:, f]] for f in range(4)], 1)


def test_lays_the_fields_in_order():
    emb, ids = make(), batch()
    assert isinstance(emb, FusedEmbedding)
    assert emb(ids).shape == (17, 20) == (17, emb.out_features)
    assert torch.equal(emb(ids), expected(emb, ids))
    assert torch.equal(emb(ids.int().t().contiguous().t()), expected(emb, ids))
    assert emb.field_weight("b").shape == (9, 3)
    assert emb.offsets.tolist() == [0, 5, 14, 54, 57]


def test_is_one_module_with_one_parameter_per_width():
    emb = make()
    assert type(emb) is FusedEmbedding
    assert {name: list(p.shape) for name, p in emb.named_parameters()} == {
        "tables.0.weight": [3, 1],
        "tables.1.weight": [9, 3],
        "tables.2.weight": [45, 8],
    }
    assert emb.widths == emb.embedding_dim == WIDTHS
    assert [table.fields for table in emb.by_width] == [[3], [1], [0, 2]]
    assert "4 fields, num_embeddings=[5, 9, 40, 3], embedding_dim=[8, 3, 8, 1]" in repr(emb)


def test_equal_widths_are_one_table():
    emb = FusedEmbedding([3, 4], [8, 8])
    assert emb.weight.shape == (7, 8)
    assert emb.embedding_dim == 8


def test_bags_equal_embedding_bag():
    torch.manual_seed(0)
    emb, counts = make(pooling="sum"), torch.randint(0, 4, (6, 4))
    bags = torch.cat([torch.zeros(1, dtype=torch.int64), counts.flatten().cumsum(0)])
    field = (torch.arange(24) % 4).repeat_interleave(counts.flatten())
    values = (torch.rand(len(field)) * torch.tensor(SIZES)[field]).long()
    weights = torch.rand(len(values))
    out = emb(values, bags, weights)
    for f, part in enumerate(out.split(WIDTHS, 1)):
        mine = field == f
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), counts[:, f].cumsum(0)])
        want = nn.functional.embedding_bag(
            values[mine],
            emb.field_weight(f),
            ends,
            mode="sum",
            per_sample_weights=weights[mine],
            include_last_offset=True,
        )
        torch.testing.assert_close(part, want)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam", "AdamW"])
def test_trains_as_one_module_a_field(name):
    """Growing in the middle included."""
    torch.manual_seed(0)
    emb = make()
    each = nn.ModuleList(FusedEmbedding([n], e) for n, e in zip(SIZES, WIDTHS, strict=True))
    for f, single in enumerate(each):
        single.field_weight(0).copy_(emb.field_weight(f))
    optimizers = [getattr(optim, name)(m, lr=0.1) for m in (emb, each)]
    for step in range(8):
        if step == 4:
            emb.grow("b", 12)
            each[1].grow(0, 12)
            emb.field_weight("b")[9:] = each[1].field_weight(0)[9:]
            assert emb.num_embeddings == [5, 12, 40, 3]
        ids = batch()
        outputs = emb(ids), torch.cat([single(ids[:, f : f + 1]) for f, single in enumerate(each)], 1)
        for optimizer, out in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            out.sin().sum().backward()
            optimizer.step()
    for f, single in enumerate(each):
        assert torch.equal(emb.field_weight(f), single.field_weight(0))


def test_training_resumes_from_saved_states_bit_by_bit():
    def train(emb, optimizer, seed):
        torch.manual_seed(seed)
        for _ in range(5):
            optimizer.zero_grad()
            emb(batch()).sin().sum().backward()
            optimizer.step()

    one, two = make(), make()
    first, second = optim.Adam(one, lr=0.1), optim.Adam(two, lr=0.5)
    train(one, first, 1)
    saved, state = copy.deepcopy(one.state_dict()), copy.deepcopy(first.state_dict())
    assert {"step", "exp_avg.a", "exp_avg.c"} <= state["state"][2].keys()
    train(one, first, 2)
    two.load_state_dict(saved)
    second.load_state_dict(state)
    train(two, second, 2)
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda emb: pickle.loads(pickle.dumps(emb))])
def test_copies_move_and_keep_their_gradients_coalesced(copied):
    emb, ids = make(), batch()
    twin = copied(emb)
    assert torch.equal(twin(ids), emb(ids))
    twin(ids).sum().backward()
    twin(ids).sum().backward()
    assert all(p.grad.is_coalesced() for p in twin.parameters())
    assert all(p.grad is None for p in emb.parameters())
    assert twin.double()(ids).dtype == torch.float64
    assert list(twin.state_dict()) == list(emb.state_dict())


def test_a_copy_has_the_present_rows_and_no_optimizer():
    emb = make()
    optimizer = optim.Adam(emb, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        emb(batch(4)).sin().sum().backward()
        optimizer.step()
    assert all(map(missed_steps, emb.table_weights()))
    ids = batch()
    expected_rows = emb(ids)
    twin = copy.deepcopy(emb)
    assert [trained_by(weight) for weight in twin.table_weights()] == [None] * 3
    assert torch.equal(twin(ids), expected_rows)
    twin.grow("b", 20)
    assert emb.num_embeddings == SIZES
    assert [table.num_embeddings for table in emb.by_width] == [[3], [9], [5, 40]]


def test_growing_moves_where_fields_begin():
    emb = make()
    emb.grow("a", 7)
    assert emb.field_offsets.tolist() == [0, 7, 16, 56, 59]
    assert emb.tables[2].offsets.tolist() == [0, 7, 47]
    ids = batch()
    ids[0] = torch.tensor([6, 8, 39, 2])
    assert torch.equal(emb(ids), expected(emb, ids))


def test_bad_ids_are_named_by_their_place_among_all_fields():
    emb, ids = make(), batch()
    ids[2, 1], ids[5, 3] = 9, -1
    with pytest.raises(IndexError, match=r"ids\[2, 1\] = 9 is out of range for field 1 \('b'\), whose ids are 0 to 8"):
        emb(ids)
    with pytest.raises(IndexError, match=r"values\[9\] = 9 \(row 2\) is out of range for field 1 \('b'\), whose"):
        emb(ids.flatten(), torch.arange(17 * 4 + 1))
    forgiving = make(on_bad_id="oov")
    replaced = ids.clone()
    replaced[2, 1] = replaced[5, 3] = 0
    assert torch.equal(forgiving(ids), expected(forgiving, replaced))
    assert forgiving.oov_counts.tolist() == [0, 1, 0, 1]
    assert torch.equal(forgiving(ids.flatten(), torch.arange(17 * 4 + 1)), expected(forgiving, replaced))
    assert forgiving.oov_counts.tolist() == [0, 2, 0, 2]


def test_compiles_as_one_graph():
    emb, ids = make(), batch()
    compiled = torch.compile(emb, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids), emb(ids))
    values, bags = ids.flatten()[:-3], torch.cat([torch.arange(17 * 4 - 2), torch.tensor([65, 65, 65])])
    out = compiled(values, bags)
    assert torch.equal(out, emb(values, bags))
    out.sum().backward()
    assert all(p.grad.is_coalesced() for p in emb.parameters())


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"embedding_dim must be one number, or 2 \(one per field\), got \[8\]"):
        FusedEmbedding([3, 4], [8])
    with pytest.raises(ValueError, match="embedding_dim must be one number, or 2"):
        FusedEmbedding([3, 4], [8, 2, 1])
    with pytest.raises(ValueError, match=r"embedding_dim must be >= 1, got \[8, 0\]"):
        FusedEmbedding([3, 4], [8, 0])
    with pytest.raises(KeyError, match="no field 'x'"):
        FusedEmbedding([3, 4], [8, 2]).field_weight("x")
    with pytest.raises(ValueError, match="offsets must rise from 0 to the number of values, 3"):
        make()(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 2, 2, 2]))
