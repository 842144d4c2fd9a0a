"""Prepared folders, runs and exported models that commit cee92c9 wrote still work, and ops keep their schemas.

files/README.md says how they were made. The tests call the command line, whose options stay when modules move.
"""

import json
import re
import tarfile
import warnings
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import adaftr_fast
from adaftr_fast import models
from adaftr_fast.cli import main
from adaftr_fast.config import RunConfig

FILES = Path(__file__).parent / "files"
TIMES = ("seconds", "samples_per_s")
SCORED = 1e-6  # tolerance after one forward pass: CPUs sum in different orders
TRAINED = 1e-4  # tolerance after up to 20 steps of training, for the same reason
RANKED = 3e-4  # of AUC and GAUC then: one pair of a small user that changes places moves the GAUC by 1 / 3480
TRAIN = ["train", "--config", "small.toml", "--data.folder", "data"]
DAILY = ["daily", "--dataset", "day.toml", "--config", "small.toml"]
PROGRAM_OPS = {"adaftr": "embedding_bags", "day": "fused_embedding"}  # the op of ours that each exported model calls
MODELS = ["single_dnn", "shared_bottom", "cross_stitch", "mmoe", "ple", "autoheri", "adaftr"]


@pytest.fixture(autouse=True)
def before(tmp_path, monkeypatch):
    """Runs the test in a folder with the files, since the paths in them are relative."""
    with tarfile.open(FILES / "before.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    assert main(list(arguments)) == 0


def records(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def numbers(record, name=""):
    """Maps the path of each nested value to it; leaves out times."""
    if isinstance(record, list):
        record = dict(enumerate(record))
    if not isinstance(record, dict):
        return {name: record}
    parts = [numbers(value, f"{name}/{key}") for key, value in record.items() if key not in TIMES]
    return {key: value for part in parts for key, value in part.items()}


def assert_close(found, expected, tolerance):
    """Floats agree to the tolerance, all else is equal; metrics that have been added since do not matter."""
    found, expected = numbers(as_then(found, expected)), numbers(expected)
    is_float = {name for name, value in expected.items() if isinstance(value, float)}
    assert {**found, **dict.fromkeys(is_float)} == {**expected, **dict.fromkeys(is_float)}
    for name in sorted(is_float):
        allowed = RANKED if tolerance == TRAINED and name.endswith("auc") else tolerance
        assert found[name] == pytest.approx(expected[name], rel=tolerance, abs=allowed), name


def assert_same_results(run, expected):
    """Two finished runs agree in every epoch and on the test split."""
    assert_close(records(f"{run}/metrics.jsonl"), records(f"{expected}/metrics.jsonl"), TRAINED)
    found, then = (json.loads(Path(each, "test.json").read_text()) for each in (run, expected))
    assert_close(found, then, TRAINED)


def manifest(folder):
    return json.loads(Path(folder, "schema.json").read_text())


def as_then(now, then):
    """Returns ``now`` without the keys that have been added since ``then``."""
    if isinstance(now, list):
        return [as_then(*pair) for pair in zip(now, then, strict=True)]
    if not isinstance(then, dict):
        return now
    return {key: as_then(now[key], value) for key, value in then.items()}


@pytest.mark.parametrize(("schema", "folder"), [("log.toml", "data"), ("day.toml", "plain")])
def test_the_same_log_gives_the_same_folder(schema, folder):
    run("prepare", "--dataset", schema, "--files", "log.csv.gz", "--out", "again")
    then, now = manifest(folder), manifest("again")
    for split, about in then["splits"].items():
        files = about.pop("files") or {f"{split}.parquet": about["rows"]}
        assert not now["splits"][split].pop("files")
        expected = pa.concat_tables([pq.read_table(Path(folder, name)) for name in files])
        found = pq.read_table(f"again/{split}.parquet")  # declares its columns free of nulls
        assert found.cast(expected.schema).equals(expected)
    assert pq.read_table("again/vocabulary.parquet").equals(pq.read_table(f"{folder}/vocabulary.parquet"))
    of_inputs = {"inputs": None, "bad_rows": None}  # `data` was made from the log as parquet
    assert as_then(now, then) | of_inputs == then | of_inputs


def test_a_finished_preparation_is_not_done_again():
    def state():
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("plain").iterdir()}

    then = state()
    run("prepare", "--dataset", "day.toml", "--files", "log.csv.gz", "--out", "plain")
    assert state() == then


def test_ids_grow():
    run("prepare", "--dataset", "log.toml", "--files", "later.csv.gz", "--out", "now", "--grow", "data")
    assert as_then(manifest("now"), manifest("grown")) == manifest(
        "grown"
    )  # its fingerprint covers all values in the order of their ids
    known, all_values = (pq.read_table(f"{folder}/vocabulary.parquet") for folder in ("data", "now"))
    of_item = [table.filter(pc.equal(table["field"], "item"))["value"].to_pylist() for table in (known, all_values)]
    assert of_item[1][: len(of_item[0])] == of_item[0]
    assert set(of_item[1]) - set(of_item[0]) == {f"i{number}" for number in range(25, 30)}


def test_training_reads_the_same_batches():
    """The mean losses of an epoch depend on the rows of each batch and on the order of the batches."""
    run(*TRAIN, "--out", "now")
    assert_close(records("now/metrics.jsonl"), records("runs/adaftr/metrics.jsonl"), TRAINED)


@pytest.mark.parametrize("model", MODELS)
def test_a_finished_run_gives_its_metrics(model, capsys):
    run("evaluate", "--run", f"runs/{model}", "--data", "data")
    assert_close(json.loads(capsys.readouterr().out), json.loads(Path(f"metrics/{model}.json").read_text()), SCORED)


@pytest.mark.parametrize(("name", "options", "epoch"), [("adaftr", [], 2), ("ple", ["--config", "ple.toml"], 1)])
def test_an_unfinished_run_goes_on(name, options, epoch, capsys):
    out = Path("unfinished", name)
    done = records(out / "metrics.jsonl") if epoch > 1 else []
    run(*TRAIN, *options, "--out", str(out))
    assert re.search(rf"{out}: resum.* epoch {epoch}\b.* step 4\b", capsys.readouterr().err)
    assert records(out / "metrics.jsonl")[: len(done)] == done  # times too: it is not trained again
    assert not (out / "last").exists()
    assert_same_results(out, f"resumed/{name}")


def test_a_run_starts_from_a_finished_one(capsys):
    run(*TRAIN, "--warm_start", "runs/adaftr", "--training.seed", "2", "--out", "now")
    shown = capsys.readouterr().err
    assert re.search(r"\b(\d+) of \1 embedding rows", shown)
    assert re.search(r"\b(\d+) of \1 dense weights", shown)
    assert_same_results("now", "warm")


def test_daily_training_goes_on():
    days = ["day1.csv.gz", "day2.csv.gz", "log.csv.gz"]  # the first two are gone
    options = ["--model.name", "shared_bottom", "--training.max_epochs", "1"]
    run(*DAILY, *options, "--files", *days, "--out", "daily")
    assert records("daily/daily.jsonl")[:2] == records("daily3/daily.jsonl")[:2]
    assert_close(records("daily/daily.jsonl"), records("daily3/daily.jsonl"), TRAINED)


def assert_scores(model, scores):
    run("predict", "--model", model, "--files", "later.csv.gz", "--keep", "time", "--out", "now.parquet")
    found, expected = (pq.read_table(path) for path in ("now.parquet", scores))
    assert found.schema.equals(expected.schema)
    kept, *scored = found.column_names
    assert found[kept].equals(expected[kept])
    for name in scored:
        assert found[name].to_pylist() == pytest.approx(expected[name].to_pylist(), rel=0, abs=SCORED)


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="torch 2.13 wrote the programs")
@pytest.mark.parametrize(("model", "op"), PROGRAM_OPS.items())
def test_an_exported_model_gives_its_scores(model, op):
    program = torch.export.load(f"models/{model}/model.pt2")
    targets = {str(node.target) for node in program.graph.nodes}
    assert {target for target in targets if target.startswith("adaftr_fast.")} == {f"adaftr_fast.{op}.default"}
    assert_scores(f"models/{model}", f"scores/{model}.parquet")


@pytest.mark.parametrize(("folder", "model"), [("runs/adaftr", "adaftr"), ("daily/day-0002/run", "day")])
def test_a_run_is_exported(folder, model):
    run("export", "--run", folder, "--out", "now")
    assert_scores("now", f"scores/{model}.parquet")


def registered():
    """Returns the schema of each op of torch.ops.adaftr_fast as text, by name."""
    assert models.build_model  # both define ops when they are imported
    assert adaftr_fast.optim.Adam
    return {op.name: str(op) for op in torch._C._jit_get_all_schemas() if op.name.startswith("adaftr_fast::")}


def nameless(schema):
    """Removes the names of arguments and results from a schema."""
    return re.sub(r"(?<=[\w\])?]) (\w+)(?=[,)=])", "", schema)


def without_new_defaults(schema, then):
    """Removes the last arguments that ``then`` lacks and that have a default: callers of before need not give them."""
    arguments, result = schema.split(") -> ") if schema else ("", "")
    arguments = arguments.replace(", *,", ",")  # those that follow are given by name
    parts, count = arguments.split(", "), len(then.split(") -> ")[0].split(", "))
    added = list(takewhile(lambda part: "=" in part, reversed(parts[count:])))
    return ", ".join(parts[: len(parts) - len(added)]) + ") -> " + result


def test_experiments_find_results_from_before_an_option():
    """At its default, an option added since is no part of the identity by which a finished job is found."""
    before = json.loads(Path("runs/mmoe/best/checkpoint.json").read_text())["config"]
    added = {name: options.keys() - before[name].keys() for name, options in RunConfig().identity().items()}
    assert not any(added.values()), f"declare these with option(..., omit_default=True): {added}"


def test_ops_keep_their_schemas():
    then = {schema.split("(")[0]: schema for schema in (FILES / "ops.txt").read_text().splitlines()}
    now = registered()
    now = {name: without_new_defaults(now.get(name, ""), schema) for name, schema in then.items()}
    assert {name: nameless(each) for name, each in now.items()} == {name: nameless(each) for name, each in then.items()}
    renamed = {name.removeprefix("adaftr_fast::") for name, schema in then.items() if now[name] != schema}
    assert not renamed & set(PROGRAM_OPS.values())  # programs give arguments by name
    for name in sorted(renamed):
        warnings.warn(f"torch.ops.adaftr_fast.{name}: its arguments have other names than before", stacklevel=1)
