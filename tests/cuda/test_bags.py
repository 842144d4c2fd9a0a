"""Bags of ids in the CUDA files, run serially on the CPU, against the references."""

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.ops.embedding.reference import bags as reference
from tests.tolerances import assert_as_accurate

SIZES = [50, 1, 20]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def bags_for(batch, longest=5, id_type=torch.int64):
    """Random bags of up to ``longest`` ids, many of them empty."""
    lengths = torch.randint(0, longest + 1, (batch * len(SIZES),)) * (
        torch.rand(batch * len(SIZES)) > 0.3
    )
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    field = (torch.arange(len(lengths)) % len(SIZES)).repeat_interleave(lengths)
    values = (torch.rand(len(field)) * torch.tensor(SIZES)[field]).to(id_type)
    return values, offsets


WIDTHS = [1, 3, 8, 100]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("mode", ["sum", "mean", "weighted"])
def test_pools_and_its_backward(serial, lanes, mode, number):
    dtype = DTYPES[number]
    width = WIDTHS[(number + lanes + len(mode)) % 4]
    emb = FusedEmbedding(SIZES, width, dtype=dtype)
    weight = emb.weight.detach()
    mean = mode == "mean"
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for batch, id_type in ((0, torch.int64), (1, torch.int64), (90, torch.int32)):
        values, offsets = bags_for(batch, id_type=id_type)
        factors = torch.randn(len(values), dtype=wide) if mode == "weighted" else None
        bags = (values, offsets, factors, emb.offsets)
        out = serial.embedding_bags(weight, *bags, mean, [])
        doubles = (values, offsets, factors if factors is None else factors.double(), emb.offsets)
        truth = reference.embedding_bags(weight.double(), *doubles, mean, [])
        assert_as_accurate(out, truth, reference.embedding_bags(weight, *bags, mean, []), dtype)

        grad = torch.randn_like(out)
        rows, terms = serial.embedding_bags_backward(grad, *bags, width, mean)
        bag, expected_rows = reference.resolve_ids("test", *bags)
        expected = reference.gradient_terms(grad.double(), bag, *doubles[1:3], width, mean)
        assert torch.equal(rows, expected_rows)
        own = reference.gradient_terms(grad, bag, *bags[1:3], width, mean).to(dtype)
        assert_as_accurate(terms, expected, own, dtype)


def test_selects_bags(serial):
    for batch, chosen in (
        (0, [0]),
        (1, [1, 2]),
        (1, [0, 1, 2]),
        (90, [0]),
        (90, [0, 2]),
        (90, [0, 1, 2]),
    ):
        values, offsets = bags_for(batch)
        positions, ends = serial.select_bags(values, offsets, None, chosen, len(SIZES))
        expected, expected_ends = reference.select_bags(values, offsets, None, chosen, len(SIZES))
        assert torch.equal(ends, expected_ends)
        assert torch.equal(positions[: len(expected)], expected)
        assert len(positions) == len(values)  # the host does not know how many there are
    with pytest.raises(ValueError, match="embedding_bags: fields must be >= 1, got 0"):
        serial.select_bags(values, offsets, None, [], 0)


@pytest.mark.parametrize(
    ("values", "offsets", "fields", "rows"),
    [
        ([5, 7, -1, -1], [0, 1, 2], [0, 10], [5, 7, 5, 7]),
        ([-1, -1], [0, 0, 0], [0, 10], [10, 10]),  # row 10 is none of the table's
        ([1, 2, 3, 4], [0, 1, 9, 4], [0, 5, 10, 15], [1, 0, 0, 0]),  # bad offsets
    ],
    ids=["behind the last bag", "without any id", "in no bag"],
)
def test_ids_outside_of_bags_have_a_row_and_zeros(serial, values, offsets, fields, rows):
    values, offsets, fields = map(torch.tensor, (values, offsets, fields))
    batch = (len(offsets) - 1) // (len(fields) - 1)
    for width in (1, 8):
        grad = torch.ones(batch, (len(fields) - 1) * width)
        bags = (values, offsets, None, fields)
        found, terms = serial.embedding_bags_backward(grad, *bags, width, False)
        assert found.tolist() == rows
        inside = (torch.arange(len(values)) < offsets[-1]) & (found == values)
        assert torch.equal(terms, inside[:, None].expand(-1, width).float())


@pytest.mark.parametrize(
    ("offsets", "at"),
    [
        ([0, 3, 2, 4], 2),
        ([1, 2, 3, 4], 0),
        ([0, 1, 2, 3], 3),
        ([0, 1, 2, 9], 3),
        ([0, -1, 2, 4], 1),
    ],
)
def test_bad_offsets_are_raised_by_the_next_op(serial, offsets, at):
    values = torch.zeros(4, dtype=torch.int64)
    weight = torch.ones(10, 4)
    out = serial.embedding_bags(
        weight, values, torch.tensor(offsets), None, torch.tensor([0, 5, 6, 10]), False, []
    )
    with pytest.raises(
        ValueError,
        match=rf"offsets must rise from 0 to the number of values, 4, got .* position {at}",
    ):
        serial.raise_reported(out)


def test_ids_without_a_bag_are_named(serial):
    bags = (torch.tensor([1]), torch.tensor([0]), None)
    with pytest.raises(ValueError, match="from 0 to the number of values, 1, got no bag"):
        serial.embedding_bags(torch.ones(9, 4), *bags, torch.tensor([0, 9]), False, [])


def test_a_bad_id_counts_as_zeros_and_is_raised_by_the_next_op(serial):
    values = torch.tensor([0, 9, 1])
    offsets = torch.tensor([0, 2, 3])
    out = serial.embedding_bags(
        torch.ones(9, 4), values, offsets, None, torch.tensor([0, 9]), False, []
    )
    assert out[:, 0].tolist() == [1, 1]
    message = "row 0: 9 is out of range for field 0 of its table, whose ids are 0 to 8"
    with pytest.raises(IndexError, match=message):
        serial.raise_reported(out)
    bags = (values, offsets, None, torch.tensor([0, 9]))
    rows, _ = serial.embedding_bags_backward(torch.ones(2, 4), *bags, 4, False)
    assert rows.tolist() == [0, 9, 1]  # row 9 is none of the table's, and updates leave it out


@pytest.mark.parametrize(
    ("kind", "widths", "pooling", "dtype"),
    [
        ("Adam", 8, "sum", torch.float32),
        ("Adam", 8, "sum", torch.bfloat16),
        ("Adam", 8, "sum", torch.float16),
        ("AdamW", [8, 3, 8], "mean", torch.float32),
        ("LazyAdam", [8, 3, 8], "sum", torch.float32),
        ("SGD", 8, "mean", torch.float32),
        ("RowwiseAdagrad", [8, 3, 8], "mean", torch.float32),
    ],
)
def test_training_equals_the_cpu_kernels(on_serial, monkeypatch, widths, kind, pooling, dtype):
    """Single and mixed widths, through modules and optimizers."""
    tables = {}
    for on in ("serial", "cpu"):
        torch.manual_seed(0)
        emb = FusedEmbedding(SIZES, widths, pooling=pooling, dtype=dtype)
        optimizer = getattr(optim, kind)(emb, lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            emb(*bags_for(20)).float().sin().sum().backward()
            optimizer.step()
        # one id of each field, while other rows have missed steps
        looked_up = emb(torch.arange(20)[:, None] % torch.tensor(SIZES)).detach()
        emb.flush()
        tables[on] = {name: value.clone() for name, value in emb.state_dict().items()}
        tables[on]["look-up"] = looked_up
        if on == "serial":
            on_serial.uninstall()
            monkeypatch.undo()
    half = 4 * torch.finfo(dtype).eps
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (half, half)
    for name, value in tables["serial"].items():
        torch.testing.assert_close(value, tables["cpu"][name], rtol=rtol, atol=atol)
