"""Models of one's own, named as ``module:Class``: trained, resumed, loaded, exported
and refused.
"""

import json
import sys

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.cli import main
from adaftr_fast.config import ModelConfig, RunConfig
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import CheckpointError, ConfigError, TrainingError
from adaftr_fast.models.build import find_class
from adaftr_fast.nn.encoding import NumericEncoding
from adaftr_fast.runs.daily import train_daily
from adaftr_fast.runs.run import build
from tests.cli.conftest import fails
from tests.runs import own
from tests.runs.own import (
    AnyKeywords,
    Doubled,
    Half,
    Keywords,
    Logits,
    Net,
    Output,
    Plain,
    Shuffled,
    Wrong,
)

from .conftest import SOURCE, prepare_day, write_day

NAME = "tests.runs.own:Net"
MODULE = """
from pathlib import Path
from tests.runs.own import Net
Path("imported").touch()
"""
RUN = {"name": NAME, "tower_hidden": [8], "options": {"width": 6}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with a module that leaves a file when it is imported."""
    (tmp_path / "shop_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("shop_nets", None)


def short(data, out, **model):
    training = {"batch_size": 64, "max_epochs": 2, "progress": False}
    return af.train(data.folder, out, model=model or RUN, training=training)


def built(kind, dense=(), **config):
    """Returns a model of two fields and two tasks."""
    options = ModelConfig(**config)
    return find_class(kind)([3, 4], ["click", "conversion"], options, ["a", "b"], dense)


def train_command(out, *more):
    sizes = (
        "--model.tower_hidden [8] --training.batch_size 64 --training.progress false "
        "--training.max_epochs 1"
    )
    return [*f"train --data.folder data --out {out}".split(), *sizes.split(), *more]


def test_a_named_class_is_trained_with_its_options_and_loaded_again(prepared, tmp_path):
    run = short(prepared(1), tmp_path / "run")
    assert type(run.model) is Net
    assert run.model.bottom.out_features == 6
    recorded = json.loads((tmp_path / "run/best/checkpoint.json").read_text())["config"]["model"]
    assert (recorded["name"], recorded["options"]) == (NAME, {"width": 6})
    for model_class in (Net, NAME):
        loaded = af.load_run(tmp_path / "run", model_class=model_class)
        assert loaded.test == run.test
        assert af.evaluate(tmp_path / "run", model_class=model_class).metrics == run.test
    assert af.evaluate(run).metrics == run.test
    exported = af.export(loaded, tmp_path / "model")
    rows = write_day(tmp_path, 1)
    assert (
        af.predict(exported, rows, tmp_path / "scores.parquet", progress=False).read().num_rows
        == 800
    )


def test_a_class_may_stand_for_the_options_of_the_model(prepared, tmp_path):
    config = RunConfig().with_options(
        training={"batch_size": 64, "max_epochs": 1, "progress": False}
    )
    run = af.train(prepared(1).folder, tmp_path / "run", model=Net, config=config)
    assert run.config.model.name == NAME

    class Local(Net):
        pass

    with pytest.raises(
        ConfigError,
        match=r"model: .*Local is local to a function; define it at the top of a module",
    ):
        af.train(tmp_path / "data", tmp_path / "local", model=Local, config=config)
    other = short(prepared(1), tmp_path / "other", name="shared_bottom")
    with pytest.raises(
        ConfigError,
        match=r"other/best: its model is shared_bottom, got the class tests.runs.own:Net",
    ):
        af.evaluate(other.folder, model_class=NAME)
    for name in ("Net", "my.module:", "../x:Net"):
        with pytest.raises(
            ConfigError, match=r"name: expected one of .*, or a class as module:Class, got "
        ):
            ModelConfig(name=name)


def test_a_warm_start_may_import_the_class_of_the_new_run_alone(prepared, tmp_path, folder, capsys):
    data = prepared(1)
    short(data, tmp_path / "run")
    training = {"batch_size": 64, "max_epochs": 1, "progress": False}
    af.train(
        data.folder, tmp_path / "warm", model=RUN, training=training, warm_start=tmp_path / "run"
    )
    assert "10 of 10 dense weights copied" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"its model is the class tests\.runs\.own:Net"):
        af.train(data.folder, tmp_path / "mmoe", training=training, warm_start=tmp_path / "run")


def test_a_warm_start_builds_a_class_as_it_is_and_changes_types(prepared, tmp_path, monkeypatch):
    """The class changes between the runs: its table gets another type, and then is read."""
    data = prepared(1)
    model = {"name": "tests.runs.own:Shop", "embedding_dim": 4}
    training = {"batch_size": 64, "max_epochs": 1, "progress": False}
    found = []
    for number, kind in enumerate((Plain, Doubled, Doubled)):
        monkeypatch.setattr(own, "Shop", kind, raising=False)
        # no step: the rows are those that were copied
        more = {"warm_start": tmp_path / str(number - 1), "optimizer": {"lr": 1e-30}}
        options = {"model": model, "training": training} | (more if number else {})
        run = af.train(data.folder, tmp_path / str(number), **options)
        found.append(run.model.embedding.weight.detach())
    assert found[1].dtype == torch.float64
    assert torch.equal(found[1].float(), found[0])
    assert torch.equal(found[2], found[1])


@pytest.mark.parametrize(
    ("kind", "same", "other"),
    [
        ("Torch", "6 of 6 dense weights copied", "because the ids differ: embedding."),
        ("Named", "{ids} of {ids} embedding rows copied", "embedding rows copied; new: "),
        ("Deep", "{twice} of {twice} embedding rows copied", "embedding rows copied; new: "),
        ("Each", "no table is known to hold the fields", "no embedding rows copied"),
    ],
)
def test_warm_starts_and_days_of_other_tables(prepared, tmp_path, capsys, kind, same, other):
    data = prepared(1)
    options = {
        "model": {"name": f"tests.runs.own:{kind}"},
        "training": {"batch_size": 64, "max_epochs": 1, "progress": False},
    }
    before = af.train(data.folder, tmp_path / "run", **options)
    more = options | {"warm_start": tmp_path / "run", "optimizer": {"lr": 1e-30}}
    warm = af.train(data.folder, tmp_path / "same", **more)
    ids = sum(data.manifest.num_embeddings)
    assert same.format(ids=f"{ids:,}", twice=f"{2 * ids:,}") in capsys.readouterr().err
    if kind != "Each":
        assert torch.allclose(
            next(warm.model.embedding.parameters()), next(before.model.embedding.parameters())
        )
    af.train(prepare_day(tmp_path, 2, name="next").folder, tmp_path / "other", **more)
    assert other in capsys.readouterr().err
    days = [write_day(tmp_path, day) for day in (1, 2)]
    config = RunConfig().with_options(**options)
    assert len(list(train_daily(parse_schema(SOURCE), days, config, tmp_path / "days"))) == 2


def test_a_model_larger_than_the_memory(prepared):
    config = ModelConfig(name="mmoe", expert_hidden=[10**13])
    with pytest.raises(TrainingError, match="out of memory on cpu: lower the sizes of the model"):
        build(config, prepared(1))


def test_the_commands_import_from_the_current_directory(prepared, folder, capsys):
    prepared(1)
    assert main(train_command("run", "--model.class", "shop_nets:Net")) == 0
    assert "| shop_nets:Net | click" in " ".join(capsys.readouterr().out.split())
    assert (
        json.loads((folder / "run/best/checkpoint.json").read_text())["config"]["model"]["name"]
        == "shop_nets:Net"
    )
    (folder / "base.toml").write_text('[model]\nname = "shop_nets:Net"\noptions = { width = 5 }\n')
    assert (
        main(train_command("other", "--config", "base.toml", '--model.options={"width": 3}')) == 0
    )
    assert json.loads((folder / "other/best/checkpoint.json").read_text())["config"]["model"][
        "options"
    ] == {"width": 3}
    capsys.readouterr()
    name = ["--model.class", "shop_nets:Net"]
    assert main(["evaluate", "--run", "run", "--data", "data", "--json", *name]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == json.loads(
        (folder / "run/test.json").read_text()
    )
    assert main(["export", "--run", "run", "--out", "model", *name]) == 0


def test_a_checkpoint_imports_nothing_that_was_not_named(prepared, folder, capsys):
    prepared(1)
    assert main(train_command("run", "--model.class", "shop_nets:Net")) == 0
    sys.modules.pop("shop_nets")
    (folder / "imported").unlink()
    capsys.readouterr()
    message = (
        "run/best: its model is the class shop_nets:Net, whose module is imported only if you "
        "name it"
    )
    advice = "--model.class shop_nets:Net, or model_class='shop_nets:Net' in Python"
    for command in ("evaluate --data data", "export --out model"):
        assert f"{message}: {advice}" in fails(f"{command} --run run".split(), capsys)
    with pytest.raises(CheckpointError, match=message):
        af.load_run("run")
    assert not (folder / "imported").exists()


NO_MODELS = [
    ("no_such.module:Net", "there is no module no_such"),
    ("tests.runs.own:Missing", "the module tests.runs.own has no class Missing"),
    (
        "tests.runs.own:nn.Linear",
        "expected a subclass of adaftr_fast.models.MultiTaskModel or a torch.nn.Module that",
    ),
    (
        "tests.runs.own:nn",
        "expected a subclass of adaftr_fast.models.MultiTaskModel or .*, got <module",
    ),
    (
        "tests.runs.own:Short",
        r"expected \(num_embeddings, task_names, config, field_names\), got \(num_embeddings\)",
    ),
    (
        "tests.runs.own:Misnamed",
        r"expected forward\(self, ids\), with offsets and dense where .*, got forward\(self, "
        r"ids, off\)",
    ),
    ("tests.runs.own:Abstract", "is abstract: it lacks forward"),
    ("tests.runs.own:Refusing", "options: expected a width, got none"),
]


def test_a_class_that_is_no_model_is_an_error_in_one_line(prepared, folder, capsys):
    prepared(1)
    for name, message in NO_MODELS:
        with pytest.raises(ConfigError, match=rf"model\.name: {name}: {message}"):
            built(name)
        fails(train_command("run", "--model.class", name), capsys)


def test_a_module_that_computes_logits_alone_is_trained_with_the_log_loss(prepared, folder):
    """As a model with this loss, but for rounding; also where it returns an object with logits."""
    prepared(1)
    settings = {"training": {"batch_size": 50, "max_epochs": 1, "progress": False}}
    runs = {
        kind: af.train("data", f"run-{kind.__name__}", model=kind, **settings)
        for kind in (Logits, Output, Plain)
    }
    losses = {kind: run.epochs[0]["train"] for kind, run in runs.items()}
    assert losses[Logits] == losses[Output] == pytest.approx(losses[Plain])
    assert runs[Logits].test == runs[Output].test
    for task, metrics in runs[Plain].test.items():
        assert runs[Logits].test[task]["logloss"] == pytest.approx(metrics["logloss"])
    again = af.load_run("run-Logits", model_class=Logits)
    assert af.evaluate(again).metrics == runs[Logits].test
    af.export(again, "model")
    model = built(Wrong)
    with pytest.raises(
        TypeError, match=r"Wrong: expected logits \[B, 2\], or an object with them .*, got \[5, 3\]"
    ):
        model(torch.zeros(5, 2, dtype=torch.int32))


def test_a_plain_module_is_called_by_the_names_of_its_parameters():
    """Whatever their order, and without offsets where it has none."""
    model = built(Shuffled, ("x",))
    ids = torch.zeros(5, 2, dtype=torch.int32)
    torch.testing.assert_close(model(ids, None, torch.ones(5, 1)), model(ids) + 1)


def test_a_plain_module_whose_forward_lacks_dense_is_an_error_where_the_data_have_it():
    with pytest.raises(
        ConfigError,
        match=r"Half: expected forward\(self, ids\), .*, got forward\(self, ids, offsets",
    ):
        built(Half, ("x",))


def test_a_plain_module_whose_forward_lacks_offsets_is_an_error_where_the_data_have_lists(prepared):
    """Before the first step; without lists it is trained."""
    tags = {"kind": "categorical", "column": "user", "tokens": "all", "separator": "1"}
    config = ModelConfig(name="tests.runs.own:Optional")
    build(config, prepared(1))
    with_lists = prepared(1, name="lists", fields={"item": "categorical", "tags": tags})
    with pytest.raises(
        ConfigError,
        match=r"Optional: expected .* with offsets and dense where .*, got .*, off=None\)",
    ):
        build(config, with_lists)
    build(ModelConfig(name="tests.runs.own:Logits"), with_lists)


@pytest.mark.parametrize("kind", [Keywords, AnyKeywords])
def test_a_constructor_may_take_dense_by_any_keyword(kind):
    encodings = [NumericEncoding("age", "standard", 40.0, 10.0, 18.0, 90.0)]
    assert built(kind, encodings, tower_hidden=[4]).encodings == encodings
    with pytest.raises(
        ConfigError, match="the data have dense fields, expected a constructor that takes dense"
    ):
        built(Net, encodings)


def test_an_error_within_a_module_is_raised_as_it_is(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "needs.py").write_text("import no_such_dependency")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        find_class("needs:Net")
    (folder / "needs.py").write_text("")
    with pytest.raises(ConfigError, match=r"needs\.inner:Net: there is no module needs\.inner"):
        find_class("needs.inner:Net")
