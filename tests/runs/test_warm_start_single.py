"""Warm starts between a Single-DNN, which has tables and a network per task, and models that share
them.
"""

import pytest
import torch

from adaftr_fast.cli import main
from adaftr_fast.config import WarmStartConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import CheckpointError, ConfigError
from adaftr_fast.runs.run import build, train_one
from adaftr_fast.runs.warm_layers import layer_of
from adaftr_fast.runs.warm_start import warm_start

from .conftest import prepare_day, settings
from .test_warm_start import OTHER_SIZES, from_run, started

# the bottom is as wide as an expert, so that whole towers fit
SAME_WIDTHS = {"equal_budget": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_one(
        prepare_day(folder, 0),
        settings(folder / "data", name="single_dnn", **SAME_WIDTHS),
        folder / "single",
    )
    return folder


@pytest.fixture
def single(trained):
    """A run of Single-DNN, which no test changes, and its data."""
    return trained / "single", PreparedData(trained / "data")


def assert_same(ours, theirs):
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert pairs
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("backbone", "task", "network"),
    [("mmoe", "", 0), ("shared_bottom", "conversion", 1), ("ple", "click", 0)],
)
def test_shared_tables_are_those_of_one_task_and_every_tower_that_of_its_own(
    single, backbone, task, network
):
    model, report, old = started(*single, task, backbone=backbone, **SAME_WIDTHS)
    assert_same(model.backbone.embedding, old.networks[network].embedding)
    for tower, other in zip(model.backbone.towers, old.networks, strict=True):
        assert_same(tower, other.towers[0])
    if backbone == "shared_bottom":
        assert_same(model.backbone.bottom, old.networks[network].bottom)
    assert all(taken == rows for taken, rows in report.rows.values())
    assert report.task == old.task_names[network]
    assert f"tables of the task {report.task}" in report.summary()
    assert "towers.1.logit" in report.summary()


def test_towers_are_matched_by_task_and_not_by_position(single, prepared):
    data = prepared(0, "turned", labels={"conversion": "buy", "click": "click"})
    model, report, old = started(single[0], data, name="mmoe", **SAME_WIDTHS)
    assert report.task == "conversion"  # the first task of the new run
    assert_same(model.towers[0], old.networks[1].towers[0])
    assert_same(model.towers[1], old.networks[0].towers[0])


def test_a_model_of_clicks_alone_starts_both_tasks(prepared, tmp_path):
    clicks = prepared(0, "clicks", labels={"click": "click"})
    data = prepared(0, "both")
    train_one(
        clicks, settings(clicks.folder, name="single_dnn", **SAME_WIDTHS), tmp_path / "single"
    )
    model, report, old = started(tmp_path / "single", data, **SAME_WIDTHS)
    torch.manual_seed(5)
    untouched = build(settings(**SAME_WIDTHS).model, data)
    assert_same(model.backbone.embedding, old.networks[0].embedding)
    assert_same(model.backbone.towers[0], old.networks[0].towers[0])
    assert_same(model.backbone.towers[1], untouched.backbone.towers[1])
    assert_same(model.relatedness, untouched.relatedness)
    reasons = {why for name, why in report.fresh.items() if name.startswith("towers.")}
    assert reasons == {"the run does not have the task conversion"}


def test_every_network_of_a_single_dnn_takes_the_shared_tables(single, tmp_path):
    _, data = single
    train_one(data, settings(data.folder, name="shared_bottom", **SAME_WIDTHS), tmp_path / "shared")
    model, report, old = started(tmp_path / "shared", data, name="single_dnn", **SAME_WIDTHS)
    assert report.fresh == {}
    for network, tower in zip(model.networks, old.towers, strict=True):
        assert_same(network.embedding, old.embedding)
        assert_same(network.bottom, old.bottom)
        assert_same(network.towers[0], tower)


def test_the_conditional_tower_of_esmm_is_not_that_of_a_rate_over_impressions(single, tmp_path):
    folder, data = single
    data.manifest.schema["funnel"] = ["click", "conversion"]
    reason = "one of the two is a rate given the stage before"
    model, report, old = started(folder, data, name="esmm", **SAME_WIDTHS)
    assert_same(model.towers[0], old.networks[0].towers[0])
    assert report.fresh["towers.1.logit.weight"] == reason
    # and the other way round
    train_one(data, settings(data.folder, name="esmm", **SAME_WIDTHS), tmp_path / "esmm")
    model, report, old = started(tmp_path / "esmm", data, name="single_dnn", **SAME_WIDTHS)
    assert_same(model.networks[0].towers[0], old.towers[0])
    assert report.fresh["networks.1.towers.0.logit.weight"] == reason
    assert not any(name.startswith("networks.1.towers.") for name in report.taken)


def test_a_layer_is_copied_whole_or_not_at_all_and_a_task_is_one_of_a_single_dnn(single, tmp_path):
    folder, data = single
    train_one(data, settings(data.folder, name="mmoe"), tmp_path / "mmoe")
    _, report, _ = started(tmp_path / "mmoe", data, name="ple")
    taken, fresh = ({layer_of(name) for name in names} for names in (report.taken, report.fresh))
    assert taken
    assert not taken & fresh
    assert "towers.0.mlp.layers.0.bias" in report.fresh  # of the same shape, but its weight is not
    with pytest.raises(
        ConfigError, match=r"warm_start.task: expected one of click, conversion, got 'view'"
    ):
        started(folder, data, "view")
    with pytest.raises(
        ConfigError, match=r"warm_start.task: expected a run of single_dnn, .*, got .click of a run"
    ):
        started(tmp_path / "mmoe", data, "click")


def test_a_start_that_takes_nothing_is_an_error_unless_it_is_allowed(
    single, prepared, tmp_path, capsys
):
    folder, data = single
    config = settings(data.folder, **OTHER_SIZES)
    with pytest.raises(CheckpointError) as raised:
        train_one(data, from_run(folder, config), tmp_path / "next")
    message = str(raised.value)
    assert f"{folder}: nothing fits" in message
    assert (
        "expected fields item (3), user (3), heat (3), place (3) and tasks click, conversion of "
        "adaftr" in message
    )
    assert (
        "found fields item (8), user (8), heat (8), place (8) and tasks click, conversion of "
        "single_dnn" in message
    )
    assert not (tmp_path / "next/best").exists()
    train_one(data, from_run(folder, config, allow_empty=True), tmp_path / "next")
    assert "0 of 20 dense weights copied" in capsys.readouterr().err
    later = prepared(9, "later", fields={"item": "categorical"})
    # the row of unknown values alone is nothing
    with pytest.raises(CheckpointError, match="nothing fits"):
        warm_start(
            build(settings(tower_hidden=[5, 3], name="mmoe").model, later),
            later,
            WarmStartConfig(str(folder)),
        )


def test_the_command_chooses_the_task_and_allows_nothing(single, tmp_path, capsys):
    folder, data = single
    command = (
        f"train --data.folder {data.folder} --training.max_epochs 1 --training.batch_size 64"
    ).split()
    command += f"--training.progress false --out {tmp_path}/out".split()
    start = ["--warm_start", folder]
    other = ["--model.embedding_dim", "3", "--model.tower_hidden", "[5]", "--restart"]
    for options, code, shown in (
        ([*start, "--warm_start_task", "conversion"], 0, "tables of the task conversion"),
        ([*start, *other], 2, "--warm_start_empty"),
        ([*start, *other, "--warm_start_empty"], 0, "dense weights copied"),
        (["--warm_start_task", "click"], 2, "--warm_start_task: needs --warm_start"),
    ):
        assert main([str(word) for word in (*command, *options)]) == code
        assert shown in capsys.readouterr().err
