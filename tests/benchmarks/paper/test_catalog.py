from dataclasses import replace

import pytest
import torch

from adaftr_fast.config import ModelConfig
from adaftr_fast.config import model as models
from adaftr_fast.runs.run import build
from benchmarks.cells import plan
from benchmarks.paper.catalog import EXPERIMENTS, experiment

TASKS = ["click", "view", "conversion"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_are_distinct_models_and_compared_with_existing_rows(name, data, budget, tmp_path):
    batch = next(data.load("train").batches(64))
    for backbone in ("mmoe", "shared_bottom", "ple"):
        wanted = experiment(name, replace(budget.model, backbone=backbone), TASKS)
        titles = [variant.title for variant in wanted.variants]
        assert len(set(titles)) == len(titles)
        for variant in wanted.variants:
            assert variant.title not in variant.against
            assert set(variant.against) <= set(titles)
            assert len(set(variant.against)) == len(variant.against)
    cells = [plan(data, variant.changes, budget, 0, tmp_path) for variant in wanted.variants]
    assert len({cell.key for cell in cells}) == len(cells)  # no duplicate rows
    for cell in cells:
        torch.manual_seed(0)
        model = build(cell.config.model, data)
        loss = sum(model.loss(batch).values())
        assert loss.isfinite()
        loss.backward()
        assert (
            sum(
                p.grad.norm()
                for p in model.parameters()
                if p.grad is not None and not p.grad.is_sparse
            )
            > 0
        )


@pytest.mark.parametrize(
    ("options", "tasks", "shared"),
    [
        ({}, TASKS[:2], 1),  # Section 3.1.4: three experts for all expert-sharing methods
        ({}, TASKS, 1),  # at least one
        ({"num_experts": 8, "task_experts": 2}, TASKS[:2], 4),
        ({"num_experts": 8, "shared_experts": 3}, TASKS[:2], 3),  # as given
    ],
)
def test_shared_experts_of_ple(options, tasks, shared):
    base = ModelConfig(**options)
    rows = {
        row.title: replace(base, **row.changes)
        for row in experiment("table4", base, tasks).variants
    }
    assert rows["PLE"].shared_experts == shared
    # so that the runs of other models keep their keys
    assert rows["MMoE"].shared_experts == base.shared_experts


def test_table4_compares_adaftr_with_every_model():
    rows = experiment("table4", ModelConfig(), TASKS).variants
    titles = [
        known.title
        for name, known in models.MODELS.items()
        if name != "linear" and not known.needs_funnel
    ]
    assert [row.title for row in rows] == titles
    assert list(rows[-1].against) == titles[:-1]


def test_table5_overrides_ablations_in_the_base():
    base = ModelConfig(contrast="mae", tau="fixed", tau_fixed=0.7)
    rows = {
        row.title: replace(base, **row.changes)
        for row in experiment("table5", base, TASKS).variants[1:]
    }
    contrasts = [row.contrast for row in rows.values()]
    assert contrasts == ["infonce"] * 3 + ["positive", "alignment", "mse", "mae", "none"]
    taus = [row.tau for row in rows.values()]
    assert taus == ["adaptive", "scalar", "fixed"] + ["adaptive"] * 5
    assert rows["w/o learnable τ"].tau_fixed == 0.05


def test_figures_have_a_row_for_each_layer_and_pair():
    rows = experiment("figure3", ModelConfig(tower_hidden=[8, 8, 8, 8]), TASKS).variants
    assert [row.changes.get("contrast_layer") for row in rows] == [None, 1, 2, 3, 4]
    rows = {row.title: row.changes for row in experiment("figure4", ModelConfig(), TASKS).variants}
    assert rows["AdaFTR"]["pairs"] == []  # the default: the first task with each other
    assert {"AdaFTR, click-view", "AdaFTR, click-conversion"} < rows.keys()
    assert rows["AdaFTR, all pairs"]["pairs"] == [
        "click-view",
        "click-conversion",
        "view-conversion",
    ]


@pytest.mark.parametrize(
    ("name", "tasks", "message"),
    [
        ("figure4", TASKS[:2], "figure4: expected data with 3 tasks or more, got click, view"),
        ("table4", TASKS[:1], "2 tasks or more, got click"),
    ],
)
def test_too_few_tasks_raise(name, tasks, message):
    with pytest.raises(ValueError, match=message):
        experiment(name, ModelConfig(), tasks)
