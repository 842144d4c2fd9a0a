"""The look-ups of the CUDA files, run serially on the CPU, against the references."""

import pytest
import torch

from adaftr_fast import FusedEmbedding
from adaftr_fast.ops.embedding.reference import lookup as reference

SIZES = [50, 1, 20, 7]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def ids_for(batch, sizes=SIZES, dtype=torch.int64):
    """Random ids, and both ends of every field's range."""
    ids = torch.stack([torch.randint(0, n, (batch,)) for n in sizes], 1).to(dtype)
    if batch > 1:
        ids[0], ids[-1] = 0, torch.tensor(sizes) - 1
    return ids


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_rows(serial, lanes, dtype):
    for number, width in enumerate([1, 2, 3, 4, 6, 8, 16, 31, 64, 256, 1, 4]):
        emb = FusedEmbedding(SIZES, width, dtype=dtype)
        batch = (0, 1, 40, 257)[number % 4]
        id_type = (torch.int32, torch.int64)[number // 2 % 2]
        ids = ids_for(batch, dtype=id_type)
        out = serial.fused_embedding(emb.weight.detach(), ids, emb.offsets, [])
        assert torch.equal(out, reference.fused_embedding(emb.weight.detach(), ids, emb.offsets))


def test_non_contiguous_ids_and_an_unaligned_table(serial):
    weight = torch.randn(1 + 78 * 8)[1:].view(78, 8)
    offsets = FusedEmbedding(SIZES, 8).offsets
    ids = ids_for(80)[::2]
    assert torch.equal(
        serial.fused_embedding(weight, ids, offsets, []),
        reference.fused_embedding(weight, ids, offsets),
    )


@pytest.mark.parametrize("bad", [-1, 7, 2**40])
def test_a_bad_id_gives_zeros_and_is_raised_by_the_next_op(serial, bad):
    emb = FusedEmbedding(SIZES, 8)
    ids = ids_for(40)
    ids[20, 3] = bad
    weight = emb.weight.detach()
    out = serial.fused_embedding(weight, ids, emb.offsets, []).view(40, 4, 8)
    assert (out[20, 3] == 0).all()
    message = f"row 20: {bad} is out of range for field 3 of its table, whose ids are 0 to 6"
    with pytest.raises(IndexError, match=message):
        serial.fused_embedding(weight, ids_for(2), emb.offsets, [])
    serial.fused_embedding(weight, ids_for(2), emb.offsets, [])  # it is raised once
    serial.fused_embedding(weight, ids, emb.offsets, [])
    with pytest.raises(IndexError, match=message):
        serial.raise_reported(ids)
    serial.raise_reported(ids)


def test_a_bad_id_moves_no_row(serial):
    ids = torch.tensor([[49, 0, 5, 6], [50, 0, -1, 7]])
    rows = serial.embedding_rows(ids, FusedEmbedding(SIZES, 8).offsets)
    # row 78 is none of the table's: updates leave it out
    assert rows.tolist() == [49, 50, 56, 77, 78, 50, 78, 78]


def test_field_offsets_beyond_the_table_read_nothing_outside(serial):
    out = serial.fused_embedding(torch.ones(5, 4), torch.tensor([[6]]), torch.tensor([0, 9]), [])
    assert torch.equal(out, torch.zeros(1, 4))
    with pytest.raises(
        ValueError, match="field_offsets must rise within 0 to 5 rows of the table, got row 6"
    ):
        serial.raise_reported(out)


def test_divisions_by_a_multiplication(serial):
    """Positions are divided by the number of fields without a division: every field is met at its
    place.
    """
    for fields in [*range(1, 40), 121, 1000]:
        emb = FusedEmbedding([3] * fields, 2)
        ids = torch.randint(0, 3, (2000 // fields + 2, fields))
        expected = reference.fused_embedding(emb.weight.detach(), ids, emb.offsets)
        assert torch.equal(
            serial.fused_embedding(emb.weight.detach(), ids, emb.offsets, []), expected
        )
