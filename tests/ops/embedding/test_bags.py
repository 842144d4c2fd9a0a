"""The op that pools bags: strided arguments and bad input."""

import pytest
import torch

from adaftr_fast._extension import is_built
from adaftr_fast.ops.embedding.bags import embedding_bags, select_bags
from tests.ops.marks import on_kernels

VALUES = torch.tensor([0, 9, 3, 1])
OFFSETS = torch.tensor([0, 1, 2, 4, 4])
FIELD_OFFSETS = torch.tensor([0, 4, 14])


def test_bad_per_sample_weights():
    weights = torch.ones(4, 1)
    message = r"embedding_bags: per_sample_weights must be .*\[4\], got"
    with pytest.raises(ValueError, match=message):
        embedding_bags(torch.randn(14, 3), VALUES, OFFSETS, weights, FIELD_OFFSETS, False)


@on_kernels("embedding", torch.float32)
def test_half_precision_tables_are_read_and_rounded_as_by_torch(dtype, instruction_set):
    every = torch.arange(2**16, dtype=torch.int32).short()
    # beside the middles between numbers of both types, random ones
    near = every.int().bitwise_left_shift(16)
    middles = torch.cat(
        [near + offset for offset in (0x7FFF, 0x8000, 0x8001, 0x0FFF, 0x1000, 0x1001)]
    )
    floats = torch.cat([middles, torch.randint(-(2**31), 2**31, (2**16,)).int()]).view(
        torch.float32
    )
    for half in (torch.bfloat16, torch.float16):
        for width in (8, 5):
            table = torch.nn.functional.pad(every, (0, -len(every) % width)).view(half)
            table = table.view(-1, width)
            read = pooled_alone(table, torch.arange(len(table)), torch.ones(len(table)))
            torch.testing.assert_close(read, flushed(table), rtol=0, atol=0, equal_nan=True)
            ones = torch.ones(1, width, dtype=half)
            rounded = pooled_alone(ones, torch.zeros(len(floats), dtype=torch.int64), floats)
            expected = flushed(floats).to(half)[:, None].expand(-1, width)
            torch.testing.assert_close(rounded, expected, rtol=0, atol=0, equal_nan=True)


def flushed(x):
    """Returns x with zeros for what is denormal in float32, which kernels flush."""
    if not is_built():
        return x
    return torch.where(x.float().abs() < torch.finfo(torch.float32).tiny, 0, x)


def pooled_alone(table, values, per_sample_weights):
    """Returns rows of the table times weights [N], each in a bag of its own, [N, E]."""
    offsets = torch.arange(len(values) + 1)
    field_offsets = torch.tensor([0, len(table)])
    return embedding_bags(table, values, offsets, per_sample_weights, field_offsets, False)


def test_bags_of_some_fields():
    # two rows of three fields
    values = torch.tensor([7, 8, 9, 6, 5])
    offsets = torch.tensor([0, 2, 2, 3, 3, 5, 5])
    positions, starts = select_bags(values, offsets, None, [0, 2], 3)
    assert (values[positions].tolist(), starts.tolist()) == ([7, 8, 9], [0, 2, 3, 3, 3])
    with pytest.raises(ValueError, match="offsets must rise from 0 to the number of values, 5"):
        select_bags(values, offsets[:4], None, [0], 3)
    with pytest.raises(ValueError, match="embedding_bags: fields must be >= 1, got 0"):
        select_bags(values, offsets, None, [], 0)
