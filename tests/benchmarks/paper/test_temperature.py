import json

import numpy as np
import pytest

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from benchmarks.cells import plan, train
from benchmarks.paper.catalog import WHOLE
from benchmarks.paper.temperature import (
    analyse,
    field_effect,
    label_groups,
    pair_text,
    report,
)
from tests.benchmarks.paper.conftest import SCHEMA


def test_label_groups_by_hand():
    tau = np.array([[0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.5, 0.6]])
    labels = {"click": np.array([0, 1, 1, 0]), "conversion": np.array([0, 0, 0, 0])}
    groups = list(label_groups(tau, labels))
    assert [group["labels"] for group in groups] == [
        "click 0, conversion 0",
        "click 1, conversion 0",
    ]
    assert [group["rows"] for group in groups] == [2, 2]
    assert [group["mean"] for group in groups] == pytest.approx([0.35, 0.35])
    assert groups[1]["points"]["p50"] == pytest.approx(0.35)  # mean of .25 and .45


def test_field_effect_by_hand():
    tau = np.array([[0.1, 0.1, 0.3, 0.5]])  # means .1, .4 and .25 overall; variances .0225, .0275
    effect = field_effect("city", tau, np.array([2, 2, 1, 1]), ["unknown", "a", "b", "never"])
    assert effect["explained"] == pytest.approx(0.0225 / 0.0275)
    assert effect["values"] == pytest.approx({"a": 0.4, "b": 0.1})
    # constant
    assert (
        field_effect("city", np.full((2, 3), 0.2), np.array([0, 1, 1]), ["unknown", "a"])[
            "explained"
        ]
        == 0
    )


@pytest.fixture
def data(folder, tmp_path):
    """The log with a cross of two fields, and a field of lists, which the analysis leaves out."""
    fields = SCHEMA["fields"] | {
        "pair": {"cross": ["user", "item"], "min_count": 1},
        "letters": {"kind": "categorical", "column": "user", "tokens": "all", "separator": "1"},
    }
    prepare(
        parse_schema(SCHEMA | {"fields": fields}),
        [folder.parent / "log.parquet"],
        tmp_path / "data",
    )
    return PreparedData(tmp_path / "data")


@pytest.fixture
def cells(data, budget, tmp_path):
    cells = [plan(data, WHOLE, budget, seed, tmp_path) for seed in range(2)]
    for cell in cells:
        train(cell)
    return cells


def test_trained_models_are_analysed_by_pair(data, cells, tmp_path):
    found = analyse(data, cells)
    assert [each["pair"] for each in found] == ["click-view", "click-conversion"]
    for each in found:
        assert sum(group["rows"] for group in each["labels"]) == data.manifest.splits["test"].rows
        assert [0.05 <= p <= 1 for p in each["points"].values()] == [True] * 3
        assert sorted(effect["field"] for effect in each["fields"]) == [
            "item",
            "pair",
            "time",
            "user",
        ]
        assert each["fields"][0]["explained"] == max(
            effect["explained"] for effect in each["fields"]
        )
        time = next(effect for effect in each["fields"] if effect["field"] == "time")
        assert all(" to " in value for value in time["values"])
        pair = next(effect for effect in each["fields"] if effect["field"] == "pair")
        crosses = [value.split(" & ") for value in pair["values"] if value != "unknown"]
        assert crosses
        assert all(user.startswith("u") and item.isdigit() for user, item in crosses)
    assert "| click 0, view 0, conversion 0 |" in pair_text(found[0])
    numbers, page, picture = report("tiny", found).write(tmp_path, "the command")
    assert "## click-view" in page.read_text()
    assert [pair["pair"] for pair in json.loads(numbers.read_text())["cases"]] == [
        "click-view",
        "click-conversion",
    ]
    assert picture.read_bytes()[:4] == b"\x89PNG"
