"""Commands whose inputs and outputs are in a store."""

import json

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

import adaftr_fast as af
from adaftr_fast.api.places import local
from adaftr_fast.cli import main
from adaftr_fast.extras.stores.filesystems import filesystem
from tests.distributed.test_torchrun import FORKS, torchrun
from tests.forks import Script
from tests.logs import shop_log

SMALL = {"max_epochs": 1, "batch_size": 256, "progress": False}
OPTIONS = "--training.max_epochs 1 --training.batch_size 256 --training.progress false"


# What commands ask of a store is tested with both of them in test_folders.py.
ONE_STORE = pytest.mark.parametrize("store", ["s3"], indirect=True)


def call(command):
    return main(command.split())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The log of a shop, prepared, and its file."""
    folder = tmp_path_factory.mktemp("data")
    file = folder / "log.csv"
    csv.write_csv(shop_log(1500, users=50), file)
    roles = {
        "labels": ["click", "conversion"],
        "group": "user",
        "time": "time",
        "write_schema": folder / "shop.toml",
    }
    return af.prepare(file, folder / "prepared", **roles, progress=False), file


def test_from_logs_to_scores_each_command_on_a_machine_of_its_own(
    store, data, elsewhere, capsys, tmp_path
):
    prepared, file = data
    url = store.url
    schema = prepared.folder.parent / "shop.toml"
    logs = store.put(file, "logs/1.csv")
    store.put(file, "logs/2.csv")
    store.put(schema, "shop.toml")
    commands = [
        f"prepare --files {logs} --dataset {url}/shop.toml --out {url}/data/mine",
        f"train --data {url}/data/mine --out {url}/runs/mine {OPTIONS}",
        f"evaluate --run {url}/runs/mine --out {url}/page",
        f"export --run {url}/runs/mine --out {url}/models/mine",
        f"predict --model {url}/models/mine --files {url}/logs --out {url}/scores.parquet",
        f"compare {url}/runs/mine {tmp_path}/run --out {url}/compared",
        f"train --data {url}/data/mine --out {tmp_path}/warm --warm_start {url}/runs/mine {OPTIONS}",
    ]
    run = af.train(prepared, tmp_path / "run", training=SMALL)
    model = af.export(run, tmp_path / "model")
    scores = af.predict(model, [file, file], tmp_path / "scores.parquet", progress=False)
    capsys.readouterr()
    shown = []
    for command in commands:
        elsewhere()
        assert call(command) == 0
        shown.append("".join(capsys.readouterr()))
        assert "machine" not in shown[-1]
    assert f"{url}/data/mine: log, " in shown[0]
    assert f"{url}/data/mine/report.html" in shown[0]
    assert f"{url}/page/evaluation.md" in shown[2]
    assert f"{url}/runs/mine" in shown[5]
    assert f"warm start from {url}/runs/mine" in shown[6]
    elsewhere()
    stored = af.load_run(f"{url}/runs/mine")
    assert stored.test == run.test
    assert stored.config.data.folder == f"{url}/data/mine"
    assert af.load_scorer(local(f"{url}/models/mine")).about.metrics == model.about.metrics
    assert pq.read_table(local(f"{url}/scores.parquet")).equals(scores.read())
    assert local(f"{url}/compared/report.md").exists()
    found = {name.split("/objects/")[0] for name in store.names()}
    folders = {"data/mine", "runs/mine", "models/mine", "page", "compared"}
    files = {"logs/1.csv", "logs/2.csv", "shop.toml", "scores.parquet"}
    assert found == folders | {f"{each}/published.json" for each in folders} | files


@ONE_STORE
def test_functions_take_and_return_urls(store, data, capsys, monkeypatch):
    prepared, file = data
    url = store.url
    schema = prepared.folder.parent / "shop.toml"
    stored = af.prepare(csv.read_csv(file), f"{url}/data", dataset=schema, progress=False)
    assert stored.manifest.total == prepared.manifest.total
    names = store.names()
    af.prepare(csv.read_csv(file), f"{url}/data", dataset=schema, progress=False)
    assert store.names() == names  # it is up to date
    run = af.train(stored, f"{url}/run", training=SMALL)
    assert af.evaluate(f"{url}/run").metrics == af.evaluate(run).metrics == run.test
    model = af.export(run, f"{url}/model")
    assert str(model).startswith(f"{url}/model: ")
    assert len(af.predict(model, file, f"{url}/scores.parquet", progress=False).read()) == 1500
    assert af.load_scorer(model).about == model.about
    capsys.readouterr()
    server = pytest.importorskip("adaftr_fast.extras.server.app")
    monkeypatch.setattr(server.Process, "run", lambda *_, **__: None)
    assert call(f"serve {url}/model --port 0") == 0
    assert f"{url}/model: loaded model {model.about.sha256['model.pt2']}" in capsys.readouterr().out


KILLED = """
import os, sys
from adaftr_fast.extras.stores import outputs
outputs.SECONDS = 0.0
upload, calls = outputs.OutputFolder.upload, []
def counted(self):
    upload(self)
    calls.append(0)
    if len(calls) == 6:
        os._exit(9)
outputs.OutputFolder.upload = counted
import adaftr_fast as af
training = {"max_epochs": 3, "batch_size": 64, "progress": False, "checkpoint_seconds": 0}
af.train(sys.argv[1], sys.argv[2], training=training)
"""


@ONE_STORE
def test_a_killed_run_goes_on_on_another_machine(store, data, tmp_path, elsewhere, capsys):
    prepared, _ = data
    url = f"{store.url}/run"
    Script(KILLED, prepared.folder, url).end(9)
    elsewhere()
    training = {"max_epochs": 3, "batch_size": 64, "progress": False, "checkpoint_seconds": 0}
    run = af.train(prepared, url, training=training)
    assert f"{url}: resuming in epoch" in capsys.readouterr().err
    assert run.test == af.train(prepared, tmp_path / "whole", training=training).test


@ONE_STORE
def test_days_in_a_store(store, data, elsewhere, tmp_path):
    prepared, file = data
    schema = prepared.folder.parent / "shop.toml"
    url = store.url
    days = [store.put(file, f"day-{number}.csv") for number in (1, 2)]
    command = f"daily --dataset {schema} --out {url}/daily {OPTIONS} --files {days[0]}"
    assert call(command) == 0
    store.remove("day-1.csv")  # a day that is finished is not read again
    elsewhere()
    assert call(f"{command} {days[1]}") == 0
    lines = local(f"{url}/daily/daily.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == days
    elsewhere()
    assert call(f"export --run {url}/daily/day-0002/run --out {tmp_path}/model") == 0


@ONE_STORE
def test_a_search_in_a_store_goes_on(store, data, elsewhere, capsys):
    pytest.importorskip("optuna")
    prepared, _ = data
    command = f"tune --data {prepared.folder} --out {store.url}/tune {OPTIONS}"
    assert call(f"{command} --trials 1") == 0
    elsewhere()
    assert call(f"{command} --trials 2") == 0
    assert f"adaftr-fast train --config {store.url}/tune/best.toml" in capsys.readouterr().out
    assert len([*local(f"{store.url}/tune/trials").iterdir()]) == 2


@ONE_STORE
def test_a_log_is_generated_in_a_store(store, capsys):
    assert call(f"synthesize --rows 20000 --out {store.url}/log") == 0
    command = capsys.readouterr().out.split()
    assert command[0] == "adaftr-fast"
    assert call(" ".join([*command[1:-1], f"{store.url}/data"])) == 0
    fs, path = filesystem(f"{store.url}/data/published.json")
    assert "train.parquet" in json.loads(fs.cat_file(path))


@ONE_STORE
def test_missing_inputs_are_named(store, tmp_path, capsys):
    assert call(f"train --data {store.url}/none --out {tmp_path}/run") == 2
    assert f"{store.url}/none: no such file or folder" in capsys.readouterr().err
    assert call(f"predict --model {store.url}/none --files a.csv --out b.parquet") == 2
    assert f"{store.url}/none: no such file or folder" in capsys.readouterr().err


@ONE_STORE
def test_two_ranks_write_one_run(store, data, elsewhere):
    prepared, _ = data
    url = f"{store.url}/run"
    command = f"-m adaftr_fast.cli train --data {prepared.folder} --out {url} {OPTIONS}"
    often = ["--training.checkpoint_seconds", "0"]
    out, _ = torchrun(2, [*command.split(), *often], source=FORKS).end(0)
    assert f"Report: {url}/report.md" in out
    elsewhere()
    assert af.load_run(url).test
