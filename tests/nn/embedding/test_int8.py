"""QuantizedEmbedding: what it stores, and that it looks up what it stores."""

import copy

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.ops.embedding.int8 import pack_rows, sum_rows, sum_rows_plain, unpack_rows

SIZES = [5, 1, 40]
WIDTHS = [8, [8, 2, 8]]


def batch(size: int = 16) -> torch.Tensor:
    return torch.stack([torch.randint(0, n, (size,)) for n in SIZES], 1)


def restored(quantized: torch.nn.Module, emb: FusedEmbedding) -> FusedEmbedding:
    """A FusedEmbedding with the values that the quantized one stands for."""
    other = copy.deepcopy(emb).float()
    for f in range(len(SIZES)):
        other.field_weight(f).copy_(quantized.field_weight(f))
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("widths", WIDTHS, ids=["one width", "mixed"])
def test_values_are_off_by_half_a_step_of_their_row(widths, dtype):
    emb = FusedEmbedding(SIZES, widths, dtype=dtype, padding_idx=0)
    quantized = emb.quantized()
    for f in range(len(SIZES)):
        rows, found = emb.field_weight(f).float(), quantized.field_weight(f)
        step = (rows.amax(1) - rows.amin(1)) / 255
        assert ((found - rows).abs() <= step[:, None] * 0.501 + 1e-7).all()
        assert not found[0].any()
    assert not list(quantized.parameters())


def test_the_error_of_a_row_of_tiny_range_exceeds_half_a_step():
    """As the docstring says: the format adds 1e-8 to the range of a row."""
    for span, bounded in ((1e-2, True), (1e-8, False)):
        row = torch.linspace(0, span, 9)[None]
        error = (unpack_rows(pack_rows(row)) - row).abs().max()
        assert (error <= span / 510 * 1.01) == bounded


@pytest.mark.parametrize("widths", WIDTHS, ids=["one width", "mixed"])
@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("padding", [None, 0])
def test_look_ups_and_bags_equal_those_of_the_stored_values(widths, pooling, padding):
    emb = FusedEmbedding(SIZES, widths, pooling=pooling, padding_idx=padding)
    quantized = emb.quantized()
    truth = restored(quantized, emb)
    ids = torch.stack([batch(), batch(), batch()], 2)
    factors = torch.rand(ids.shape)
    values, offsets = torch.tensor([0, 0, 39, 4, 4, 0]), torch.tensor([0, 1, 2, 3, 5, 6, 6])
    for arguments in (
        (ids[..., 0],),
        (ids[..., 0].int(),),
        (ids,),
        (ids, None, factors),
        (values, offsets),
        (ids[:0],),
    ):
        out = quantized(*arguments)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, truth(*arguments).detach())


def test_the_plain_sum_equals_that_of_torch():
    packed = pack_rows(torch.randn(20, 6))
    rows = torch.randint(0, 20, (9,))
    offsets = torch.tensor([0, 0, 4, 9, 9])
    factors = torch.rand(9)
    for weights in (None, factors):
        torch.testing.assert_close(
            sum_rows_plain(packed, rows, offsets, weights), sum_rows(packed, rows, offsets, weights)
        )
    unpacked = torch.ops.quantized.embedding_bag_byte_unpack(packed)
    torch.testing.assert_close(unpack_rows(packed), unpacked)


def test_missed_steps_are_taken_before():
    emb = FusedEmbedding(SIZES, 8)
    optimizer = optim.Adam(emb, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        emb(batch(2)).sum().backward()
        optimizer.step()
    quantized = emb.quantized()
    torch.testing.assert_close(quantized.field_weight(2), emb.field_weight(2), rtol=0.02, atol=1e-3)


def test_bad_ids_are_named_or_counted():
    emb = FusedEmbedding(SIZES, [8, 2, 8])
    with pytest.raises(IndexError, match=r"ids\[0, 1\] = 1 is out of range for field 1"):
        emb.quantized()(torch.tensor([[0, 1, 0]]))
    with pytest.raises(IndexError, match=r"values\[2\] = 40 \(row 0\) is out of range for field 2"):
        emb.quantized()(torch.tensor([0, 0, 40]), torch.arange(4))
    counting = FusedEmbedding(SIZES, 8, on_bad_id="oov").quantized()
    counting(torch.tensor([[5, 0, 40]]))
    assert counting.oov_counts.tolist() == [1, 0, 1]


@pytest.mark.parametrize("widths", WIDTHS, ids=["one width", "mixed"])
def test_the_state_is_saved_and_loaded(widths):
    one, two = (FusedEmbedding(SIZES, widths).quantized() for _ in range(2))
    assert {value.dtype for value in one.state_dict().values()} == {torch.uint8}
    two.load_state_dict(one.state_dict())
    ids = batch()
    assert torch.equal(copy.deepcopy(two)(ids), one(ids))
