import json

import numpy as np
import pytest

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import FieldInfo
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.experiments.catalog import experiment
from adaftr_fast.experiments.jobs import execute
from adaftr_fast.experiments.study import plan_all
from adaftr_fast.experiments.temperature import (
    _bucket,
    _temperatures,
    _value_names,
    analyse,
    field_effect,
    label_groups,
)
from adaftr_fast.experiments.temperature_report import draw_temperature, temperature_tables, write_temperature_report
from adaftr_fast.runs.trained import load_trained
from adaftr_fast.training.checkpoint import weights
from tests.experiments.conftest import SCHEMA


def test_label_groups_by_hand():
    tau = np.array([[0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.5, 0.6]])
    labels = {"click": np.array([0, 1, 1, 0]), "conversion": np.array([0, 0, 0, 0])}
    groups = list(label_groups(tau, labels))
    assert [group.labels for group in groups] == [{"click": 0, "conversion": 0}, {"click": 1, "conversion": 0}]
    assert [group.rows for group in groups] == [2, 2]
    assert [group.mean for group in groups] == pytest.approx([0.35, 0.35])
    assert groups[1].points["p50"] == pytest.approx(0.35)  # mean of .25 and .45


def test_field_effect_by_hand():
    tau = np.array([[0.1, 0.1, 0.3, 0.5]])  # means .1, .4 and .25 overall; variances .0225, .0275
    effect = field_effect("city", tau, np.array([2, 2, 1, 1]), ["unknown", "a", "b", "never"])
    assert effect.explained == pytest.approx(0.0225 / 0.0275)
    assert effect.values == pytest.approx({"a": 0.4, "b": 0.1})


def test_a_constant_temperature_has_no_explained_variance():
    assert field_effect("city", np.full((2, 3), 0.2), np.array([0, 1, 1]), ["unknown", "a"]).explained == 0


@pytest.fixture
def jobs(data, budget, tmp_path):
    wanted = experiment("temperature", budget.model, data.manifest.tasks)
    jobs = [job for *_, job in plan_all(wanted, data, budget, 2, tmp_path)]
    for job in jobs:
        execute(job)
    return jobs


def test_weights_that_are_replaced_while_they_are_read(data, jobs, monkeypatch):
    best = jobs[0].folder / "best"
    (name, tau), real, models = (
        next(iter(_temperatures(data, jobs[0]).items())),
        weights.loads,
        [load_trained(best.parent)],
    )

    def loads(text):
        if models:  # the file of weights that ``text`` names is removed
            newer = models.pop()
            newer.model.load_state_dict({key: value + 1 for key, value in weights.weights_of(newer.model).items()})
            weights.save_checkpoint(best, newer.model, newer.about)
        return real(text)

    monkeypatch.setattr(weights, "loads", loads)
    assert not np.array_equal(_temperatures(data, jobs[0])[name], tau)


def test_buckets_are_named_by_their_edges():
    field = FieldInfo("heat", "numeric", ["heat"], 4, [1.5, 20.0])
    assert [_bucket(field, number) for number in (1, 2, 3)] == ["-∞ to 1.5", "1.5 to 20", "20 to ∞"]


def test_crosses_are_named_by_their_values_without_control_characters(folder, tmp_path):
    fields = {"item": "categorical", "pair": {"cross": ["user", "item"], "min_count": 1}}
    prepare(parse_schema(SCHEMA | {"fields": fields}), [folder.parent / "log.parquet"], tmp_path / "crossed")
    _, *names = dict(_value_names(PreparedData(tmp_path / "crossed")))["pair"]
    assert len(names) > 100
    for name in names:
        user, item = name.split(" & ")
        assert user.isdigit()
        assert item.isdigit()


def test_trained_models_are_analysed_by_pair(data, jobs, tmp_path):
    found = analyse(data, jobs)
    assert [each.pair for each in found] == ["click-view", "click-conversion"]
    for each in found:
        assert sum(group.rows for group in each.labels) == data.manifest.splits["test"].rows
        assert [0.05 <= p <= 1 for p in each.points.values()] == [True] * 3
        assert sorted(effect.field for effect in each.fields) == ["heat", "item", "user"]
        assert each.fields[0].explained == max(effect.explained for effect in each.fields)
        heat = next(effect for effect in each.fields if effect.field == "heat")
        assert all(" to " in value for value in heat.values)
    assert len(draw_temperature("tiny", found).axes) == 8
    paths = write_temperature_report(tmp_path, "tiny", found, "the command")
    assert "## click-view" in paths[0].read_text()
    assert [pair["pair"] for pair in json.loads(paths[1].read_text())["pairs"]] == ["click-view", "click-conversion"]
    assert paths[2].read_bytes()[:4] == b"\x89PNG"


def test_tables_name_labels_and_extremes(data, jobs):
    text = temperature_tables(analyse(data, jobs)[0])
    assert "| click 0, view 0, conversion 0 |" in text
    assert "variance explained, %" in text
