"""The look-up in int8 tables, compared with the float64 rows that were rounded."""

import pytest
import torch

from adaftr_fast.ops.embedding.int8 import int8_embedding
from adaftr_fast.ops.embedding.reference.int8 import round_rows

SIZES = torch.tensor([0, 3, 43, 50])
IDS = torch.tensor([[2, 39, 0], [0, 1, 6]])
VALUES = torch.tensor([2, 0, 6, 39, 1, 6], dtype=torch.int32)
OFFSETS = torch.tensor([0, 2, 2, 3, 3, 5, 6])
FACTORS = torch.tensor([1.0, 0.5, 0.0, -2.0, 3.0, 0.1])


def look_up(codes, scale, ids, offsets=None, factors=None, mean=False):
    return int8_embedding(codes, scale, ids, offsets, factors, SIZES, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_rows_are_rounded_to_half_a_step_and_zeros_stay(dtype):
    weight = (torch.randn(50, 7, dtype=torch.float64) * torch.logspace(-4, 3, 50)[:, None]).to(
        dtype
    )
    weight[5], weight[6, ::2] = 0, 0
    codes, scale = round_rows(weight)
    exact = weight.double()
    half_a_step = exact.abs().amax(1, keepdim=True) / 254
    assert ((codes * scale - exact).abs() <= half_a_step * (1 + 1e-5)).all()
    assert (codes[5] == 0).all()
    assert (codes[6, ::2] == 0).all()


def test_a_row_that_is_not_finite_stays_so():
    weight = torch.ones(2, 3)
    weight[0, 1], weight[1, 1] = torch.nan, torch.inf
    codes, scale = round_rows(weight)
    found = int8_embedding(
        codes, scale, torch.tensor([[0], [1]]), None, None, torch.tensor([0, 2]), False
    )
    assert not found.isfinite().all(1).any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.tensor([[2, 40, 0]]),),
            IndexError,
            r"ids\[0, 1\] = 40 is out of range for field 1, whose ids are 0",
        ),
        (
            (VALUES + (torch.arange(6) == 5), OFFSETS),
            IndexError,
            r"values\[5\] = 7 \(row 1\) is out of range for fie",
        ),
        ((torch.ones(2, 3),), TypeError, "ids must be int32 or int64, got torch.float32"),
        ((IDS[:, :2],), ValueError, r"ids must be \[B, 3\]"),
        ((VALUES, OFFSETS + 1), ValueError, "offsets must rise from 0 to the number of values, 6"),
        (
            (VALUES, OFFSETS, FACTORS[:5]),
            ValueError,
            r"per_sample_weights must be \[6\], got \[5\]",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    codes, scale = round_rows(torch.ones(50, 4))
    with pytest.raises(error, match=f"int8_embedding: {message}"):
        look_up(codes, scale, *arguments)
