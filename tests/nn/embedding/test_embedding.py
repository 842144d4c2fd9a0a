"""FusedEmbedding as a module, with fields of one width and of several: look-ups, gradients, growth
and copies.
"""

import copy
import pickle

import pytest
import torch
from torch import nn

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn import embedding_table

SIZES = [5, 9, 40, 1]
NAMES = ["a", "b", "c", "d"]
WIDTHS = pytest.mark.parametrize("widths", [8, [8, 3, 8, 1]], ids=["one width", "mixed"])
MIXED = [8, 3, 8, 1]


def make(widths=8, **options):
    return FusedEmbedding(SIZES, widths, field_names=NAMES, **options)


def batch(size=17):
    return torch.stack([torch.randint(0, n, (size,)) for n in SIZES], 1)


def tables_of(emb):
    """The fields as nn.Embedding."""
    return nn.ModuleList(
        nn.Embedding.from_pretrained(emb.field_weight(f).clone(), freeze=False) for f in range(4)
    )


def look_up(tables, ids):
    return torch.cat([table(ids[:, f]) for f, table in enumerate(tables)], 1)


def gradients_by_field(emb):
    """The gradients of the fields' rows, dense."""
    found = {}
    for owned, weight in zip(emb.by_width, emb.table_weights(), strict=True):
        assert weight.grad.is_coalesced()
        assert (weight.grad.indices()[0].diff() > 0).all()
        found |= dict(
            zip(owned.fields, weight.grad.to_dense().split(owned.num_embeddings), strict=True)
        )
    return [found[f] for f in range(4)]


def train(module, optimizer, steps, size=8):
    for _ in range(steps):
        optimizer.zero_grad()
        module(batch(size)).sin().sum().backward()
        optimizer.step()


def test_is_one_module_with_one_parameter_per_width():
    torch.manual_seed(0)
    emb = make(MIXED)
    assert type(emb) is FusedEmbedding
    assert {name: list(p.shape) for name, p in emb.named_parameters()} == {
        "tables.0.weight": [1, 1],
        "tables.1.weight": [9, 3],
        "tables.2.weight": [45, 8],
    }
    assert emb.widths == emb.embedding_dim == MIXED
    assert [table.fields for table in emb.by_width] == [[3], [1], [0, 2]]
    assert "4 fields, num_embeddings=[5, 9, 40, 1], embedding_dim=[8, 3, 8, 1]" in repr(emb)
    assert "(2): TableWeight(45, 8, float32)" in repr(emb)
    shown = repr(
        FusedEmbedding([5], 2, padding_idx=1, pooling="sum", on_bad_id="oov", sparse=False)
    )
    options = "padding_idx=[1], pooling='sum', on_bad_id='oov', sparse=False"
    assert shown == f"FusedEmbedding(1 fields, num_embeddings=[5], embedding_dim=2, {options})"
    weight = FusedEmbedding([4000, 6000], [8, 8]).weight
    assert weight.shape == (10_000, 8)
    assert abs(weight.std().item() - 0.01) < 1e-4
    with pytest.raises(KeyError, match="no field 'x'"):
        emb.field_weight("x")


@WIDTHS
@pytest.mark.parametrize(
    "copied", [lambda emb: emb, copy.deepcopy, lambda emb: pickle.loads(pickle.dumps(emb))]
)
def test_look_ups_and_gradients_that_accumulate_also_of_copies(copied, widths):
    original = make(widths)
    emb = copied(original)
    tables = tables_of(emb)
    assert emb.offsets.tolist() == [0, 5, 14, 54, 55]
    for _ in range(3):
        ids = batch()
        out = emb(ids.int().t().contiguous().t())
        expected = look_up(tables, ids)
        assert torch.equal(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
    torch.testing.assert_close(gradients_by_field(emb), [table.weight.grad for table in tables])
    assert emb is original or all(p.grad is None for p in original.parameters())
    assert emb.double()(ids).dtype == torch.float64
    emb.field_weight("b").fill_(2.0)  # a view
    assert (emb(ids).split(emb.widths, 1)[1] == 2).all()


@pytest.mark.parametrize("kind", ["ids", "bags", "deferred"])
def test_gradients_can_be_differentiated_again(kind):
    """A penalty on the gradient of the table reaches what its look-ups went through."""
    torch.manual_seed(0)
    emb, ids = make(3, dtype=torch.float64), torch.stack([batch(), batch()], 2)  # [B, F, L]
    if kind == "deferred":
        train(emb, optim.Adam(emb, lr=0.1), 2, 2)
        emb.weight.grad = None
    if kind != "bags":
        ids = ids[..., :1]
    out = emb(ids if kind == "bags" else ids[..., 0])
    emb.flush()
    table = emb.weight.detach().clone().requires_grad_()
    expected = table[ids + emb.offsets[:-1, None]].mean(2).flatten(1)
    scale = torch.randn(12, dtype=torch.float64, requires_grad=True)
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


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam],
    ids=lambda kind: kind.__name__,
)
def test_torch_optimizers_work_unchanged(optimizer):
    emb = make()
    table = nn.Embedding.from_pretrained(emb.weight.detach().clone(), freeze=False, sparse=True)
    ours, theirs = (optimizer(each.parameters(), lr=0.1) for each in (emb, table))
    for _ in range(5):
        ids = batch()
        for step, out in ((ours, emb(ids)), (theirs, table(ids + emb.offsets[:-1]).flatten(1))):
            step.zero_grad()
            (out - 1).square().sum().backward()
            step.step()
    torch.testing.assert_close(emb.weight, table.weight)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam", "AdamW"])
@WIDTHS
def test_trains_and_grows_as_one_module_a_field(widths, name):
    """State and a pending gradient stay."""
    torch.manual_seed(0)
    emb = make(widths)
    each = nn.ModuleList(FusedEmbedding([n], e) for n, e in zip(SIZES, emb.widths, strict=True))
    for f, single in enumerate(each):
        single.field_weight(0).copy_(emb.field_weight(f))
    optimizers = [getattr(optim, name)(m, lr=0.1) for m in (emb, each)]
    for step in range(6):
        ids = batch()
        ids[:, 1] = torch.randint(0, emb.num_embeddings[1], (17,))
        outputs = (
            emb(ids),
            torch.cat([single(ids[:, f : f + 1]) for f, single in enumerate(each)], 1),
        )
        for optimizer, out in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            out.sin().sum().backward()
        if step == 3:
            emb.grow("b", 12)
            each[1].grow(0, 12)
            emb.field_weight("b")[9:] = each[1].field_weight(0)[9:]
            assert emb.num_embeddings == [5, 12, 40, 1]
            assert emb.field_offsets.tolist() == [0, 5, 17, 57, 58]
        for optimizer in optimizers:
            optimizer.step()
    # Growth makes the rows of a table current, so that Adam applies the steps that others have
    # missed in two parts.
    rtol = 1e-5 if widths == 8 and name.startswith("Adam") else 0
    for f, single in enumerate(each):
        torch.testing.assert_close(
            emb.field_weight(f), single.field_weight(0), rtol=rtol, atol=rtol / 100
        )


def test_growing_keeps_a_dense_gradient():
    emb = make()
    emb(batch()).sin().sum().backward()
    emb.weight.grad = emb.weight.grad.to_dense()
    before = emb.weight.grad.split(emb.num_embeddings)
    emb.grow(1, 12)
    for old, new in zip(before, emb.weight.grad.split(emb.num_embeddings), strict=True):
        assert torch.equal(new[: len(old)], old)
        assert not new[len(old) :].any()
    assert before[2].any()


@WIDTHS
def test_bad_ids_are_named_or_count_into_the_oov_row(widths):
    emb = make(widths)
    ids = batch()
    ids[2, 1], ids[5, 3] = 9, -1
    with pytest.raises(
        IndexError,
        match=r"ids\[2, 1\] = 9 is out of range for field 1 \('b'\), whose ids are 0 to 8",
    ):
        emb(ids)
    with pytest.raises(
        IndexError, match=r"values\[9\] = 9 \(row 2\) is out of range for field 1 \('b'\), whose"
    ):
        emb(ids.flatten(), torch.arange(17 * 4 + 1))
    forgiving = make(widths, on_bad_id="oov")
    replaced = ids.clone()
    replaced[2, 1] = replaced[5, 3] = 0
    expected = look_up(tables_of(forgiving), replaced)
    assert torch.equal(forgiving(ids), expected)
    assert forgiving.oov_counts.tolist() == [0, 1, 0, 1]
    assert torch.equal(forgiving(ids.flatten(), torch.arange(17 * 4 + 1)), expected)
    assert forgiving.oov_counts.tolist() == [0, 2, 0, 2]


NINES = torch.full((4,), 99)
EACH = torch.arange(5)
RISE = "offsets must rise from 0 to the number of values, 4"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((NINES,), ValueError, r"ids must be \[B, 4\] \(one column per field\), got"),
        ((NINES[:1, None],), ValueError, r"ids must be \[B, 4\] \(one column per field\), got"),
        ((NINES[:, None, None, None],), ValueError, r"ids must be \[B, 4\]"),
        ((NINES[None].float(),), TypeError, "ids must be int32 or int64"),
        ((NINES.float(), EACH), TypeError, "values must be int32 or int64"),
        ((NINES[:, None], EACH), ValueError, r"values must be \[N\]"),
        ((NINES, EACH[::4]), ValueError, "offsets must be int64"),
        ((NINES, EACH[None]), ValueError, "offsets must be int64"),
        ((NINES, torch.tensor([0, 4, 2, 3, 4])), ValueError, RISE),
        ((NINES, EACH - EACH // 4), ValueError, RISE),
        ((NINES, EACH, torch.ones(2)), ValueError, r"per_sample_weights must be \[4\], as the i"),
    ],
)
@WIDTHS
def test_wrong_shapes_are_named_and_counted_nowhere(widths, arguments, error, message):
    for on_bad_id in ("raise", "oov"):
        emb = make(widths, on_bad_id=on_bad_id, pooling="sum")
        with pytest.raises(error, match=message):
            emb(*arguments)
        with pytest.raises(ValueError, match=r"ids must be \[N\]"):
            emb.look_up_field(0, NINES[:, None])
        assert not emb.oov_counts.any()


@pytest.mark.parametrize(
    ("sizes", "width", "error", "message"),
    [
        ([], 8, ValueError, "num_embeddings must be one number >= 1 per field"),
        ([3, 0], 8, ValueError, "num_embeddings must be one number >= 1 per field"),
        (10, 4, TypeError, "num_embeddings must be a list, one number per field, got int"),
        ([3, 4], [8], ValueError, r"embedding_dim must be one for all fields, or 2 \("),
        ([3, 4], [8, 0], ValueError, r"embedding_dim must be >= 1, got \[8, 0\]"),
    ],
)
def test_bad_sizes_are_named(sizes, width, error, message):
    with pytest.raises(error, match=f"FusedEmbedding: {message}"):
        FusedEmbedding(sizes, width)


@pytest.mark.parametrize(("fields", "width"), [([3], 4), ([100, 7], 4), ([33], 3), ([65], 1)])
def test_tables_elsewhere_have_no_memory_and_are_drawn_later_in_the_same_bits(
    fields, width, monkeypatch
):
    monkeypatch.setattr(embedding_table, "DRAWN", 16)
    torch.manual_seed(3)
    here = FusedEmbedding(fields, width)
    after = torch.rand(3)
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
    one = FusedEmbedding([2, 3], 4)
    two = FusedEmbedding([2, 3], 4)
    two.weight = one.weight
    two.weight = one.weight
    assert len(one.weight._post_accumulate_grad_hooks) == 1
    twin = copy.deepcopy(one)
    assert len(twin.weight._post_accumulate_grad_hooks) == 1


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_counts_replaced_ids_once(use_reentrant):
    emb = FusedEmbedding([5, 7], 2, on_bad_id="oov")
    ids = torch.tensor([[9, 1], [9, 7]])

    def run(ids, scale):
        return (emb(ids).sum() + emb.look_up_field(0, ids[:, 0]).sum()) * scale

    scale = torch.ones((), requires_grad=True)
    checkpoint = torch.utils.checkpoint.checkpoint
    checkpoint(run, ids, scale, use_reentrant=use_reentrant).backward()
    assert emb.oov_counts.tolist() == [4, 1]
