import errno
import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw import rows as rows_module
from adaftr_fast.data.raw.bad_rows import BadRows
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import BusyError, DataError, ServingError, StoreError
from adaftr_fast.models import ModelConfig
from adaftr_fast.serving.columns import output_columns
from adaftr_fast.serving.export import export_run
from adaftr_fast.serving.predict import predict
from adaftr_fast.serving.scorer import load_scorer
from adaftr_fast.training.evaluation import predict as predict_split
from tests.files.holder import holder
from tests.files.power import cut

from .conftest import SIZES, SOURCE, make_log, save_run

COLUMNS = output_columns(["click", "conversion"])


@pytest.fixture(scope="module")
def scorer(exported):
    return load_scorer(exported[0])


@pytest.fixture(scope="module")
def trainer_scores(shop, exported):
    """The trainer's predictions of the rows of all splits, [600, 2]."""
    data = PreparedData(shop / "data")
    parts = [predict_split(exported[1], data.load(split), 100).logits for split in ("train", "validation", "test")]
    return torch.from_numpy(np.concatenate(parts)).sigmoid().numpy()


def scores(path):
    table = pq.read_table(path)
    return np.stack([table["p_ctr"].to_numpy(), table["p_ctcvr"].to_numpy()], 1)


def text(table, path, delimiter=","):
    options = csv.WriteOptions(delimiter=delimiter, quoting_style="none")
    csv.write_csv(table, path, options)
    return path


def test_stray_quotes_lose_no_rows(scorer, tmp_path):
    log = text(make_log(), tmp_path / "log.csv")
    lines = log.read_text().splitlines()
    for number in (100, 400):
        lines[number] = lines[number].replace(",p", ',"p')
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"2 of 600 rows cannot be read .*log.csv:101: the line ends inside quotes"):
        predict(scorer, [log], tmp_path / "scores.parquet", COLUMNS)
    report = predict(scorer, [log], tmp_path / "scores.parquet", COLUMNS, keep=["row"], bad_rows=0.01)
    assert (report.rows, report.bad_rows.lines, report.bad_rows.bad) == (598, 600, 2)
    kept = [str(row) for row in range(600) if row + 1 not in (100, 400)]
    assert pq.read_table(tmp_path / "scores.parquet")["row"].to_pylist() == kept


def test_rows_without_scores_are_an_error(shop, scorer, tmp_path, monkeypatch):
    half = lambda table: (table[:100], BadRows(rows=table.num_rows))  # noqa: E731
    monkeypatch.setattr(rows_module, "_parsed_table", half)
    with pytest.raises(DataError, match=r"log.parquet: read 600 lines, but accounts for 100 rows kept"):
        predict(scorer, [shop / "log.parquet"], tmp_path / "scores.parquet", COLUMNS)
    assert not os.listdir(tmp_path)


def test_a_store_that_fails_is_not_taken_for_the_output(scorer, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise StoreError("s3://logs/today.csv: failed 8 times")

    log = text(make_log(), tmp_path / "log.csv")
    monkeypatch.setattr(rows_module, "blocks", fails)
    with pytest.raises(StoreError, match=r"^s3://logs/today\.csv: failed 8 times"):
        predict(scorer, [log], tmp_path / "scores.parquet", COLUMNS)


FEATURES = ["item", "place", "heat", "user", "tags", "weekday", "row"]


def test_scores_of_raw_parquet_match_the_trainer(shop, scorer, trainer_scores, tmp_path):
    out = tmp_path / "deep/scores.parquet"
    report = predict(scorer, [shop / "log.parquet"], out, COLUMNS, keep=["row", "price"])
    assert (report.rows, report.bad_rows.bad) == (600, 0)
    table = pq.read_table(out)
    assert table.column_names == ["row", "price", "p_ctr", "p_ctcvr", "p_cvr"]
    assert table["row"].to_pylist() == list(range(600))
    np.testing.assert_allclose(scores(out), trainer_scores, rtol=0, atol=1e-6)
    assert os.listdir(out.parent) == ["scores.parquet"]


def test_scores_of_text_match_the_trainer(scorer, trainer_scores, tmp_path, monkeypatch):
    """A vocabulary of integers also encodes their text."""
    monkeypatch.setattr("adaftr_fast.data.raw.staging.BLOCK_BYTES", 3000)
    log = make_log().select(FEATURES)
    files = [text(log.slice(0, 250), tmp_path / "a.csv"), text(log.slice(250), tmp_path / "b.tsv", "\t")]
    predict(scorer, files, tmp_path / "scores.parquet", COLUMNS, keep=["row"])
    assert pq.read_table(tmp_path / "scores.parquet")["row"].to_pylist() == [str(row) for row in range(600)]
    np.testing.assert_allclose(scores(tmp_path / "scores.parquet"), trainer_scores, rtol=0, atol=1e-6)


def test_scores_of_multi_valued_fields_match_the_trainer(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("adaftr_fast.serving.scorer.ROWS", 70)
    tags = {"kind": "categorical", "tokens": "all", "separator": "|"}
    source = SOURCE | {"fields": SOURCE["fields"] | {"tags": tags}}
    prepare(parse_schema(source), [shop / "log.parquet"], tmp_path / "data")
    data = PreparedData(tmp_path / "data")
    model = save_run(tmp_path / "run", data, ModelConfig(**SIZES))
    export_run(tmp_path / "run", tmp_path / "model")
    predict(load_scorer(tmp_path / "model"), [shop / "log.parquet"], tmp_path / "scores.parquet", COLUMNS)
    parts = [predict_split(model, data.load(split), 100).logits for split in ("train", "validation", "test")]
    expected = torch.from_numpy(np.concatenate(parts)).sigmoid().numpy()
    np.testing.assert_allclose(scores(tmp_path / "scores.parquet"), expected, rtol=0, atol=1e-6)


def test_unseen_values_are_unknown(scorer, tmp_path):
    log = make_log(2)
    fresh = log.set_column(log.column_names.index("item"), "item", pa.array([10**6, None], pa.int64()))
    pq.write_table(fresh, tmp_path / "log.parquet")
    ids = scorer.encode(fresh.to_batches()[0]).ids
    assert ids[:, 0].tolist() == [0, 0]
    assert predict(scorer, [tmp_path / "log.parquet"], tmp_path / "out.parquet", COLUMNS).rows == 2


def test_missing_and_unknown_values_are_counted_beside_those_of_training(shop, scorer, tmp_path):
    out = tmp_path / "scores.parquet"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unknown = predict(scorer, [shop / "log.parquet"], out, COLUMNS).unknown
    splits = PreparedData(shop / "data").manifest.splits
    assert unknown.counts == {
        name: sum(splits[split].unknown[name] for split in ("train", "validation", "test")) for name in unknown.counts
    }
    shares = {name: cells for name, *cells in unknown.cells()}
    train, validation = splits["train"], splits["validation"]
    assert shares["day"][1] == f"{100 * train.unknown['day'] / train.rows:.2f} %"
    assert shares["day"][2] == f"{100 * validation.unknown['day'] / validation.rows:.2f} %"


@pytest.mark.parametrize("change", ["zeros", "spaces", "case"])
def test_more_unknown_values_than_in_training_are_warned_of(scorer, tmp_path, change):
    log = make_log()
    place = log["place"].to_pylist()
    changed = {"zeros": [f"0{each}" for each in place], "spaces": [f"{each} " for each in place]}
    changed["case"] = [each.upper() for each in place]
    log = log.set_column(log.column_names.index("place"), "place", pa.array(changed[change]))
    pq.write_table(log, tmp_path / "log.parquet")
    expected = (
        r"log.parquet: more than twice .*: place \(100.00 %, 0.00 % in training, 0.00 % in validation\); item_place"
    )
    with pytest.warns(UserWarning, match=expected):
        predict(scorer, [tmp_path / "log.parquet"], tmp_path / "scores.parquet", COLUMNS)


def test_rows_of_which_nothing_is_known_are_warned_of(scorer, tmp_path):
    log = make_log(3)
    for name in ("item", "place", "weekday", "tags"):
        log = log.set_column(log.column_names.index(name), name, pa.array(["?"] * 3))
    pq.write_table(log, tmp_path / "log.parquet")
    with pytest.warns(UserWarning, match=r"every value of item, place, item_place, tags, day is missing or unknown"):
        predict(scorer, [tmp_path / "log.parquet"], tmp_path / "scores.parquet", COLUMNS)


def test_bad_rows_are_skipped_and_reported(scorer, tmp_path):
    path = text(make_log(50).select(FEATURES), tmp_path / "log.csv")
    lines = path.read_text().splitlines(keepends=True)
    lines[7] = "3,p1,warm,5,1|2,mon,6\n"
    path.write_text("".join(lines))
    out = tmp_path / "scores.parquet"
    with pytest.raises(
        DataError, match=r"1 of 50 rows cannot be read \(heat is not of type double 1\); first: .*log.csv:8: heat"
    ):
        predict(scorer, [path], out, COLUMNS)
    assert not out.exists()
    report = predict(scorer, [path], out, COLUMNS, keep=["row"], bad_rows=0.05)
    assert (report.rows, report.bad_rows.bad) == (49, 1)
    assert "6" not in pq.read_table(out)["row"].to_pylist()


def test_errors_keep_the_earlier_scores(shop, scorer, tmp_path):
    out = tmp_path / "scores.parquet"
    out.write_bytes(b"old")
    log = shop / "log.parquet"
    half = tmp_path / "half.parquet"
    half.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    damaged = tmp_path / "damaged.parquet"
    content = bytearray(log.read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"\xff" * (len(content) // 2 - len(content) // 3)
    damaged.write_bytes(content)
    (tmp_path / "folder").mkdir()
    few = tmp_path / "few.parquet"
    pq.write_table(make_log(5).select(["item", "place"]), few)
    for files, options, error, message in [
        ([tmp_path / "nothing.csv"], {}, DataError, "nothing.csv: no such file"),
        ([half], {}, DataError, "half.parquet: cannot be read"),
        ([log, damaged], {}, DataError, "damaged.parquet: cannot be read"),
        ([few], {}, DataError, "few.parquet: no column 'heat', 'user', 'tags', 'weekday'; the file has item, place"),
        ([log], {"keep": ["colour"]}, DataError, "no column 'colour'"),
        ([log], {"keep": ["row", "row"]}, ServingError, "two columns of the same name"),
        ([log], {"bad_rows": 1.0}, DataError, r"bad_rows: expected a share in \[0, 1\)"),
        ([out], {}, ServingError, "is one of the inputs"),
    ]:
        with pytest.raises(error, match=message):
            predict(scorer, files, out, COLUMNS, **options)
        assert out.read_bytes() == b"old"
        assert not list(tmp_path.glob(".*"))
    for files, place, message in [
        ([log], tmp_path / "folder", "folder: expected a file name, got a folder"),
        ([tmp_path], tmp_path / "folder/scores.parquet", "scores.parquet: is in the input folder"),
        ([log], out / "scores.parquet", "scores.parquet: cannot be written"),
        ([log], tmp_path / "scores.csv", r"scores\.csv: scores are written as parquet; name the file \.parquet"),
        ([log], tmp_path / "scores.tsv.gz", r"scores\.tsv\.gz: scores are written as parquet"),
    ]:
        with pytest.raises(ServingError, match=message):
            predict(scorer, files, place, COLUMNS)
    assert not list((tmp_path / "folder").iterdir())


def test_concurrent_calls_do_not_interfere(shop, scorer, tmp_path, monkeypatch):
    out, write = tmp_path / "scores.parquet", pq.ParquetWriter.write_batch

    def meanwhile(self, batch):
        monkeypatch.setattr(pq.ParquetWriter, "write_batch", write)
        with pytest.raises(DataError):
            predict(scorer, [tmp_path / "nothing.parquet"], out, COLUMNS)
        predict(scorer, [shop / "log.parquet"], out, COLUMNS)
        write(self, batch)

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", meanwhile)
    predict(scorer, [shop / "log.parquet"], out, COLUMNS, keep=["row"])
    assert pq.read_table(out)["row"].to_pylist() == list(range(600))
    assert os.listdir(tmp_path) == ["scores.parquet"]


def test_two_writers_of_the_same_scores(shop, scorer, tmp_path):
    out = tmp_path / "scores.parquet"
    with holder(tmp_path / ".scores.parquet.lock"), pytest.raises(BusyError, match=r"scores\.parquet: process"):
        predict(scorer, [shop / "log.parquet"], out, COLUMNS)
    assert os.listdir(tmp_path) == [".scores.parquet.lock"]


def test_leftovers_of_killed_processes_are_removed_and_links_are_followed(shop, scorer, tmp_path):
    (tmp_path / "disk").mkdir()
    for name in (".scores.parquet.new-1-2", ".others.parquet.new-1-2"):
        (tmp_path / "disk" / name).write_bytes(b"half")
    (tmp_path / "link.parquet").symlink_to("disk/scores.parquet")
    for _ in range(2):  # absent, then replaced
        predict(scorer, [shop / "log.parquet"], tmp_path / "link.parquet", COLUMNS)
        assert pq.read_table(tmp_path / "disk/scores.parquet").num_rows == 600
        assert (tmp_path / "link.parquet").is_symlink()
    assert sorted(os.listdir(tmp_path / "disk")) == [".others.parquet.new-1-2", "scores.parquet"]


@pytest.mark.parametrize("old", [True, False])
def test_a_power_failure_leaves_the_old_or_the_new_scores(shop, scorer, tmp_path, old):
    out = tmp_path / "scores.parquet"
    if old:
        out.write_bytes(b"old")
    cut(tmp_path, out, lambda: predict(scorer, [shop / "log.parquet"], out, COLUMNS))


def test_a_full_disk_keeps_the_earlier_scores(shop, scorer, tmp_path, monkeypatch):
    out = tmp_path / "scores.parquet"
    out.write_bytes(b"old")

    def full(self, batch):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
    with pytest.raises(ServingError, match=r"scores.parquet: cannot be written: .*No space left"):
        predict(scorer, [shop / "log.parquet"], out, COLUMNS)
    assert os.listdir(tmp_path) == ["scores.parquet"]
    assert out.read_bytes() == b"old"


def test_scores_that_are_not_finite_raise(shop, scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(scorer.program), "__call__", lambda self, ids: torch.full((len(ids), 2), torch.nan))
    with pytest.raises(ServingError, match="1200 of 1200 probabilities are not finite"):
        predict(scorer, [shop / "log.parquet"], tmp_path / "scores.parquet", COLUMNS)
    assert not os.listdir(tmp_path)
