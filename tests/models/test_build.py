"""Settings: which make a model, which are refused by name, and how large the models come out."""

from dataclasses import asdict

import pytest
import torch

from adaftr_fast import FusedEmbedding
from adaftr_fast.files.json import from_json
from adaftr_fast.models import (
    Backbone,
    MMoE,
    ModelConfig,
    SharedBottom,
    SingleDNN,
    build_model,
)
from adaftr_fast.nn.mlp import MLP
from tests.models.inputs import DEEP, SIZES, THREE, TWO, batch, model
from tests.tolerances import assert_same_bits

FIELDS = [100] * 20


def dense_weights(built):
    return sum(p.numel() for name, p in built.named_parameters() if "embedding" not in name)


@pytest.mark.parametrize("name", DEEP)
def test_budgets_are_equal_but_for_what_a_method_adds(name):
    parts = {
        "ple": "layers.1.",
        "autoheri": "connections.",
        "escm2_dr": "imputation.",
        "dcmt": "twins.",
    }
    # a second level, the connections, the network of the errors, the twins
    added = parts.get(name, "nothing")
    names = [str(field) for field in range(20)]
    wide = {"embedding_dims": dict.fromkeys(names[:10], 32) | {names[10]: 1}}
    for tasks, options in ((TWO, {}), (THREE, {}), (TWO, {"expert_hidden": [64, 32]}), (TWO, wide)):
        built, mmoe = (
            build_model(ModelConfig(name=n, **options), FIELDS, tasks, names)
            for n in (name, "mmoe")
        )
        own = sum(p.numel() for n, p in built.named_parameters() if n.startswith(added))
        assert dense_weights(built) - own == pytest.approx(dense_weights(mmoe), rel=0.05), options


def test_without_equal_budget_widths_are_taken_as_they_stand():
    options = {"equal_budget": False, "expert_hidden": [12]}
    assert model("shared_bottom", **options).bottom.out_features == 12
    assert model("ple", **options).towers[0].mlp.layers[0].in_features == 12
    assert model("mmoe", expert_hidden=[12]).experts.out_features == 12


NAMES = ["user", "day", "item"]
DIMS = {"user": 16, "day": 3}
WIDTHS = [16, 3, 8]


@pytest.mark.parametrize("name", [*DEEP, "adaftr"])
def test_a_field_has_the_width_it_asks_for(name):
    built = build_model(ModelConfig(name=name, embedding_dims=DIMS), SIZES, TWO, NAMES)
    tables = [module for module in built.modules() if isinstance(module, FusedEmbedding)]
    assert [table.widths for table in tables] == [WIDTHS] * (2 if name == "single_dnn" else 1)
    readers = [module for module in built.modules() if isinstance(module, Backbone)]
    assert {reader.embedded_features for reader in readers} == {27}
    data = batch(dtype=torch.float32)
    assert built(data.ids).shape == (40, 2)
    torch.stack(tuple(built.loss(data).values())).sum().backward()
    assert all(weight.grad.is_coalesced() for table in tables for weight in table.table_weights())


def test_widths_named_as_they_are_change_nothing():
    models = []
    for options in ({}, {"embedding_dims": {"day": 8}}):
        torch.manual_seed(0)
        models.append(build_model(ModelConfig(**options), SIZES, TWO, NAMES).state_dict())
    assert_same_bits(*models)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES, r"model\.embedding_dims: expected names among user, day, item, got 'usr'"),
        (None, "field_names are needed for embedding_dims = {'user': 4}, got None"),
        (["usr", "day"], r"field_names must be 3 names, one per field, got \['usr', 'day'\]"),
    ],
)
def test_widths_of_no_field_are_named(names, message):
    with pytest.raises(ValueError, match=message):
        build_model(
            ModelConfig(embedding_dims={"user": 4, "usr": 4} if names else {"user": 4}),
            SIZES,
            TWO,
            names,
        )


def test_settings_survive_json():
    config = ModelConfig(
        name="ple",
        pairs=["click-conversion"],
        tau="fixed",
        equal_budget=False,
        embedding_dims={"user": 4},
    )
    assert from_json(ModelConfig, asdict(config)) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ModelConfig(name="dnn"),
            r"expected one of single_dnn, .*, or a class as module:Class, got 'dnn'",
        ),
        (
            lambda: ModelConfig(backbone="adaftr"),
            r"backbone: expected one of shared_bottom, mmoe, .*got 'adaftr'",
        ),
        (lambda: ModelConfig(beta=-1), r"beta: expected a finite weight >= 0, got -1"),
        (lambda: ModelConfig(alpha=float("inf")), r"model\.alpha: expected a finite weight"),
        (lambda: ModelConfig(num_experts=0), r"model\.num_experts: expected >= 1, got 0"),
        (
            lambda: ModelConfig(embedding_dims={"a": 4, "b": 0}),
            r"embedding_dims: expected widths >= 1, got {'a': 4,",
        ),
        (
            lambda: ModelConfig(tower_hidden=[8, 0]),
            r"model\.tower_hidden: expected one or more widths.*got \[8, 0\]",
        ),
        (
            lambda: ModelConfig(tau_min=2.0),
            r"model\.tau_min: expected at most tau_max = 1\.0, got 2\.0",
        ),
        (
            lambda: ModelConfig(tau_fixed=0.0),
            r"tau_fixed: expected a finite temperature > 0, got 0\.0",
        ),
        (
            lambda: ModelConfig(contrast_rows=1),
            r"model\.contrast_rows: expected 0, or at least 2 rows",
        ),
        (
            lambda: ModelConfig(contrast_precision="float16"),
            r"model\.contrast_precision: expected .*, got 'float16'",
        ),
        (lambda: model(tasks=["click"]), "at least two tasks"),
        (
            lambda: model(contrast_layer=4),
            "contrast_layer: expected one of the 3 layers of a tower, got 4",
        ),
        (
            lambda: model(tau="scalar", temperature_updates="omega"),
            "need contrast 'infonce' and tau 'adaptive', got",
        ),
        (lambda: model(contrast="mse", relatedness_updates="all"), "got 'mse' and 'adaptive'"),
        (
            lambda: model(pairs=["click-view"]),
            r"among click-conversion, conversion-click, got \['click-view'\]",
        ),
        (lambda: model(pairs=["click-conversion"] * 2), "pairs must be distinct"),
        (lambda: model(tasks=["a", "a-b", "b-c", "c"], pairs=["a-b-c"]), r"got \['a-b-c'\]"),
        (lambda: MMoE(SIZES, [], ModelConfig()), "MMoE: task_names must name at least one task"),
        (
            lambda: SingleDNN(SIZES, ["a", "a"], ModelConfig()),
            "SingleDNN: task_names must be distinct",
        ),
        (
            lambda: SharedBottom(SIZES, ["contrast"], ModelConfig()),
            "none of l2, linear, relatedness",
        ),
        (lambda: MLP(3, []), "at least one width"),
    ],
)
def test_what_makes_no_model_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["mmoe", "single_dnn", "adaftr"])
def test_labels_of_another_width_are_refused(name):
    with pytest.raises(
        ValueError, match=r"\[B, 2\], a column for each of click, conversion, got \[40, 3\]"
    ):
        model(name, TWO).loss(batch(tasks=3))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("cross_stitch", "CrossStitchUnit(tasks=2)"),
        ("mmoe", "num_experts=3, out_features="),
        ("ple", "ExtractionLayer(\n      tasks=2"),
        ("autoheri", "upstream=["),
    ],
)
def test_a_model_shows_its_tasks_and_parts(name, part):
    shown = repr(build_model(ModelConfig(name=name), FIELDS, TWO))
    assert f"\n  tasks={list(TWO)}\n" in shown
    assert part in shown
