from dataclasses import replace

import numpy as np
import pytest
import torch

from adaftr_fast.config import WarmStartConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.errors import CheckpointError
from adaftr_fast.runs.run import build, train_one
from adaftr_fast.runs.warm_start import warm_start
from adaftr_fast.training.trained import load_trained
from tests.cli.conftest import interrupting

from .conftest import SOURCE, prepare_day, settings

READS_EMBEDDINGS = {"experts.first.weight", "experts.first.bias", "gates.weight", "gates.bias"}
OTHER_SIZES = {
    "embedding_dim": 3,
    "expert_hidden": [7],
    "tower_hidden": [5, 3],
    "relatedness_hidden": [3],
}


def from_run(folder, config, **options):
    return replace(config, warm_start=WarmStartConfig(str(folder), **options))


def started(folder, data, task="", **options):
    """Returns a model that starts from a run, the report, and the model of the run."""
    torch.manual_seed(5)
    model = build(settings(**options).model, data)
    return (
        model,
        warm_start(model, data, WarmStartConfig(str(folder), task)),
        load_trained(folder).model,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_one(prepare_day(folder, 0, "old"), settings(folder / "old"), folder / "run")
    return folder


@pytest.fixture
def run(trained):
    """A run of AdaFTR on day 0, which no test changes, and its data."""
    return trained / "run", PreparedData(trained / "old")


def rows_of(model, place):
    return model.backbone.embedding.field_weight(place)


def test_rows_are_matched_by_value(run, prepared):
    folder, old_data = run
    data = prepared(2, "new")
    model, report, old = started(folder, data)
    torch.manual_seed(5)
    untouched = build(settings().model, data)
    ours, theirs = (
        read_encoders(each.folder, each.manifest)["item"].values.to_pylist()
        for each in (data, old_data)
    )
    assert set(ours) - set(theirs)
    assert set(ours) & set(theirs)
    assert ours != theirs
    for row, value in enumerate([None, *ours]):
        known = value is None or value in theirs
        expected = (
            rows_of(old, 0)[theirs.index(value) + 1 if value else 0]
            if known
            else rows_of(untouched, 0)[row]
        )
        assert torch.equal(rows_of(model, 0)[row], expected)
    assert report.rows["item"] == (1 + len(set(ours) & set(theirs)), 1 + len(ours))
    assert report.rows["place"] == (21, 21)
    assert torch.equal(rows_of(model, 3), rows_of(old, 3))  # hashed


def test_a_bucket_is_matched_by_its_upper_edge(run, prepared):
    folder, old_data = run
    data = prepared(1, "new")
    model, _, old = started(folder, data)
    edges, old_edges = (np.array(each.manifest.fields[2].edges) for each in (data, old_data))
    for row, upper in enumerate([*edges, np.inf], start=1):
        assert torch.equal(
            rows_of(model, 2)[row], rows_of(old, 2)[1 + np.searchsorted(old_edges, upper)]
        )
    assert torch.equal(rows_of(model, 2)[0], rows_of(old, 2)[0])


def test_dense_weights_are_matched_by_name_and_shape(run, prepared):
    model, report, old = started(run[0], prepared(1, "new"), tower_hidden=[16, 6])
    assert torch.equal(model.backbone.experts.first.weight, old.backbone.experts.first.weight)
    assert torch.equal(
        model.relatedness[0].tower.logit.weight, old.relatedness[0].tower.logit.weight
    )
    layers = [f"towers.{t}.{layer}" for t in (0, 1) for layer in ("mlp.layers.1", "logit")]
    differ = {name for name, why in report.fresh.items() if why == "the shapes differ"}
    assert differ == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert report.layers()[0] == "experts.first"
    assert "not copied, because the shapes differ: towers.0.mlp.layers.1.weight" in report.summary()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"relatedness_hidden": [5]}, "the shapes of the relatedness networks differ"),
        ({"pairs": ["conversion-click"]}, "the pairs of tasks differ"),
    ],
)
def test_relatedness_networks_are_copied_as_a_whole_or_not_at_all(run, changes, reason):
    _, report, _ = started(*run, **changes)
    assert len(report.fresh) == 4
    assert all(name.startswith("relatedness.") for name in report.fresh)
    assert set(report.fresh.values()) == {reason}


def test_relatedness_networks_keep_their_initial_weights_without_a_match(run, tmp_path):
    """As in the paper's deployment: pretrained task parameters, and a new Omega."""
    _, data = run
    train_one(data, settings(data.folder, name="mmoe"), tmp_path / "mmoe")
    model, report, old = started(tmp_path / "mmoe", data)
    assert set(report.fresh.values()) == {"the run does not have the same relatedness networks"}
    torch.manual_seed(5)
    untouched = build(settings().model, data)
    assert torch.equal(
        model.relatedness[0].tower.logit.weight, untouched.relatedness[0].tower.logit.weight
    )
    ids = torch.randint(0, 5, (9, 4), dtype=torch.int32)
    assert torch.equal(model(ids), old(ids))


def test_layers_of_other_fields_or_tasks_are_not_copied(run, prepared):
    data = prepared(0, "turned", fields=dict(reversed(SOURCE["fields"].items())))
    model, report, old = started(run[0], data)
    assert set(report.fresh) == READS_EMBEDDINGS
    assert torch.equal(rows_of(model, 3), rows_of(old, 0))  # the items
    _, report, _ = started(
        run[0], prepared(0, "other", labels={"conversion": "buy", "click": "click"})
    )
    assert not report.taken
    assert "the tasks differ" in report.fresh.values()


def test_layers_that_read_swapped_widths_are_fresh(run, tmp_path):
    _, data = run
    wide = {"item": 16, "user": 4}
    train_one(data, settings(data.folder, embedding_dims=wide), tmp_path / "wide")
    _, same, _ = started(tmp_path / "wide", data, embedding_dims=wide)
    assert not same.fresh
    assert all(taken == rows for taken, rows in same.rows.values())
    _, report, _ = started(tmp_path / "wide", data, embedding_dims={"item": 4, "user": 16})
    assert set(report.fresh) == READS_EMBEDDINGS  # of the same shape
    assert (report.rows["item"][0], report.rows["user"][0], report.rows["place"]) == (
        0,
        0,
        (21, 21),
    )


def test_a_run_resumes_without_the_run_it_started_from(run, tmp_path, monkeypatch, capsys):
    folder, data = run
    config = from_run(folder, settings(data.folder))
    with monkeypatch.context() as patch:
        interrupting(patch, at_epoch=2)
        with pytest.raises(KeyboardInterrupt):
            train_one(data, config, tmp_path / "next")
    with pytest.raises(CheckpointError, match=r"warm_start.run = .*, this run has None"):
        train_one(data, settings(data.folder), tmp_path / "next")
    folder.rename(tmp_path / "gone")
    try:
        train_one(data, config, tmp_path / "next")
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            train_one(data, config, tmp_path / "other")
    finally:
        (tmp_path / "gone").rename(folder)
    assert "resuming in epoch 2" in capsys.readouterr().err
