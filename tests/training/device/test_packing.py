import numpy as np
import pytest
import torch

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.training.device import ALIGNMENT, PACKED, Layout


def batch(rows, *, bags=False, weight=True):
    random = np.random.default_rng(rows)
    labels = torch.from_numpy(random.integers(0, 2, (rows, 2)).astype(np.float32))
    group = torch.arange(rows)
    weights = torch.from_numpy(random.random(rows).astype(np.float32)) if weight else None
    dense = torch.from_numpy(random.random((rows, 3)).astype(np.float32)) if weight else None
    if not bags:
        ids = torch.from_numpy(random.integers(0, 9, (rows, 3)).astype(np.int32))
        return Batch(ids, labels, group, weights, dense=dense)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(random.integers(0, 4, rows * 3))]))
    ids = torch.from_numpy(random.integers(0, 9, int(offsets[-1])).astype(np.int32))
    return Batch(ids, labels, group, weights, offsets, dense=dense)


def assert_same(found, expected):
    for name in PACKED:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("rows", "bags", "weight"),
    [(0, False, False), (0, True, True), (1, True, False), (63, False, True), (64, True, True), (257, False, False)],
)
def test_a_packed_batch_is_read_back_as_views(rows, bags, weight):
    content = batch(rows, bags=bags, weight=weight)
    layout = Layout.of(content)
    buffer = torch.full((layout.size + 1000,), 255, dtype=torch.uint8)  # it may be larger
    layout.pack(content, buffer)
    found = layout.views(buffer)
    assert_same(found, content)
    assert found.group is None
    assert (buffer[layout.size :] == 255).all()
    for section in layout.sections:
        assert getattr(found, section.name).untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def test_sections_are_aligned_and_do_not_overlap():
    content = batch(101, bags=True)
    layout = Layout.of(content)
    assert [section.name for section in layout.sections] == list(PACKED)
    ends = [*(section.start for section in layout.sections[1:]), layout.size]
    for section, end in zip(layout.sections, ends, strict=True):
        assert section.start % ALIGNMENT == 0
        assert section.stop - section.start == getattr(content, section.name).nbytes
        assert section.stop <= end


def test_strided_tensors_are_packed():
    whole = batch(40)
    part = Batch(whole.ids[::2], whole.labels[::2].flip(0), weight=whole.weight[1::2])
    layout = Layout.of(part)
    buffer = torch.empty(layout.size, dtype=torch.uint8)
    layout.pack(part, buffer)
    assert_same(layout.views(buffer), part)
