import html
import re
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

import adaftr_fast as af
from adaftr_fast.api.data_report import PAGE
from adaftr_fast.cli import main
from adaftr_fast.cli.data import ASK_FOR_SCHEMA, INFERRED
from adaftr_fast.errors import DataError

from .conftest import ROLES

TOML = """
name = "log"
labels = { click = "click" }
split = { train = {}, validation = {}, test = {} }
[fields]
user = "categorical"
age = "numeric"
seen = { kind = "categorical", tokens = "all", separator = "|" }
last = { kind = "categorical", column = "seen", tokens = "last", separator = "|" }
rare = { kind = "categorical", min_count = 2 }
pair = { cross = ["user", "rare"], hashed = 10 }
recent = { kind = "categorical", column = "seen", tokens = "all", separator = "|", length = 2, vocabulary = "last" }
amount = { kind = "dense", column = "age", encoding = "log" }
"""


def test_a_csv_becomes_a_folder_that_prints_its_fields_and_splits(shop, data):
    log = csv.read_csv(shop / "log.csv")
    first, splits = repr(data).split("\n\n")
    summary, fields = first.split("\n", 1)
    header, _, *rows = splits.splitlines()
    assert fields == data.fields().markdown()
    assert summary == f"{data.folder}: log, 3 fields, {sum(data.manifest.num_embeddings)} ids"
    assert header == "| split      | rows |   click | conversion |"
    for row, name, start, stop in zip(
        rows, ["train", "validation", "test"], [0, 960, 1080], [960, 1080, 1200]
    ):
        rates = [100 * np.mean(log[task][start:stop]) for task in ("click", "conversion")]
        assert row == f"| {name:<10} | {stop - start:>4} | {rates[0]:.2f} % |    {rates[1]:.2f} % |"
    page = data._repr_html_()
    assert page.startswith(f"<p>{summary}</p>{data.fields().html()}<table>")
    assert '<td style="text-align: right">960</td>' in page
    assert repr(data.table()) == data.table().markdown()
    assert data.table()._repr_html_() in page


def test_each_field_tells_how_it_is_read_and_what_is_missing(tmp_path):
    rows = 200
    columns = {
        "user": [None if n % 4 == 0 else f"u{n % 8}" for n in range(rows)],
        "age": [None if n % 10 == 0 else 0.5 * n for n in range(rows)],
        "seen": ["" if n % 5 == 0 else f"a|b{n % 3}" for n in range(rows)],
        "rare": [f"r{n}" if n % 2 else "often" for n in range(rows)],
        "click": [n % 2 for n in range(rows)],
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    (tmp_path / "log.toml").write_text(TOML)
    data = af.prepare(tmp_path / "log.parquet", tmp_path / "data", dataset=tmp_path / "log.toml")
    assert data.fields().header == ["field", "read as", "ids", "missing or rare"]
    assert data.fields().rows == [
        ["user", "categorical", "7", "25.00 %"],
        ["age", "numeric", "21", "10.00 %"],
        ["seen", "categorical, lists separated by '|'", "5", "20.00 %"],
        ["last", "categorical, last of lists separated by '|', column seen", "4", "20.00 %"],
        ["rare", "categorical", "2", "50.00 %"],
        ["pair", "cross of user and rare, hashed", "11", "25.00 %"],
        [
            "recent",
            "categorical, last 2 of lists separated by '|', ids of last, column seen",
            "4",
            "20.00 %",
        ],
        ["amount", "dense, log, column age", "-", "10.00 %"],
    ]
    assert {split.rows for split in data.manifest.splits.values()} == {rows}


def test_it_writes_and_prints_what_the_command_does(shop, data, tmp_path, capsys):
    out = tmp_path / "data"
    command = (
        f"prepare --files {shop}/log.csv --labels click conversion --group user --time time "
        f"--out {out}"
    ).split()
    assert main([str(each) for each in command]) == 0
    printed = repr(data).replace(str(data.folder), str(out))
    page = f"Values, label rates and drift of each field: {out / PAGE}"
    hints = f"{INFERRED}\n{ASK_FOR_SCHEMA}"
    assert (
        capsys.readouterr().out
        == f"{printed}\n{page}\n{hints}\nadaftr-fast train --data {out} --out RUN\n"
    )
    for name in (
        "schema.json",
        "vocabulary.parquet",
        "train.parquet",
        "validation.parquet",
        "test.parquet",
    ):
        assert (out / name).read_bytes() == (data.folder / name).read_bytes()


def test_the_inferred_schema_can_be_written_and_edited(shop, data, tmp_path):
    written = tmp_path / "mine.toml"
    inferred = af.prepare(shop / "log.csv", tmp_path / "data", **ROLES, write_schema=written)
    assert inferred.manifest == data.manifest
    options = {"out": tmp_path / "data", "dataset": written}
    again = af.prepare(shop / "log.csv", **options).manifest
    assert (again.schema, again.fingerprint, again.splits) == (
        data.manifest.schema,
        data.manifest.fingerprint,
        data.manifest.splits,
    )
    written.write_text(
        written.read_text().replace(
            'price = { kind = "dense", encoding = "piecewise" }',
            'price = { kind = "numeric", buckets = 5 }',
        )
    )
    edited = af.prepare(shop / "log.csv", **options)
    assert edited.fields().rows[-1] == ["price", "numeric", "6", "0.00 %"]


def test_text_is_read_as_lists_where_the_command_says_so(shop, tmp_path, capsys):
    log = tmp_path / "log.csv"
    header, *rows = (shop / "log.csv").read_text().splitlines()
    log.write_text(
        "\n".join([f"{header},tags", *(f"{row},a|b{n % 7}" for n, row in enumerate(rows))])
    )
    command = f"prepare --files {log} --labels click --ignore conversion --out".split()
    assert main([*command, *f"{tmp_path}/data --multi tags=| user=".split()]) == 0
    assert r"| tags        | categorical, lists separated by '\|' |" in capsys.readouterr().out
    options = {"labels": "click", "ignore": "conversion"}
    listed = af.prepare([log], tmp_path / "api", **options, multi={"tags": "|"}).manifest
    assert (listed.num_embeddings[-1], listed.tasks) == (9, ["click"])
    assert main([*command, *f"{tmp_path}/data --multi tags".split()]) == 2
    assert "--multi: expected NAME=SEPARATOR, got 'tags'" in capsys.readouterr().err


def test_rows_that_are_left_out_are_noted(shop, tmp_path):
    log = tmp_path / "<log>.csv"
    log.write_text((shop / "log.csv").read_text() + "1201,u1,3,1,1\n")  # a column is missing
    with pytest.raises(
        DataError, match=r"1 of 1,201 rows cannot be read .*; correct the file, or --bad_rows 0.01 "
    ):
        af.prepare(log, tmp_path / "data", **ROLES)
    data = af.prepare(log, tmp_path / "data", **ROLES, bad_rows=0.01)
    read, note = (
        each for each in repr(data).splitlines() if each.startswith(("Read: ", "Left out: "))
    )
    assert read == "Read: 1,201 lines below the header = 1,200 rows kept + 1 left out"
    assert note.startswith("Left out: 1 of 1,201 rows cannot be read")
    assert f"{log}:1202" in note
    assert f"<p>{html.escape(note)}</p>" in data._repr_html_()


def funnel_log(nested):
    """A log of 400 rows, in which each row with "buy" has "click", or half of them."""
    click = [int(n % 4 == 0) for n in range(400)]
    buy = [int(n % 8 == 0) if nested else int(n % 6 == 0) for n in range(400)]
    return pa.table({"user": [n % 9 for n in range(400)], "click": click, "buy": buy})


def test_how_the_labels_are_taken_is_said(tmp_path):
    def taken(name, **options):
        options |= {"labels": ["click", "buy"]}
        data = af.prepare(funnel_log(name != "apart"), tmp_path / name, **options)
        (note,) = [each for each in data.notes() if each.startswith("Labels: ")]
        return note, data.load("test").funnel

    how = "funnel = ['click', 'buy'] (--funnel click buy) reads them as a funnel"
    independent = f"Labels: click, buy are independent; {how}", ()
    with pytest.warns(UserWarning, match=f"each row with buy also has click: {re.escape(how)}"):
        assert taken("nested") == independent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert taken("apart") == independent
        assert taken("none", funnel=[]) == independent
        note, funnel = taken("declared", funnel=["click", "buy"])
    assert funnel == ("click", "buy")
    assert note.startswith(
        "Labels: click, buy are a funnel, each stage only after the one before; funnel = []"
    )
