"""A server's scorer follows the exports of a folder, without an error and without a mix of two."""

import shutil

import numpy as np
import pytest

from adaftr_fast.errors import ServingError
from adaftr_fast.files.publish import publishing
from adaftr_fast.serving import reload
from adaftr_fast.serving.reload import ReloadingScorer
from adaftr_fast.serving.scorer import load_scorer

from .conftest import make_export, make_log


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another export, with other ids: the log in another order."""
    folder = tmp_path_factory.mktemp("other")
    make_export(folder, make_log(400, seed=5))
    return folder / "model"


def replace(folder, by):
    with publishing(folder) as new:
        shutil.copytree(by, new)


def scores(scorer):
    return scorer.probabilities(scorer.encode(make_log(50, seed=9).to_batches()[0]))


def test_a_new_export_is_noticed_and_read_once(exported, other, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    loads = []
    replace(folder, exported[0])
    monkeypatch.setattr(reload, "load_scorer", lambda path: loads.append(path) or load_scorer(path))
    models = ReloadingScorer(folder)
    first = models.latest()
    assert models.latest() is first
    replace(folder, other)
    assert models.latest() is not first
    assert np.array_equal(scores(models.latest()), scores(load_scorer(other)))
    assert len(loads) == 2


def test_a_damaged_export_leaves_the_former_one_in_use(exported, other, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    replace(folder, exported[0])
    models = ReloadingScorer(folder)
    first = models.latest()
    damaged = shutil.copytree(other, tmp_path / "damaged")
    (damaged / "vocabulary.parquet").write_bytes(b"")
    replace(folder, damaged)
    with pytest.warns(RuntimeWarning, match="the former export stays in use: .*damaged") as warned:
        assert [models.latest(), models.latest()] == [first, first]
    assert len(warned) == 1  # it is not tried again yet
    monkeypatch.setattr(reload, "RETRY_SECONDS", 0.0)
    with pytest.warns(RuntimeWarning, match="the former export stays in use"):
        assert models.latest() is first
    shutil.rmtree(folder)
    assert models.latest() is first
    replace(folder, other)
    assert models.latest() is not first
    with pytest.raises(ServingError, match="not an exported model"):
        ReloadingScorer(tmp_path / "none")
