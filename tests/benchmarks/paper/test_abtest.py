import json

import pytest

from adaftr_fast.data.dataset.loader import PreparedData
from benchmarks.paper.abtest import METRICS, report, run_abtest
from benchmarks.paper.study import Study


def test_both_models_and_the_true_probabilities_bid(generated, budget, tmp_path):
    budget = budget.with_options(optimizer={"lr": 0.02}, training={"max_epochs": 1})
    study = Study(PreparedData(generated), budget, 2, 1, tmp_path, tmp_path / "results.json")
    found = run_abtest(study, 2000, 4)
    assert [arm["arm"] for arm in found["arms"]] == ["MMoE", "AdaFTR", "true probabilities"]
    assert [lift["metric"] for lift in found["lifts"]] == list(METRICS)
    control, treatment, best = found["arms"]
    assert [len(arm["by seed"]) for arm in found["arms"]] == [2, 2, 1]
    assert control["by seed"][0] != control["by seed"][1]
    assert best["metrics"]["value"] > max(
        control["metrics"]["value"], treatment["metrics"]["value"]
    )
    assert all(weight > 0 for arm in found["arms"] for weight in arm["weights"])
    mean = (treatment["metrics"]["CTR"] / control["metrics"]["CTR"] - 1) * 100
    assert found["lifts"][0]["mean"] == pytest.approx(mean) != 0
    assert all(0 < share < 1 for share in found["same winner"])
    numbers, page, picture = report("synthetic", found).write(tmp_path, "the command")
    (case,) = json.loads(numbers.read_text())["cases"]
    assert case["seeds"] == [0, 1]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    text = page.read_text()
    assert "| AdaFTR against MMoE | better | " in text
    assert "2,000 auctions of 4 candidates for each of 2 training seeds (0, 1)" in text
    assert "| CPC | lower |" in text
    assert "-5.78" in text
    assert run_abtest(study, 2000, 4) == found
