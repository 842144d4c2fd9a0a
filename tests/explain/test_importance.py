"""Permutation importance against scikit-learn's, and the permutation of a field against lists of
rows.
"""

import numpy as np
import pytest
import torch
from sklearn.inspection import permutation_importance as of_sklearn
from sklearn.metrics import roc_auc_score

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.errors import ConfigError
from adaftr_fast.explain.importance import permutation_importance, permute_field, sample
from adaftr_fast.models import MultiTaskModel

FIELDS = ["strong", "weak", "useless", "number"]


class Sums(MultiTaskModel):
    """Task 0 reads all fields but one, task 1 only the number."""

    def __init__(self):
        super().__init__(["click", "conversion"])
        self.scale = torch.nn.Parameter(torch.tensor([2.0, 0.5, 0.0]))

    def forward(self, ids, offsets=None, dense=None):
        own = (ids * self.scale).sum(1)
        return torch.stack([own + dense[:, 0], dense[:, 0]], 1)

    def loss(self, batch):
        raise NotImplementedError


def rows(n=3000, seed=0):
    random = np.random.default_rng(seed)
    ids = random.integers(0, 3, (n, 3)).astype(np.int32)
    dense = random.normal(size=(n, 1)).astype(np.float32)
    model = Sums()
    logits = model(torch.from_numpy(ids), None, torch.from_numpy(dense)).detach().numpy()
    labels = (random.random((n, 2)) < 1 / (1 + np.exp(-logits + 2))).astype(np.float32)
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels), dense=torch.from_numpy(dense))


def test_it_is_that_of_scikit_learn():
    batch = rows()
    model = Sums()
    found = permutation_importance(model, Split.of(batch), FIELDS, repeats=12, batch_size=1000)
    assert (found.mean.shape, found.rows) == ((4, 2), 3000)
    x = np.concatenate([batch.ids.numpy(), batch.dense.numpy()], 1)

    class Estimator:
        def fit(self, *_):
            """scikit-learn asks for it."""

    def scorer(task):
        def score(_, x, y):
            parts = (
                torch.from_numpy(x[:, :3].astype(np.int32)),
                None,
                torch.from_numpy(x[:, 3:].astype(np.float32)),
            )
            return roc_auc_score(y, model(*parts)[:, task].detach().numpy())

        return score

    for task in range(2):
        y = batch.labels[:, task].numpy()
        expected = of_sklearn(Estimator(), x, y, scoring=scorer(task), n_repeats=12, random_state=1)
        error = np.sqrt(
            found.standard_error[:, task] ** 2 + expected.importances.var(1, ddof=1) / 12
        )
        assert (np.abs(found.mean[:, task] - expected.importances_mean) <= 5 * error).all()
    np.testing.assert_allclose(found.standard_error, found.drops.std(0, ddof=1) / np.sqrt(12))
    assert (found.drops[:, 2] == 0).all()  # a field that no task reads
    assert (found.drops[:, :3, 1] == 0).all()
    assert found.unnoticed() == ["useless"]
    assert found.order()[-1] == 2
    assert found.table().rows[-1] == ["useless", "0.000 ± 0.000", "0.000 ± 0.000"]
    again = permutation_importance(model, Split.of(batch), FIELDS, repeats=12, batch_size=77)
    np.testing.assert_array_equal(again.drops, found.drops)


def test_a_field_of_lists_is_permuted_list_by_list():
    random = np.random.default_rng(0)
    # 7 rows
    lists = [
        [list(random.integers(1, 90, random.integers(0, 4))) for _ in range(3)] for _ in range(7)
    ]
    flat = [bag for row in lists for bag in row]
    offsets = torch.tensor(np.cumsum([0, *map(len, flat)]))
    batch = Batch(
        torch.tensor([x for bag in flat for x in bag], dtype=torch.int32),
        torch.zeros(7, 1),
        offsets=offsets,
    )
    order = random.permutation(7)
    found = permute_field(batch, 1, order)
    expected = [[row[0], lists[order[number]][1], row[2]] for number, row in enumerate(lists)]
    flat = [bag for row in expected for bag in row]
    assert found.ids.tolist() == [x for bag in flat for x in bag]
    assert found.offsets.tolist() == np.cumsum([0, *map(len, flat)]).tolist()
    assert (found.ids.dtype, found.offsets.dtype) == (torch.int32, torch.int64)


def test_a_large_split_is_sampled_without_replacement(monkeypatch):
    monkeypatch.setattr("adaftr_fast.explain.importance.READ_ROWS", 100)
    batch = Batch(torch.arange(1000, dtype=torch.int32)[:, None], torch.zeros(1000, 1))
    found = sample(Split.of(batch), 300, np.random.default_rng(0)).ids[:, 0]
    assert len(found) == len(found.unique()) == 300
    assert (found.diff() > 0).all()
    assert found.max() > 900
    assert len(sample(Split.of(batch), 5000, np.random.default_rng(0))) == 1000


def test_one_class_and_one_permutation_have_no_number():
    batch = rows(50)
    batch = Batch(batch.ids, batch.labels * torch.tensor([1.0, 0.0]), dense=batch.dense)
    found = permutation_importance(Sums(), Split.of(batch), FIELDS, repeats=1)
    assert np.isnan(found.mean[:, 1]).all()
    assert np.isfinite(found.mean[:, 0]).all()
    assert np.isnan(found.standard_error).all()
    assert found.order()[0] in (0, 3)
    with pytest.raises(ConfigError, match="repeats: expected >= 1, got 0"):
        permutation_importance(Sums(), Split.of(batch), FIELDS, repeats=0)
    with pytest.raises(ConfigError, match="seed: expected >= 0, got -1"):
        permutation_importance(Sums(), Split.of(batch), FIELDS, seed=-1)
