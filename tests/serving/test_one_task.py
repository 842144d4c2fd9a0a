"""The network of one task alone: its predictions are a column of the whole model's, and the rest is
not exported.
"""

import copy

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from adaftr_fast.cli import main
from adaftr_fast.errors import ServingError
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.serving.export import TASK_TOLERANCE
from adaftr_fast.serving.programs import Probabilities, export_program
from adaftr_fast.serving.scorer import load_scorer
from tests.runs.own import Plain

from .conftest import SIZES, drawing, make_log, random_ids, randomize

FIELDS = [50, 20, 7]
TASKS = ["click", "view", "conversion"]
EXAMPLE = drawing(FIELDS)(50)
INDEPENDENT = [
    ("single_dnn", {}),
    ("shared_bottom", {}),
    ("mmoe", {}),
    ("mmoe", {"expert_hidden": [8, 6]}),
    ("adaftr", {}),
    ("adaftr", {"backbone": "ple"}),
    *(("ple", {"extraction_layers": layers}) for layers in (1, 2)),
]


def built(name, **options):
    model = build_model(ModelConfig(name=name, **(SIZES | options)), FIELDS, TASKS)
    randomize(model)
    return model


@pytest.mark.parametrize(
    ("number", "name", "options"), [(n, *each) for n, each in enumerate(INDEPENDENT)], ids=str
)
def test_one_task_predicts_its_column(number, name, options):
    model = built(name, **options)
    task = TASKS[number % 3]
    program = export_program(Probabilities(model, task), EXAMPLE).module()
    for rows in (1, 300):
        ids = random_ids(FIELDS, rows)
        with torch.no_grad():
            torch.testing.assert_close(
                program(ids), Probabilities(model, task)(ids), rtol=0, atol=1e-6
            )
            exact = copy.deepcopy(model).double()  # gates of one task are summed in another order
            expected = Probabilities(exact)(ids)[:, [TASKS.index(task)]]
            assert rows == 1 or expected.std() > 0.001
            torch.testing.assert_close(
                Probabilities(exact, task)(ids), expected, rtol=0, atol=1e-13
            )


OTHERS = {  # name -> the parameters that the task "view" does not need
    "single_dnn": ("networks.0.", "networks.2."),
    "shared_bottom": ("towers.0.", "towers.2."),
    "mmoe": ("towers.0.", "towers.2."),
    "adaftr": ("backbone.towers.0.", "backbone.towers.2.", "relatedness."),
    "ple": ("towers.0.", "towers.2.", "layers.0.gates.0.", "layers.0.gates.2.",
            *(f"layers.1.{kind}.{t}." for kind in ("experts", "gates") for t in (0, 2))),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_parameters_of_other_tasks_are_not_in_the_program(name):
    model = built(name, extraction_layers=2)
    whole = sum(each.numel() for each in Probabilities(model).parameters())
    marked = {n: p for n, p in model.named_parameters() if n.startswith(OTHERS[name])}
    gates = getattr(getattr(model, "backbone", model), "gates", nn.Linear(1, 3))
    of_others = torch.arange(len(gates.weight)) // (len(gates.weight) // 3) != 1
    with torch.no_grad():
        for parameter in marked.values():
            parameter.fill_(torch.nan)
        gates.weight[of_others], gates.bias[of_others] = torch.nan, torch.nan
    state = export_program(Probabilities(model, "view"), EXAMPLE).state_dict
    assert not any(each.isnan().any() for each in state.values())
    kept = sum(each.numel() for each in state.values() if each.is_floating_point())
    dropped = sum(p.numel() for n, p in marked.items() if not n.startswith("relatedness."))
    assert kept == whole - dropped - (
        int(of_others.sum()) * (gates.in_features + 1) if gates.in_features > 1 else 0
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cross_stitch", "its towers exchange activations"),
        ("autoheri", "its tower reads those of click, view"),
        ("esmm", "its rate is a product with those of click, view"),
    ],
)
def test_a_task_that_needs_the_others_does_not_run_alone(name, reason):
    model = built(name)
    with pytest.raises(
        ServingError, match=f"the task conversion of {type(model).__name__} .* {reason}"
    ):
        Probabilities(model, "conversion")
    if name == "cross_stitch":
        return
    first, ids = Probabilities(model, "click"), random_ids(FIELDS, 50)  # it reads no other
    with torch.no_grad():
        torch.testing.assert_close(first(ids), Probabilities(model)(ids)[:, :1], atol=1e-6, rtol=0)
    assert not any("towers.1." in each for each in first.state_dict())


def test_unknown_tasks_and_models_of_ones_own_are_named():
    with pytest.raises(
        ServingError, match="task: expected one of click, view, conversion, got 'buy'"
    ):
        Probabilities(built("mmoe"), "buy")
    own = Plain(FIELDS, TASKS, ModelConfig(), None)
    with pytest.raises(ServingError, match=r"the task click of Plain .* for_task"):
        Probabilities(own, "click")


def test_the_commands_export_and_predict_one_task(shop, exported, tmp_path, capsys):
    command = f"export --run {shop}/run --out {tmp_path}/model --task"
    assert main([*command.split(), "view"]) == 2
    assert "task: expected one of click, conversion, got 'view'" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert main([*command.split(), "conversion"]) == 0
    command = f"predict --model {tmp_path}/model --files {shop}/log.parquet --progress false"
    assert main([*command.split(), "--out", str(tmp_path / "scores.parquet")]) == 0
    whole = load_scorer(exported[0])
    alone = load_scorer(tmp_path / "model")
    expected = whole.probabilities(whole.encode(make_log().to_batches()[0]))[:, 1]
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["p_conversion"]
    found = table["p_conversion"].to_numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=TASK_TOLERANCE)
    assert (alone.about.tasks, alone.about.fingerprint) == (["conversion"], whole.about.fingerprint)
    sizes = [(each / "model.pt2").stat().st_size for each in (tmp_path / "model", exported[0])]
    assert sizes[0] < sizes[1]
