"""Target attention, compared with a loop over rows in float64."""

import pytest
import torch
from torch.autograd import forward_ad

from adaftr_fast import FusedEmbedding
from adaftr_fast.nn.attention import FieldAttention, TargetAttention
from adaftr_fast.ops.embedding.segments import repeat_by_bag, sum_bags
from tests.tolerances import assert_same_bits

LENGTHS = [3, 0, 1, 5, 0]
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)


def attend(unit, query, keys):
    """Pools the keys [n, E] of one query [E]: Eq. 3 of DIN."""
    pooled = torch.zeros_like(query)
    for key in keys:
        x = torch.cat([query, key, query - key, query * key])
        for layer in unit.mlp.layers:
            x = (layer.weight @ x + layer.bias).relu()
        pooled = pooled + (unit.logit.weight[0] @ x + unit.logit.bias[0]) * key
    return pooled


def inputs(width=4, dtype=torch.float64):
    torch.manual_seed(0)
    unit = TargetAttention(width, [6, 5]).to(dtype)
    query = torch.randn(len(LENGTHS), width, dtype=dtype)
    keys = torch.randn(sum(LENGTHS), width, dtype=dtype)
    return unit, query.requires_grad_(), keys.requires_grad_()


def by_hand(unit, query, keys):
    rows = zip(query, keys.split(LENGTHS), strict=True)
    return torch.stack([attend(unit.unit, q, of_row) for q, of_row in rows])


def test_the_result_and_its_gradients_are_those_of_a_loop():
    unit, query, keys = inputs()
    pooled = unit(query, keys, OFFSETS)
    expected = by_hand(unit, query, keys)
    torch.testing.assert_close(pooled, expected)
    assert (pooled[[1, 4]] == 0).all()
    assert pooled[[0, 2, 3]].abs().min() > 0
    weights = torch.randn_like(pooled)
    wanted = [query, keys, *unit.parameters()]
    found, exact = (
        torch.autograd.grad((out * weights).sum(), wanted) for out in (pooled, expected)
    )
    torch.testing.assert_close(found, exact)


def test_second_derivatives_agree_with_differences():
    unit, query, keys = inputs(width=2)
    assert torch.autograd.gradgradcheck(lambda q, k: unit(q, k, OFFSETS), (query, keys))


def test_the_same_input_gives_the_same_bits_and_no_key_zeros():
    unit, query, keys = inputs(dtype=torch.float32)
    runs = [
        torch.autograd.grad(unit(query, keys, OFFSETS).square().sum(), [query, keys])
        for _ in range(3)
    ]
    assert_same_bits(runs[1:], runs[:1] * 2)
    pooled = unit(query, keys[:0], torch.zeros_like(OFFSETS))
    assert torch.equal(pooled, torch.zeros_like(query))
    pooled.sum().backward()
    assert (query.grad == 0).all()


def test_a_compiled_unit_computes_the_same():
    unit, query, keys = inputs()
    compiled = torch.compile(unit, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (slice(None), slice(0, 2)):
        offsets = OFFSETS[: len(query[rows]) + 1]
        found, exact = (
            each(query[rows], keys[: offsets[-1]], offsets) for each in (compiled, unit)
        )
        torch.testing.assert_close(found, exact)
        gradients = [
            torch.autograd.grad(each.square().sum(), [query, keys]) for each in (found, exact)
        ]
        torch.testing.assert_close(*gradients)


def test_bad_shapes_are_named():
    unit, query, keys = inputs()
    with pytest.raises(
        ValueError, match=r"query and keys must be \[5, 4\] and \[N, 4\], got \[4, 4\] and \[9, 4\]"
    ):
        unit(query[1:], keys, OFFSETS)
    with pytest.raises(ValueError, match="offsets must rise from 0 to the number of values, 8"):
        unit(query, keys[1:], OFFSETS)


@pytest.mark.parametrize("widths", [[3, 3, 3], [2, 3, 3]], ids=["one table", "two tables"])
def test_a_field_is_pooled_with_the_vectors_of_its_target(widths):
    """Field 1, of several ids, attends to field 2; field 0 is averaged."""
    torch.manual_seed(0)
    embedding = FusedEmbedding([5, 7], [widths[0], 3], field_names=["0", "2"], dtype=torch.float64)
    torch.nn.init.normal_(embedding.table_weights()[-1])
    attention = FieldAttention({1: 2}, widths, [4]).double()
    # of the fields 0, 1 and 2, row after row
    bags = [[1, 4], [6, 0, 2], [3], [], [], [6], [2], [1, 1], [0]]
    ids = torch.tensor([each for bag in bags for each in bag], dtype=torch.int32)
    offsets = torch.tensor([0, *map(len, bags)]).cumsum(0)
    out = attention(embedding, ids, offsets)
    first, last = (embedding.field_weight(name).clone().requires_grad_() for name in ("0", "2"))
    rows = []
    for own, history, (item,) in zip(bags[::3], bags[1::3], bags[2::3], strict=True):
        mean = first[own].sum(0) / max(len(own), 1)
        pooled = attend(attention.units[0].unit, last[item], last[history])
        rows.append(torch.cat([mean, pooled, last[item]]))
    expected = torch.stack(rows)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert all(weight.grad.is_coalesced() for weight in embedding.table_weights())
    gradient = torch.cat([w.grad.to_dense().flatten() for w in embedding.table_weights()])
    torch.testing.assert_close(gradient, torch.cat([first.grad.flatten(), last.grad.flatten()]))
    message = r"ids\[\d\] = 7 is out of range for field 1 \('2'\), whose ids are 0 to 6"
    with pytest.raises(IndexError, match=message):
        attention(embedding, torch.tensor([1, 7, 0]), torch.arange(4))


def test_tokens_of_one_field():
    embedding = FusedEmbedding(
        [5, 7], 3, field_names=["a", "b"], padding_idx=[None, 2], on_bad_id="oov"
    )
    ids = torch.tensor([2, 9, 6, -1])
    out = embedding.look_up_field("b", ids)
    assert torch.equal(out, embedding.field_weight("b")[[2, 0, 6, 0]])
    assert embedding.oov_counts.tolist() == [0, 2]
    out.sum().backward()
    assert embedding.weight.grad.to_dense().sum(1).tolist() == [0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 3]
    with pytest.raises(KeyError, match="no field 'c'"):
        embedding.look_up_field("c", ids)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (
            torch.tensor([1, 7]),
            IndexError,
            r"ids\[1\] = 7 is out of range for field 1 \('b'\), whose ids are 0 to 6",
        ),
        (torch.zeros(2, 5, dtype=torch.int64), ValueError, r"ids must be \[N\], got \[2, 5\]"),
        (torch.ones(3), TypeError, "ids must be int32 or int64, got torch.float32"),
    ],
)
def test_bad_ids_of_one_field_are_named(ids, error, message):
    embedding = FusedEmbedding([5, 7], 3, field_names=["a", "b"])
    with pytest.raises(error, match=f"look_up_field: {message}"):
        embedding.look_up_field("b", ids)


def test_forward_mode_keeps_the_tangents_of_bags():
    """Both are linear, so the tangent of a result is the result of the tangent."""
    offsets = torch.tensor([0, 2, 2, 5])
    vectors = torch.randn(5, 3)
    bags = torch.randn(3, 3)
    for function, x in (
        (lambda x: sum_bags(x, offsets), vectors),
        (lambda x: repeat_by_bag(x, offsets, 5), bags),
    ):
        direction = torch.randn_like(x)
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction)))
        torch.testing.assert_close(found.primal, function(x))
        torch.testing.assert_close(found.tangent, function(direction))
