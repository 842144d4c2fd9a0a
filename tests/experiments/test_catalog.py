from dataclasses import replace

import pytest
import torch

from adaftr_fast.cli.experiment import NAMES
from adaftr_fast.config import ModelConfig
from adaftr_fast.config import model as models
from adaftr_fast.experiments.catalog import EXPERIMENTS, TITLES, experiment
from adaftr_fast.experiments.jobs import plan
from adaftr_fast.models.build import ENTIRE_SPACE
from adaftr_fast.runs.run import build

TASKS = ["click", "view", "conversion"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_are_distinct_and_compared_with_existing_rows(name):
    for backbone in ("mmoe", "shared_bottom", "ple"):
        wanted = experiment(name, ModelConfig(backbone=backbone, tower_hidden=[8, 4]), TASKS)
        titles = [variant.title for variant in wanted.variants]
        assert len(set(titles)) == len(titles)
        assert wanted.name == name
        for variant in wanted.variants:
            assert variant.title not in variant.against
            assert set(variant.against) <= set(titles)
            assert len(set(variant.against)) == len(variant.against)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_is_a_distinct_model_with_gradients(name, data, budget, tmp_path):
    batch = next(data.load("train").batches(64))
    keys = set()
    for variant in experiment(name, budget.model, data.manifest.tasks).variants:
        job = plan(data, variant, budget, 0, tmp_path)
        keys.add(job.key)
        torch.manual_seed(0)
        model = build(job.config.model, data)
        loss = sum(model.loss(batch).values())
        assert loss.isfinite()
        loss.backward()
        assert sum(p.grad.norm() for p in model.parameters() if p.grad is not None and not p.grad.is_sparse) > 0
    assert len(keys) == len(experiment(name, budget.model, data.manifest.tasks).variants)  # no duplicate rows


def test_table4_compares_adaftr_with_every_model():
    rows = experiment("table4", ModelConfig(), TASKS).variants
    assert set(TITLES) == set(models.NAMES)
    titles = [title for name, title in TITLES.items() if name not in ENTIRE_SPACE]
    assert [row.title for row in rows] == titles
    assert list(rows[-1].against) == titles[:-1]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_ple_has_the_number_of_experts_of_mmoe(name):
    """Section 3.1.4: three experts for all expert-sharing methods, of which PLE has one per task."""
    tasks = TASKS if name == "fig4" else TASKS[:2]
    for base in (ModelConfig(backbone="mmoe"), ModelConfig(backbone="ple")):
        for row in (replace(base, **variant.changes) for variant in experiment(name, base, tasks).variants):
            if "ple" in (row.name, row.backbone if row.name == "adaftr" else None):
                assert row.shared_experts + 2 * row.task_experts == row.num_experts == 3
            else:
                assert row.shared_experts is None  # so that the runs of other models keep their keys


@pytest.mark.parametrize(
    ("options", "tasks", "shared"),
    [
        ({}, TASKS, 1),  # at least one
        ({"num_experts": 8, "task_experts": 2}, TASKS[:2], 4),
        ({"num_experts": 8, "shared_experts": 3}, TASKS[:2], 3),  # as given
    ],
)
def test_shared_experts_of_ple(options, tasks, shared):
    rows = {row.title: row.changes for row in experiment("table4", ModelConfig(**options), tasks).variants}
    assert replace(ModelConfig(**options), **rows["PLE"]).shared_experts == shared


def test_table5_overrides_ablations_in_the_base():
    base = ModelConfig(contrast="mae", tau="fixed", tau_fixed=0.7)
    rows = {row.title: replace(base, **row.changes) for row in experiment("table5", base, TASKS).variants[1:]}
    assert {title: (row.contrast, row.tau) for title, row in rows.items()} == {
        "AdaFTR": ("infonce", "adaptive"),
        "w/o adaptive τ": ("infonce", "scalar"),
        "w/o learnable τ": ("infonce", "fixed"),
        "w/o negative (Eq. 7)": ("positive", "adaptive"),
        "w/o negative (alignment)": ("alignment", "adaptive"),
        "w/o contrastive (MSE)": ("mse", "adaptive"),
        "w/o contrastive (MAE)": ("mae", "adaptive"),
        "w/o alignment": ("none", "adaptive"),
    }
    assert rows["w/o learnable τ"].tau_fixed == 0.05


def test_fig3_has_a_row_for_each_tower_layer():
    rows = experiment("fig3", ModelConfig(tower_hidden=[8, 8, 8, 8]), TASKS).variants
    assert [row.changes.get("contrast_layer") for row in rows] == [None, 1, 2, 3, 4]


def test_fig4_pairs_the_first_task_with_each_other():
    rows = {row.title: row.changes for row in experiment("fig4", ModelConfig(), TASKS).variants}
    assert rows["AdaFTR"]["pairs"] == []  # the default: the first task with each other
    assert [title for title in rows if title.startswith("AdaFTR, click")] == [
        "AdaFTR, click-view", "AdaFTR, click-conversion",
    ]  # fmt: skip
    assert rows["AdaFTR, all pairs"]["pairs"] == ["click-view", "click-conversion", "view-conversion"]


def test_the_command_line_offers_every_experiment():
    assert set(EXPERIMENTS) <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "tasks", "message"),
    [
        ("table9", TASKS, "expected one of table4"),
        ("fig4", TASKS[:2], "fig4: expected data with three tasks or more, got click, view"),
        ("table4", TASKS[:1], "two tasks or more, got click"),
    ],
)
def test_unknown_names_and_too_few_tasks_raise(name, tasks, message):
    with pytest.raises(ValueError, match=message):
        experiment(name, ModelConfig(), tasks)
