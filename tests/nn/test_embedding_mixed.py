"""MixedEmbedding against one nn.Embedding a field."""

import pytest
import torch

from adaftr_fast import MixedEmbedding, optim

SIZES, WIDTHS = [5, 9, 40, 3], [8, 3, 8, 1]


def expected(emb, ids):
    return torch.cat([emb.field_weight(f)[ids[:, f]] for f in range(4)], 1)


def test_lays_the_fields_in_order():
    emb = MixedEmbedding(SIZES, WIDTHS, field_names=["a", "b", "c", "d"])
    ids = torch.stack([torch.randint(0, n, (17,)) for n in SIZES], 1)
    assert emb(ids).shape == (17, emb.out_features)
    assert torch.equal(emb(ids), expected(emb, ids))
    assert torch.equal(emb(ids.flatten(), torch.arange(17 * 4 + 1)), expected(emb, ids))
    assert emb.field_weight("b").shape == (9, 3)
    names = {name.split(".", 3)[3] for name in emb.state_dict()}
    assert names == {"a", "b", "c", "d"}


def test_trains_with_a_row_optimizer():
    emb = MixedEmbedding(SIZES, WIDTHS)
    optimizer = optim.Adam(emb, lr=0.1)
    ids = torch.zeros(4, 4, dtype=torch.int64)
    before = emb(ids).square().sum()
    for _ in range(20):
        optimizer.zero_grad()
        loss = emb(ids).square().sum()
        loss.backward()
        optimizer.step()
    assert emb(ids).square().sum() != before
    emb.flush()
    assert torch.equal(emb(ids), expected(emb, ids))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="MixedEmbedding: num_embeddings, embedding_dims"):
        MixedEmbedding([3, 4], [8])
    with pytest.raises(KeyError, match="no field 'x'"):
        MixedEmbedding([3, 4], [8, 2]).field_weight("x")
