import numpy as np
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


def test_a_packed_batch_is_read_back_as_views():
    whole = batch(40)
    part = Batch(whole.ids[::2], whole.labels[::2].flip(0), weight=whole.weight[1::2])  # strided
    for content in (batch(0, bags=True), batch(257, weight=False), part):
        layout = Layout.of(content)
        buffer = torch.full((layout.size + 1000,), 255, dtype=torch.uint8)  # it may be larger
        layout.pack(content, buffer)
        found = layout.views(buffer)
        assert_same(found, content)
        assert found.group is None
        assert (buffer[layout.size :] == 255).all()
        for section in layout.sections:
            assert section.start % ALIGNMENT == 0
            assert (
                getattr(found, section.name).untyped_storage().data_ptr()
                == buffer.untyped_storage().data_ptr()
            )
