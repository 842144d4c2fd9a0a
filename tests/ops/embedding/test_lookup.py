"""The embedding ops: kernels against the plain-PyTorch reference, gradcheck, opcheck, threads, bad
input.
"""

import pytest
import torch

from adaftr_fast.ops.embedding.lookup import fused_embedding
from adaftr_fast.ops.embedding.reference import lookup as reference
from tests.ops.marks import needs_extension, on_kernels, on_threads
from tests.tolerances import assert_as_accurate, assert_same_bits


def field_offsets_of(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def random_ids(sizes: list[int], batch: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, n, (batch,), generator=generator) for n in sizes], 1).to(
        dtype
    )


def backward(
    grad: torch.Tensor, ids: torch.Tensor, field_offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.adaftr_fast.fused_embedding_backward(
        grad, ids, field_offsets, grad.shape[1] // ids.shape[1]
    )


@on_kernels("embedding", torch.float32)
def test_bad_id(dtype, instruction_set):
    sizes = [5, 7, 9]
    field_offsets = field_offsets_of(sizes)
    for bad, id_type in (
        (-1, torch.int32),
        (-1, torch.int64),
        (7, torch.int64),
        (2**31 - 1, torch.int32),
    ):
        ids = random_ids(sizes, 2000, id_type)
        ids[1500, 1] = bad
        message = rf"ids\[1500, 1\] = {bad} is out of range for field 1, whose ids are 0 to 6"
        with pytest.raises(IndexError, match=message):
            fused_embedding(torch.randn(21, 8), ids, field_offsets)
        with pytest.raises(IndexError, match=message):
            backward(torch.randn(2000, 24), ids, field_offsets)
        ids[1500, 1] = 0  # the failed call leaves no state behind
        rows, _ = backward(torch.randn(2000, 24), ids, field_offsets)
        assert torch.equal(rows, torch.arange(21))


def test_bad_arguments():
    weight = torch.randn(12, 4)
    field_offsets = torch.tensor([0, 5, 12])
    with pytest.raises(TypeError, match="fused_embedding: ids must be int32 or int64"):
        fused_embedding(weight, torch.zeros(3, 2), field_offsets)
    with pytest.raises(ValueError, match=r"fused_embedding: ids must be \[B, 2\]"):
        fused_embedding(weight, torch.zeros(3, 3, dtype=torch.int64), field_offsets)


@needs_extension
def test_gradients_of_another_shape_raise():
    """Also of a width whose product with the fields overflows."""
    ops = torch.ops.adaftr_fast
    field_offsets = field_offsets_of([3, 3])
    ids = torch.zeros(2, 2, dtype=torch.int64)
    starts = torch.arange(5)
    cases = [(torch.ones(size), 4) for size in ((1, 8), (3, 8), (2, 7), (4, 4), (16,))]
    for grad, width in [*cases, (torch.ones(2, 0), 2**63 - 2**62), (torch.ones(2, 0), -1)]:
        for call in (
            lambda grad, width: ops.fused_embedding_backward(grad, ids, field_offsets, width),
            lambda grad, width: ops.embedding_and_squares_backward(
                grad, ids, field_offsets, width, grad, torch.tensor(1.0)
            ),
            lambda grad, width: ops.embedding_bags_backward(
                grad, ids.flatten(), starts, None, field_offsets, width, False
            ),
        ):
            with pytest.raises(ValueError, match=r"backward: grad must be \[2, 2 \* "):
                call(grad, width)


# Many fields, one thread each; few fields, whose rows the threads share; one field; one field with
# a single row.
@pytest.mark.parametrize(
    ("sizes", "width"),
    [([400] * 30, 3), ([70_000, 3, 400], 8), ([9000], 3), ([1], 8)],
    ids=str,
)
@on_kernels("embedding", torch.float32)
def test_bitwise_equal_for_any_thread_count(sizes, width, dtype, instruction_set):
    field_offsets = field_offsets_of(sizes)
    ids = random_ids(sizes, 6000, torch.int64)
    ids[::3] = 0  # one row with a third of all look-ups
    grad = torch.randn(6000, len(sizes) * width)
    merged = []
    for count in (1, 2, 3):
        with on_threads(count):
            merged.append(backward(grad, ids, field_offsets))
    for other in merged[1:]:
        assert_same_bits(merged[0], other)
    expected = reference.fused_embedding_backward(grad.double(), ids, field_offsets, width)
    assert torch.equal(merged[0][0], expected[0])
    eager = reference.fused_embedding_backward(grad, ids, field_offsets, width)[1]
    assert_as_accurate(merged[0][1], expected[1], eager, torch.float32)


def test_row_set_of_thousands_of_words():
    """Lists of used words have bounded length: all rows of a large field and of the next are
    returned in order.
    """
    sizes = [70_000, 100]
    field_offsets = field_offsets_of(sizes)
    ids = torch.stack([torch.arange(70_000), torch.arange(70_000) % 100], 1)
    rows, values = backward(torch.ones(70_000, 2), ids.flip(0), field_offsets)
    assert torch.equal(rows, torch.arange(70_100))
    assert torch.equal(values[:, 0], torch.cat([torch.ones(70_000), torch.full((100,), 700.0)]))


def test_bad_id_leaves_no_state_where_threads_share_rows():
    field_offsets = field_offsets_of([9000])
    ids = random_ids([9000], 9000, torch.int32)
    grad = torch.randn(9000, 8)
    wrong = ids.clone()
    wrong[8000], wrong[5000] = 9000, -1
    with on_threads(2):
        with pytest.raises(IndexError, match=r"ids\[5000, 0\] = -1 is out of range"):
            backward(grad, wrong, field_offsets)
        rows, _ = backward(grad, ids, field_offsets)
    assert torch.equal(rows, ids.unique().long())
