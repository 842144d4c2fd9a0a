"""The merge of duplicate rows and the optimizers' steps of the CUDA files, run serially
on the CPU.
"""

import pytest
import torch

from adaftr_fast.ops.embedding.reference import lookup
from adaftr_fast.ops.embedding.reference import optim as reference
from tests.tolerances import SLACK, assert_as_accurate, error

ROWS = 90
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WIDTHS = [1, 3, 8, 100, 256]
CASES = {
    "one": lambda: torch.tensor([7]),
    "distinct": lambda: torch.randperm(ROWS)[:60],
    "duplicates": lambda: (torch.rand(300) ** 3 * ROWS).long(),
    "one tile": lambda: torch.randint(0, 5, (256,)),
    "a tile and one": lambda: torch.randint(0, 2, (257,)),
    "all equal": lambda: torch.full((3000,), 4),
    "a row per tile": lambda: torch.arange(4).repeat_interleave(256),
    "rows that cross tiles": lambda: torch.arange(9).repeat_interleave(100),
    "both ends": lambda: torch.tensor([0, ROWS - 1]).repeat(200),
}


def terms(case, width, dtype):
    torch.manual_seed(0)
    rows = CASES[case]()
    return rows, torch.randn(len(rows), width).to(dtype)


def merged(rows, grad):
    """The distinct rows and the sums of their gradients, in float64."""
    return lookup.merge_rows(rows, grad.double(), ROWS)


def problems(dtype):
    """Yields the cases with widths, each pair of which occurs in some dtype or with some number of
    lanes.
    """
    for number, case in enumerate(CASES):
        width = WIDTHS[(number + DTYPES.index(dtype)) % len(WIDTHS)]
        yield case, width, *terms(case, width, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge(serial, lanes, dtype):
    for case, width, rows, grad in problems(dtype):
        sorted_rows, sums = serial.merge_rows(rows, grad, ROWS)
        assert torch.equal(sorted_rows, rows.sort().values)
        heads = torch.cat([torch.tensor([True]), sorted_rows.diff() > 0])
        assert not sums[~heads].any()  # the sum once, zeros where the row repeats
        expected_rows, expected = merged(rows, grad)
        assert torch.equal(sorted_rows[heads], expected_rows)
        wide = grad.float() if dtype.itemsize < 4 else grad
        theirs = (
            torch.sparse_coo_tensor(rows[None], wide, (ROWS, width)).coalesce().values().to(dtype)
        )
        assert_as_accurate(sums[heads], expected, theirs, dtype, f"{case}, width {width}")
        assert torch.equal(serial.merge_rows(rows, grad, ROWS)[1], sums)


def test_merge_of_nothing(serial):
    rows, sums = serial.merge_rows(torch.empty(0, dtype=torch.int64), torch.empty(0, 8), ROWS)
    assert rows.shape == (0,)
    assert sums.shape == (0, 8)


def test_rows_out_of_range_are_left_out(serial):
    weight = torch.zeros(5, 4)
    rows = torch.tensor([2, -1, 5, 2**40, 2])
    serial.embedding_sgd_(weight, rows, torch.ones(5, 4), 1.0, 0.0)
    expected = torch.zeros(5, 4)
    expected[2] = -2
    assert torch.equal(weight, expected)


STEPS = {
    "embedding_sgd_": (None, (0.1, 0.01)),
    "embedding_adagrad_": (lambda width: (ROWS, width), (0.1, 0.01, 1e-8)),
    "embedding_rowwise_adagrad_": (lambda width: (ROWS,), (0.1, 0.01, 1e-8)),
    "embedding_lazy_adam_": (lambda width: (ROWS, 2, width), (0.1, 0.01, 1e-8, 0.9, 0.999)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STEPS)
def test_steps(serial, lanes, name, dtype):
    if lanes > 1 and name == "embedding_rowwise_adagrad_":
        pytest.skip("sums over lanes")
    shape, scalars = STEPS[name]
    step = getattr(reference, name.removeprefix("embedding_"))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for case, width, rows, grad in problems(dtype):
        start = torch.randn(ROWS, width).to(dtype)
        state = [] if shape is None else [torch.rand(shape(width), dtype=wide)]
        weight = start.clone()
        own = [each.clone() for each in state]
        getattr(serial, name)(weight, *own, rows, grad, *scalars)

        distinct, sums = merged(rows, grad)
        truth = start.double()
        true_state = [each.double() for each in state]
        step(truth, *true_state, distinct, sums, *scalars)
        many = 10 if case == "all equal" and wide == torch.float32 else 1
        # Of half types, the sums, steps and states are float32, and the new weights are rounded
        # once.
        bound = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else SLACK[dtype] * many
        assert error(weight, truth) <= bound, (case, width)
        untouched = torch.ones(ROWS, dtype=torch.bool).index_fill(0, distinct, False)
        assert torch.equal(weight[untouched], start[untouched])
        for mine, right in zip(own, true_state, strict=True):
            assert error(mine, right) <= SLACK[wide] * many, (case, width)
