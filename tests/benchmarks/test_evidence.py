"""The runner and the statistics of the second study of the contrast."""

import json

import numpy as np
import pytest

from adaftr_fast.training.metrics import auc
from benchmarks import cells, measure
from benchmarks.evidence import resample, rows, tables
from benchmarks.evidence.rows import CONTESTANTS, PARTS, SEEDS, TRIALS
from benchmarks.evidence.runs import NAMES, train
from benchmarks.evidence.sets import open_set
from benchmarks.store import Store

SET = "flights_2"


def test_areas_of_resampled_units():
    """AUC of labels or probabilities, with the rows of a unit drawn together."""
    random = np.random.default_rng(0)
    scores = random.integers(20, size=300).astype(np.float32)  # with ties
    labels = random.integers(2, size=300)
    truth = random.random(300)
    units = random.integers(10, size=300) * 7
    weights = resample.counts(units)
    assert weights.shape == (resample.RESAMPLES, 300)
    assert all(len(np.unique(weights[0][units == unit])) == 1 for unit in units)
    found = resample.areas(scores, labels, weights)
    expected = resample.areas(scores, truth, weights)
    twice = np.tile(scores, 2), np.repeat([1, 0], 300)
    for draw in range(5):
        assert found[draw] == pytest.approx(auc(labels, scores, weights[draw]), abs=1e-12)
        weight = np.concatenate([weights[draw] * truth, weights[draw] * (1 - truth)])
        assert expected[draw] == pytest.approx(auc(twice[1], twice[0], weight), abs=1e-12)


def test_the_interval_has_the_noise_of_seeds_and_of_units():
    """That of a sum of two independent effects is that of their variances together."""
    random = np.random.default_rng(0)
    of_seeds, of_units = random.normal(0, 3, 10), random.normal(0, 1, resample.RESAMPLES)
    found = resample.replicates(of_seeds[:, None] + of_units, np.random.default_rng(1))
    assert len(found) == resample.RESAMPLES * resample.DRAWS
    assert found.mean() == pytest.approx(of_seeds.mean() + of_units.mean(), abs=0.1)
    assert found.var() == pytest.approx(of_seeds.var() / 10 + of_units.var(), rel=0.1)


def case(row, seed, gain, spread=0.0, name=SET):
    test = {"click": 70 + gain + spread, "conversion": 70 + gain - spread}
    about = {"set": name, "row": row, "seed": seed, "dead": []}
    return about | {"validation": test, "test": test, "resampled": [0, 10] * 100}


def by_hand(gains):
    """Returns complete cases of the part compare, in which each row is above MMoE by its gain."""
    return [
        case(row, seed, gains.get(row, 0.0) + 0.01 * (seed - 204.5), spread=0.02)
        for row in PARTS["compare"]
        for seed in SEEDS
    ]


def test_claims_from_raw_cases():
    gains = {"blocks of two": 0.25, "blocks of two, default": -0.3}
    lines = tables.claims(by_hand(gains)).splitlines()[2:]
    shown = "+0.250 [+0.250, +0.250] | +0.250 | shown |"
    assert lines[0] == f"| H1 | blocks of two | MMoE | 1 | {shown}"
    assert lines[1] == f"| H2 | blocks of two | MMoE | 1 | {shown}"
    assert "no set is complete" in lines[2]
    # validation chooses MMoE
    assert lines[6].startswith("| H6 | choice by validation | MMoE, default | 1 | +0.000 [")
    assert lines[7].startswith(
        "| H6 | choice by validation | blocks of two, default | 1 | +0.300 ["
    )
    table = tables.gains(("compare",), lambda row: "MMoE", by_hand(gains))
    line = next(
        each for each in table.splitlines() if each.startswith(f"| {SET} | blocks of two |")
    )
    assert line.split(" | ")[2:8] == [
        "70.250 ± 0.030", "MMoE", "+0.250 [+0.250, +0.250]", "+0.250",
        "click +0.250, conversion +0.250", "+0.250",
    ]  # fmt: skip


def test_a_set_that_is_not_complete_judges_nothing():
    cases = by_hand({"blocks of two": 0.25})
    assert tables.complete(cases, "compare") == [SET]
    assert tables.complete(cases[:-1], "compare") == []


def test_a_mean_over_sets_resamples_the_sets():
    random = np.random.default_rng(0)
    each = [tables.Estimate.of(mean, np.full(2000, mean)) for mean in random.normal(size=12)]
    found = tables.over_sets(each)
    means = np.array([estimate.mean for estimate in each])
    assert found.mean == pytest.approx(means.mean())
    assert found.replicates.std() == pytest.approx(means.std() / 12**0.5, rel=0.1)


def test_trials_are_the_same_for_all_and_take_every_value():
    drawn = [rows.trial(number) for number in range(TRIALS)]
    assert drawn[0] == {}
    for name, values in rows.CHOICES.items():
        assert all(any(each[name] == value for each in drawn[1:]) for value in values)


def test_an_interrupted_study_goes_on_where_it_ended(tmp_path, monkeypatch):
    """No run is repeated, the trials choose, and no trial tells its test metrics."""
    trained = []

    def fake(function, tasks, jobs):
        for task in tasks:
            if len(trained) == 50:
                trained.append(None)
                raise KeyboardInterrupt
            trained.append(task)
            # the seventh trial of MMoE is the best one
            score = 70 + (task.about.get("trial") == 6 and task.about["row"] == "MMoE")
            yield task.about | {
                "cpu": "A",
                "commit": "B",
                "validation": {"click": score},
                "dead": [],
            }

    monkeypatch.setattr(cells, "in_processes", fake)
    monkeypatch.setattr(measure, "measured_code", lambda: "commit 1a2b3c4")
    file = tmp_path / "evidence.json"
    data = open_set(SET, tmp_path / "data", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(SET, "compare", data, tmp_path, Store(file, NAMES), 1)
    train(SET, "compare", data, tmp_path, Store(file, NAMES), 1)
    train(SET, "compare", data, tmp_path, Store(file, NAMES), 1)
    cases = json.loads(file.read_text())["cases"]
    assert len(cases) == len(CONTESTANTS) * TRIALS + len(PARTS["compare"]) * len(SEEDS)
    assert len({str(each) for each in cases}) == len(cases) == len(trained) - 1
    for task in filter(None, trained):
        if "seed" in task.about:
            chosen = 6 if task.about["row"] == "MMoE" else 0
            lr = task.cell.config.optimizer.lr
            assert lr == rows.trial(chosen).get("optimizer.lr", 0.003)
            assert task.cell.config.training.seed == task.about["seed"]
