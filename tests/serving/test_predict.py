import dataclasses
import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.encode.encoders import Vocabulary
from adaftr_fast.data.schema.types import TextFormat
from adaftr_fast.errors import ConfigError, DataError, ServingError
from adaftr_fast.serving.predict import predict
from adaftr_fast.serving.scorer import load_scorer

from .conftest import make_log, scores, scores_of_trainer


@pytest.fixture(scope="module")
def scorer(exported):
    return load_scorer(exported[0])


@pytest.fixture(scope="module")
def trainer_scores(shop, exported):
    """The trainer's predictions of the rows of all splits, [600, 2]."""
    return scores_of_trainer(exported[1], shop / "data")


def text(table, path):
    csv.write_csv(table, path, csv.WriteOptions(quoting_style="none"))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "scores.parquet"


@pytest.fixture
def predicted(scorer, out):
    """Writes the scores of files to ``out``."""

    def predicted(*files, **options):
        return predict(scorer, list(files), out, **options)

    return predicted


@pytest.fixture
def changed(tmp_path):
    """Writes a log some of whose columns have other values."""

    def changed(rows, **columns):
        log = make_log(rows)
        for name, values in columns.items():
            log = log.set_column(log.column_names.index(name), name, pa.array(values))
        pq.write_table(log, tmp_path / "log.parquet")
        return tmp_path / "log.parquet"

    return changed


FEATURES = ["item", "place", "heat", "user", "tags", "weekday", "row"]


def test_scores_of_raw_parquet_match_the_trainer(shop, scorer, trainer_scores, tmp_path):
    out = tmp_path / "deep/scores.parquet"
    report = predict(scorer, [shop / "log.parquet"], out, keep=["row", "price"])
    assert (report.rows, report.bad_rows.bad) == (600, 0)
    table = pq.read_table(out)
    assert table.column_names == ["row", "price", "p_ctr", "p_ctcvr", "p_cvr"]
    assert table["row"].to_pylist() == list(range(600))
    np.testing.assert_allclose(scores(out), trainer_scores, rtol=0, atol=1e-6)
    assert os.listdir(out.parent) == ["scores.parquet"]


def test_missing_and_unknown_values_are_counted_beside_those_of_training(shop, predicted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unknown = predicted(shop / "log.parquet").unknown
    splits = PreparedData(shop / "data").manifest.splits
    assert unknown.counts == {
        name: sum(each.unknown[name] for each in splits.values()) for name in unknown.counts
    }
    (shares,) = (cells for name, *cells in unknown.cells() if name == "day")
    expected = [splits[name].unknown["day"] / splits[name].rows for name in ("train", "validation")]
    assert shares[1:] == [f"{100 * share:.2f} %" for share in expected]


def test_more_unknown_values_than_in_training_are_warned_of(predicted, changed):
    log = changed(600, place=[each.upper() for each in make_log()["place"].to_pylist()])
    share = r"place \(100.00 %, 0.00 % in training, 0.00 % in validation\); item_place"
    with pytest.warns(UserWarning, match=rf"log.parquet: more than twice .*: {share}"):
        predicted(log)


def test_rows_of_which_nothing_is_known_are_warned_of(predicted, scorer, changed):
    log = changed(3, **dict.fromkeys(("item", "place", "weekday", "tags"), ["?"] * 3))
    assert scorer.encode(pq.read_table(log).to_batches()[0]).ids[:, 0].tolist() == [0, 0, 0]
    with pytest.warns(
        UserWarning,
        match=r"every value of item, place, item_place, tags, day is missing or unknown",
    ):
        predicted(log)


def test_bad_rows_are_skipped_and_reported(predicted, out, tmp_path):
    path = text(make_log(50).select(FEATURES), tmp_path / "log.csv")
    lines = path.read_text().splitlines(keepends=True)
    lines[7] = "3,p1,warm,5,1|2,mon,6\n"
    path.write_text("".join(lines))
    message = (
        r"1 of 50 rows cannot be read \(heat is not of type double 1\); first: .*log.csv:8: heat"
    )
    with pytest.raises(DataError, match=message):
        predicted(path)
    assert not out.exists()
    with pytest.raises(
        DataError,
        match=r"the model's schema has no words for missing .* with --null, --thousands or",
    ):
        predicted(path)
    report = predicted(path, keep=["row"], bad_rows=0.05)
    assert (report.rows, report.bad_rows.bad) == (49, 1)
    assert "6" not in pq.read_table(out)["row"].to_pylist()


def test_the_bound_of_memory_holds_for_parquet_and_text(shop, predicted, tmp_path):
    bound = (
        r"^memory: expected at least 0\.[0-9]+ GB, of which a batch of the widest rows takes .* "
        r"got 0.375$"
    )
    table = pq.read_table(shop / "log.parquet")
    for path in (shop / "log.parquet", text(table, tmp_path / "log.csv")):
        with pytest.raises(ConfigError, match=bound):
            predicted(path, memory=0.3750001)
        assert predicted(path, memory=0.4).rows == 600


def test_errors_keep_the_earlier_scores(shop, scorer, tmp_path):
    out = tmp_path / "scores.parquet"
    out.write_bytes(b"old")
    log = shop / "log.parquet"
    half = tmp_path / "half.parquet"
    half.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    damaged = tmp_path / "damaged.parquet"
    content = bytearray(log.read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"\xff" * (
        len(content) // 2 - len(content) // 3
    )
    damaged.write_bytes(content)
    (tmp_path / "folder").mkdir()
    few = tmp_path / "few.parquet"
    pq.write_table(make_log(5).select(["item", "place"]), few)
    for files, options, error, message in [
        ([tmp_path / "nothing.csv"], {}, DataError, "nothing.csv: no such file"),
        ([half], {}, DataError, "half.parquet: not a readable parquet file"),
        ([log, damaged], {}, DataError, "damaged.parquet: cannot be read"),
        (
            [few],
            {},
            DataError,
            "few.parquet: no column 'heat', 'user', 'tags', 'weekday'; the file has item, place",
        ),
        ([log], {"keep": ["colour"]}, DataError, "no column 'colour'"),
        ([log], {"keep": ["row", "row"]}, ServingError, "two columns of the same name"),
        ([out], {}, ServingError, "is one of the inputs"),
    ]:
        with pytest.raises(error, match=message):
            predict(scorer, files, out, **options)
        assert out.read_bytes() == b"old"
        assert not list(tmp_path.glob(".*"))
    for files, place, message in [
        ([log], tmp_path / "folder", "folder: expected a file name, got a folder"),
        ([tmp_path], tmp_path / "folder/scores.parquet", "scores.parquet: is in the input folder"),
        ([log], out / "scores.parquet", "scores.parquet: cannot be written"),
        (
            [log],
            tmp_path / "scores.csv",
            r"scores\.csv: scores are written as parquet; name the file \.parquet",
        ),
    ]:
        with pytest.raises(ServingError, match=message):
            predict(scorer, files, place)
    assert not list((tmp_path / "folder").iterdir())


def test_scores_that_are_not_finite_raise(shop, scorer, predicted, tmp_path, monkeypatch):
    monkeypatch.setattr(
        type(scorer.program), "__call__", lambda self, ids: torch.full((len(ids), 2), torch.nan)
    )
    with pytest.raises(ServingError, match="1200 of 1200 probabilities are not finite"):
        predicted(shop / "log.parquet")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda each: f"{each} ", "spaces around the values: 'p. ' here, 'p.' there"),
        (str.upper, "the case of letters: 'P.' here, 'p.' there"),
        (lambda each: f"00{each}", "zeros in front: '00p.' here, 'p.' there"),
    ],
)
def test_what_differs_from_the_values_of_training_is_named(predicted, changed, change, hint):
    log = changed(600, place=[change(each) for each in make_log()["place"].to_pylist()])
    with pytest.warns(UserWarning, match=f"place differs from training in {hint}"):
        predicted(log)


def test_spaces_of_training_that_rows_lack_are_named(shop, scorer, out):
    known = scorer.encoders["place"]
    spaced = Vocabulary(pa.array([f"{each} " for each in known.values.to_pylist()]), known.counts)
    other = dataclasses.replace(scorer, encoders=scorer.encoders | {"place": spaced})
    with pytest.warns(
        UserWarning, match="place differs .* spaces around the values: 'p.' here, 'p. ' there"
    ):
        predict(other, [shop / "log.parquet"], out)


@pytest.mark.parametrize("bid", ["price", "heat"])
def test_kept_text_stays_as_it_is_written_and_prices_are_read_by_its_marks(
    scorer, out, tmp_path, bid
):
    """Also of a column that a field reads as numbers."""
    written = ["007", "1.50", "NA", "1,325.45", "2", "+3"]
    log = make_log(6).select(FEATURES)
    for name in ("heat", "price"):
        log = with_text(log, name, written)
    schema = dataclasses.replace(scorer.schema, text=TextFormat(null=("NA",), thousands=","))
    columns = dataclasses.replace(scorer.columns, bid=bid)
    marked = dataclasses.replace(scorer, schema=schema, columns=columns)
    csv.write_csv(log, tmp_path / "log.csv")
    predict(marked, [tmp_path / "log.csv"], out, keep=["heat", "price", "item"])
    found = pq.read_table(out)
    assert found["heat"].to_pylist() == found["price"].to_pylist() == written
    prices = np.array([7.0, 1.5, np.nan, 1325.45, 2.0, 3.0])
    bids = found["p_ctr"].to_numpy().astype(np.float64) * found["p_cvr"].to_numpy() * prices
    np.testing.assert_allclose(found["bid"].to_numpy(), bids, rtol=1e-6)
    if bid == "price":
        pq.write_table(with_text(make_log(6), "price", written), tmp_path / "log.parquet")
        predict(marked, [tmp_path / "log.parquet"], out, keep=["price"])
        assert pq.read_table(out)["price"].to_pylist() == written
        assert pq.read_table(out)["bid"].null_count == 1


def with_text(log, name, values):
    names = log.column_names
    if name not in names:
        return log.append_column(name, pa.array(values))
    return log.set_column(names.index(name), name, pa.array(values))
