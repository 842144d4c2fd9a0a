import math
import os
import re
from dataclasses import replace

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.cli import main
from adaftr_fast.config import WarmStartConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.rows import TensorRows
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.errors import DataError
from adaftr_fast.runs import daily
from adaftr_fast.runs.daily import RECORDS, train_daily
from adaftr_fast.runs.run import train_one
from adaftr_fast.training.checkpoint.weights import weights_of
from adaftr_fast.training.trained import Run, load_trained
from adaftr_fast.training.trainer import Trainer
from tests.cli.conftest import fails
from tests.logs import read_records
from tests.tolerances import assert_same_bits

from .conftest import SOURCE, keep_few_conversions, settings, write_day


@pytest.fixture
def days(tmp_path):
    return [write_day(tmp_path, day) for day in range(3)]


def run(days, out):
    return list(train_daily(parse_schema(SOURCE), days, settings(embedding_dims={"user": 4}), out))


def without_file(records):
    return [{name: value for name, value in record.items() if name != "file"} for record in records]


def weights(out, day):
    return weights_of(load_trained(out / f"day-{day:04d}/run").model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The records and the folder of three days, whose fields have widths of their own."""
    folder = tmp_path_factory.mktemp("whole")
    return run([write_day(folder, day) for day in range(3)], folder / "out"), folder / "out"


def test_a_day_whose_validation_rows_have_one_class_is_trained_on(days, tmp_path):
    """Its conversion AUC is undefined, so the weights of its last epoch are the best."""
    keep_few_conversions(days[1])
    records = run(days, tmp_path / "out")
    assert [record["day"] for record in records] == [1, 2, 3]
    metrics = read_records(tmp_path / "out" / RECORDS)[1]["validation"]
    assert metrics["conversion"]["auc"] is None
    assert metrics["click"]["auc"] > 0.5
    trained = Run.read(tmp_path / "out/day-0002/run")
    assert trained.best_epoch == trained.trained_epochs == 2
    assert math.isnan(trained.validation["conversion"]["auc"])


def test_each_day_is_evaluated_before_training_on_it(whole):
    records, out = whole
    assert read_records(out / RECORDS) == records
    assert [record["day"] for record in records] == [1, 2, 3]
    assert records[0]["before_training"] is None
    assert records[0]["ids"] < records[1]["ids"] < records[2]["ids"]
    assert all(record["rows"] == 800 for record in records)
    # The previous day's model has learned what the days share, but has not seen the day's rows.
    for record in records[1:]:
        assert (
            0.5 < record["before_training"]["click"]["auc"] < record["validation"]["click"]["auc"]
        )
    assert [weights(out, 3)[f"backbone.embedding.weight.{f}"].shape[1] for f in range(4)] == [
        8,
        4,
        8,
        8,
    ]


@pytest.mark.parametrize(
    ("ids", "offsets", "expected"),
    [
        ([[3, 9], [5, 2]], None, [[3, 0], [0, 2]]),
        ([3, 9, 2, 8, 4], [0, 1, 3, 4, 5], [3, 0, 2, 0, 4]),
    ],
)
def test_new_ids_are_unknown_to_an_earlier_model(ids, offsets, expected):
    """Of fields with 5 and 9 ids; offsets are those of lists."""
    bags = None if offsets is None else torch.tensor(offsets)
    batch = Batch(torch.tensor(ids, dtype=torch.int32), torch.zeros(2, 2), offsets=bags)
    rows = daily.KnownIds(TensorRows(batch), [5, 9]).read([0], None)
    assert rows.ids.tolist() == expected
    assert rows.offsets is bags or torch.equal(rows.offsets, bags)


def test_an_interruption_at_any_point_does_not_change_bits(days, whole, tmp_path, monkeypatch):
    stopped = tmp_path / "stopped"

    class Stop(Exception):
        pass

    def stop_at(name, call, owner):
        """Interrupts a run at the ``call``-th call of a function."""
        original = getattr(owner, name)
        calls = []

        def stopping(*arguments, **options):
            calls.append(1)
            if len(calls) == call:
                raise Stop
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopping)
            with pytest.raises(Stop):
                run(days, stopped)

    stop_at("prepare", 2, daily)
    stop_at("evaluate", 1, daily)
    stop_at("append", 1, daily.Journal)  # only the record is missing
    stop_at("train_epoch", 2, Trainer)
    run(days, stopped)
    assert without_file(read_records(stopped / RECORDS)) == without_file(whole[0])
    ours = weights(stopped, 3)
    theirs = weights(whole[1], 3)
    assert_same_bits(ours, theirs)


def test_finished_days_are_not_repeated(days, tmp_path):
    out = tmp_path / "out"
    run(days[:2], out)
    days[0].unlink()
    assert [record["day"] for record in run(days, out)] == [3]
    assert run(days, out) == []
    with pytest.raises(
        DataError, match=r"day 2: expected .*day1.parquet, got .*day2.parquet: pass all days"
    ):
        run([days[0], days[2], days[1]], out)
    with pytest.raises(DataError, match="expected files of at least 3 days, got 2"):
        run(days[:2], out)
    for damaged in ("{\n", "[1]\n"):
        (out / RECORDS).write_text(damaged)
        with pytest.raises(DataError, match=r"daily\.jsonl: damaged"):
            run(days, out)


def test_schemas_without_days_raise(days, prepared, tmp_path):
    with pytest.raises(DataError, match="expected a schema of one file, got train, test"):
        list(train_daily(load_schema("census"), days, settings(), tmp_path / "out"))
    fields = SOURCE["fields"] | {"heat": {"kind": "numeric", "buckets": 5}}
    del fields["place"]
    other = parse_schema(SOURCE | {"fields": fields})
    with pytest.raises(DataError, match="those of data set shop in heat, place, so its ids"):
        prepare(other, [days[1]], tmp_path / "other", grow=prepared(0).folder)


def test_the_first_day_starts_from_another_run_and_each_later_one_from_the_day_before(
    days, prepared, tmp_path, capsys
):
    """As in the paper's deployment: from a model of one task, then day by day."""
    data = prepared(0, "single")
    train_one(data, settings(data.folder, name="single_dnn"), tmp_path / "single")
    config = replace(
        settings(), warm_start=WarmStartConfig(str(tmp_path / "single"), task="conversion")
    )
    config.optimizer.lr = 0.0  # what a day copies, it keeps
    list(train_daily(parse_schema(SOURCE), days[:2], config, tmp_path / "out"))
    shown = capsys.readouterr().err
    assert f"warm start from {tmp_path / 'single'}: " in shown
    assert f"warm start from {tmp_path / 'out/day-0001/run'}: " in shown
    old = load_trained(tmp_path / "single").model.networks[1].embedding.field_weight("3")  # hashed
    for day in (1, 2):
        assert torch.equal(weights(tmp_path / "out", day)["backbone.embedding.weight.3"], old)


SMALL = (
    "--training.batch_size 100 --training.max_epochs 1 --training.progress false "
    "--model.tower_hidden [4] --model.expert_hidden [4] --model.relatedness_hidden [4]"
)


def test_the_command_leaves_out_rows_as_its_error_says(tmp_path, capsys):
    log = tmp_path / "log.csv"
    csv.write_csv(pq.read_table(write_day(tmp_path, 1)), log)
    with log.open("a") as file:
        file.write("1,short\n")
    command = f"daily --files {log} --labels click buy {SMALL} --out {tmp_path}"
    assert main(f"{command}/stopped".split()) == 2
    (advice,) = re.findall("--bad_rows 0.01", capsys.readouterr().err)
    assert main(f"{command}/out {advice}".split()) == 0
    assert capsys.readouterr().out.startswith(f"day 1 ({log}): 800 rows and 1 left out, ")


def test_the_commands_infer_the_schema_from_labels(tmp_path, capsys):
    """From the first day alone, which may be gone when the next one is trained on."""
    first = write_day(tmp_path, 1)
    second = write_day(tmp_path, 2)
    out = tmp_path / "out"
    options = SMALL
    roles = "--labels click buy --funnel click buy --group user"
    assert main(f"daily {roles} --files {first} --out {out} {options}".split()) == 0
    schema = load_schema(str(out / "schema.toml"))
    assert [field.name for field in schema.fields] == ["item", "user"]
    assert [field.name for field in schema.dense] == ["heat"]  # item is named as an id
    assert (schema.funnel, schema.group) == (("click", "buy"), "user")
    first.unlink()
    capsys.readouterr()
    assert main(f"daily {roles} --files {first} {second} --out {out} {options}".split()) == 0
    day, *doubts, _, records, run_line = capsys.readouterr().out.splitlines()
    named = [records, run_line]
    assert day.startswith("day 2 (")
    assert re.search(
        r"click AUC [\d.]+, log-loss [\d.]+ \(of the rate [\d.]+\), predicted/obs", day
    )
    assert any("steps, in which it can hardly leave its start" in each for each in doubts)
    run = f"adaftr-fast export --run {out}/day-0002/run --out MODEL"
    assert named == [f"Records: {out}/daily.jsonl", run]
    (tmp_path / "in").mkdir()
    second.rename(tmp_path / "in/1.parquet")
    streamed = f"--folder {tmp_path}/in --settle 0 --poll 0 --idle 0.01 --out {tmp_path}/stream"
    os.utime(tmp_path / "in/1.parquet", (0, 0))  # whole for long
    assert main(f"stream {roles} {streamed} {options}".split()) == 0
    assert load_schema(str(tmp_path / "stream/schema.toml")).funnel == ("click", "buy")
    (tmp_path / "in/1.parquet").rename(second)
    capsys.readouterr()
    for command, message in (
        (
            f"daily --labels buy --files {second} --out {out}",
            "schema.toml: has the labels click, buy; pass these",
        ),
        (f"daily --files {second} --out {out}", "expected --dataset or --labels, and not both"),
        (
            f"daily --dataset flights --group user --files {second} --out {out}",
            "--group: goes with --labels",
        ),
        (
            f"stream --labels buy --folder {tmp_path}/in --out {tmp_path}/new",
            "--labels: there is no file yet",
        ),
    ):
        assert message in fails(command.split(), capsys)
