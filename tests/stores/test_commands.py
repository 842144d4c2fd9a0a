"""Commands whose outputs, and the runs and models they read, are in a store."""

import json

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

import adaftr_fast as af
from adaftr_fast.cli import main
from adaftr_fast.stores import as_path, local_copy, local_file, open_folder
from adaftr_fast.stores.parquet import read_parquet
from adaftr_fast.stores.published import upload
from tests.forks import Script
from tests.logs import shop_log

SMALL = {"max_epochs": 1, "batch_size": 64, "progress": False}
OPTIONS = "--training.max_epochs 1 --training.batch_size 256 --training.progress false"


def call(command):
    return main(command.split())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The log of a shop, prepared, and its file."""
    folder = tmp_path_factory.mktemp("data")
    file = folder / "log.parquet"
    pq.write_table(shop_log(1500, users=50), file)
    roles = {
        "labels": ["click", "conversion"],
        "group": "user",
        "time": "time",
        "write_schema": folder / "shop.toml",
    }
    return af.prepare(file, folder / "prepared", **roles, progress=False), file


def test_from_a_run_to_scores(url, data, tmp_path, capsys, monkeypatch):
    prepared, files = data
    local = af.train(prepared, tmp_path / "run", training=SMALL)
    run = af.train(prepared, f"{url}/run", training=SMALL)
    assert run.test == local.test
    assert str(run.folder) == f"{url}/run"
    assert af.load_run(f"{url}/run").test == local.test
    assert af.evaluate(f"{url}/run").metrics == local.test
    exported = af.export(f"{url}/run", f"{url}/model")
    scores = af.predict(f"{url}/model", files, f"{url}/scores.parquet", progress=False)
    expected = af.predict(
        af.export(local, tmp_path / "model"), files, tmp_path / "scores.parquet", progress=False
    )
    assert scores.read().equals(expected.read())
    assert exported.about.metrics == af.load_run(f"{url}/run").about.metrics
    assert call(f"compare {url}/run {tmp_path}/run --out {url}/comparison") == 0
    assert f"{url}/run" in capsys.readouterr().out
    assert "report.md" in open_folder(as_path(f"{url}/comparison")).state.files
    warm = af.train(prepared, f"{url}/second", training=SMALL, warm_start=f"{url}/run")
    assert f"warm start from {url}/run" in capsys.readouterr().err
    http = pytest.importorskip("adaftr_fast.serving.http")
    monkeypatch.setattr(http.Process, "run", lambda *_, **__: None)
    assert call(f"serve {url}/model --port 0") == 0
    assert (
        f"{url}/model: loaded model {exported.about.sha256['model.pt2']}" in capsys.readouterr().out
    )
    assert warm.config.warm_start.run == f"{url}/run"


KILLED = """
import os, sys
from adaftr_fast.training.checkpoint import snapshots
os.environ["ADAFTR_FAST_UPLOAD_SECONDS"] = "0.05"
keep, calls = snapshots.save_snapshot, []
def save(*arguments, **options):
    keep(*arguments, **options)
    calls.append(0)
    if len(calls) == 6:
        import time; time.sleep(1.0)  # some state is uploaded
        os._exit(9)
snapshots.save_snapshot = save
import adaftr_fast as af
training = {"max_epochs": 3, "batch_size": 64, "progress": False, "checkpoint_seconds": 0}
af.train(sys.argv[1], sys.argv[2], training=training)
"""


def test_a_killed_run_goes_on_on_another_machine(url, data, tmp_path, monkeypatch, capsys):
    prepared, _ = data
    Script(KILLED, prepared.folder, f"{url}/run").end(9)
    monkeypatch.setenv("ADAFTR_FAST_CACHE", str(tmp_path / "elsewhere"))
    training = {"max_epochs": 3, "batch_size": 64, "progress": False, "checkpoint_seconds": 0}
    run = af.train(prepared, f"{url}/run", training=training)
    assert f"{url}/run: resuming in epoch" in capsys.readouterr().err
    whole = af.train(prepared, tmp_path / "whole", training=training)
    assert run.test == whole.test
    assert (local_copy(f"{url}/run") / "metrics.jsonl").exists()


def test_daily_in_a_store_and_export_elsewhere(url, data, tmp_path, monkeypatch):
    prepared, file = data
    schema = prepared.folder.parent / "shop.toml"
    command = f"daily --dataset {schema} --out {url}/daily {OPTIONS} --files {file}"
    assert call(command) == 0
    assert call(f"{command} {file}") == 0
    records = (open_folder(as_path(f"{url}/daily")) / "daily.jsonl").read_text().splitlines()
    assert [json.loads(record)["day"] for record in records] == [1, 2]
    monkeypatch.setenv("ADAFTR_FAST_CACHE", str(tmp_path / "elsewhere"))
    assert call(f"export --run {url}/daily/day-0002/run --out {tmp_path}/model") == 0


def test_a_table_is_prepared_in_a_store(url, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepared, file = data
    schema = str(prepared.folder.parent / "shop.toml")
    stored = af.prepare(
        pq.read_table(file), as_path(f"{url}/prepared"), dataset=schema, progress=False
    )
    assert stored.manifest.fingerprint == prepared.manifest.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not list(tmp_path.rglob("*.tables*"))
    upload(file, as_path(f"{url}/other/file"))
    assert call(f"prepare --files {file} --dataset {schema} --out {url}/other") == 2
    assert "exists and is not a prepared folder" in capsys.readouterr().err


def test_all_paths_of_the_readme_in_a_store(url, data, monkeypatch, tmp_path):
    """The commands of "Usage" on logs in a store, each on a machine of its own."""
    _, file = data
    for name in ("log.csv", "today.csv"):
        with local_file(f"{url}/{name}") as path:
            csv.write_csv(pq.read_table(file), path)
    roles = "--labels click conversion --group user --time time"
    commands = [
        f"prepare --files {url}/log.csv {roles} --out {url}/data/mine",
        f"train --data.folder {url}/data/mine --out {url}/runs/mine {OPTIONS}",
        f"export --run {url}/runs/mine --out {url}/models/mine",
        f"predict --model {url}/models/mine --files {url}/today.csv --out {url}/scores.parquet",
    ]
    for number, command in enumerate(commands):
        monkeypatch.setenv("ADAFTR_FAST_CACHE", str(tmp_path / f"machine-{number}"))
        assert call(command) == 0
    assert len(read_parquet(as_path(f"{url}/scores.parquet"), ["p_ctr"])) == 1500
