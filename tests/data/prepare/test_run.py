import json

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.dataset.manifest import FORMAT, read_manifest
from adaftr_fast.data.dataset.split_file import GROUP
from adaftr_fast.data.encode.encoders import encode_field
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.data.encode.written import SHOWN_LABELS
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.schema.types import SPLITS
from adaftr_fast.errors import DataError
from tests.data.manifests import recorded
from tests.logs import by_hash

from ..conftest import ROWS


def test_ids_labels_and_groups_by_hand(source, prepared, rows, tmp_path):
    manifest = prepared()
    assert rows() == {
        "city": [1, 2, 1, 0, 3, 1],
        "size": [1, 1, 2, 2, 2, 1],
        "rain": [1, 1, 1, 2, 0, 2],
        "city_size": [1, 3, 2, 0, 4, 1],
        "click": [0, 1, 0, 1, 0, 1],
        "late": [0, 1, 0, 1, 0, 1],
        GROUP: [0, 1, 0, 2, 1, -1],
    }
    assert (manifest.num_embeddings, manifest.tasks) == ([4, 3, 3, 5], ["click", "late"])
    # Days 7, 9, 11 are the even rows of the rest; z and 9 never occur in training.
    validation = rows("validation")
    test = rows("test")
    assert [validation[name] for name in ("city", "size", "rain")] == [
        [1, 2, 3],
        [1, 0, 2],
        [1, 0, 1],
    ]
    assert [test[name] for name in ("city", "rain", "click", "late")] == [
        [0, 0, 1],
        [2, 2, 2],
        [1, 1, 1],
        [1, 1, 1],
    ]
    assert manifest.splits["train"].positives == {"click": 3, "late": 3}
    assert manifest.compared == {}
    # one a field makes wide logs slow
    assert pq.read_metadata(tmp_path / "out/vocabulary.parquet").num_row_groups == 1
    vocabulary = pq.read_table(tmp_path / "out/vocabulary.parquet").to_pylist()
    assert vocabulary[0] == {"field": "city", "id": 1, "value": "a", "count": 3}
    content = json.loads((tmp_path / "out/schema.json").read_text())
    assert content["fields"][2] == {
        "name": "rain", "kind": "numeric", "columns": ["rain"], "num_embeddings": 3, "edges": [0.0],
        "multiple": False,
    }  # fmt: skip
    assert content["schema"] == source


def test_even_and_odd_rows_do_not_depend_on_batch_size(prepared, rows, monkeypatch):
    prepared("whole")
    monkeypatch.setattr("adaftr_fast.data.raw.batches.BATCH_ROWS", 5)
    prepared()
    assert all(rows(split) == rows(split, "whole") for split in SPLITS)


def test_fingerprint_follows_meaning_not_files(source, prepared):
    first = prepared("a").fingerprint
    # only test rows change
    assert prepared("b", day=pa.array([*range(1, 12), 40])).fingerprint == first
    assert prepared("c", city=["q", *"baacaazbcca"]).fingerprint != first
    source["labels"]["late"] = [["delay", ">=", 16]]
    assert prepared("d").fingerprint != first


def test_conditions_on_dates_text_and_truth_values_of_text_files(tmp_path):
    """The schema tells the types of a text file."""
    (tmp_path / "dated.toml").write_text(
        """
        name = "dated"
        labels = { click = "clicked", member = [["flag", "==", true], ["grade", "in", ["a", "b"]]] }
        fields = { city = "categorical" }
        [split]
        train = { where = [["date", "<=", 2013-01-06]] }
        validation = { where = [["date", "in", [2013-01-07, 2013-01-08]]] }
        test = { where = [["date", ">", 2013-01-08]] }
        """
    )
    lines = ["date,flag,grade,clicked,city"]
    for day in range(1, 13):
        flag = "true" if day % 2 == 0 else "false"
        lines.append(f"2013-01-{day:02d},{flag},{'abc'[day % 3]},{day % 2},x")
    (tmp_path / "log.csv").write_text("\n".join(lines))
    schema = load_schema(str(tmp_path / "dated.toml"))
    manifest = prepare(schema, [tmp_path / "log.csv"], tmp_path / "out")
    assert [split.rows for split in manifest.splits.values()] == [6, 2, 4]
    assert manifest.splits["train"].positives == {"click": 3, "member": 2}  # days 4 and 6
    train = read_manifest(tmp_path / "out").schema["split"]["train"]
    assert train["where"] == [["date", "<=", "2013-01-06"]]


def test_folder_with_other_files_is_not_replaced(prepared, refused, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    refused(r"is not a prepared folder \(it holds thesis\.txt\)")
    (out / "schema.json").write_text("{}")
    refused("no keys 'format' and 'fingerprint'")
    (out / "schema.json").write_text('{"format": 0, "fingerprint": ""}')
    refused(r"not replaced, because it also holds thesis\.txt")
    assert sorted(path.name for path in out.iterdir()) == ["schema.json", "thesis.txt"]
    (out / "thesis.txt").unlink()
    prepared()  # a folder of an older format is replaced


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"clicked": [0, None] * 6},
            r"6 of 12 rows .*; first: \S+/log\.parquet: row 1: clicked is missing \| ",
        ),
        (
            {"clicked": [0, 1] * 5 + [0, 2]},
            r"log\.parquet: row 11: label click: expected 0 or 1, got '2';",
        ),
        ({"clicked": [[0]] * 12}, "label click: expected 0 or 1, got values of type list<"),
        ({"clicked": [0] * 12}, "label click: 0 of 6 training rows are positive"),
        (
            {"city": None, "user": None},
            "no column 'city', 'user', which schema tiny reads; the file has day",
        ),
        ({"rain": ["wet"] * 12}, "field rain: cannot read rain"),
        ({"user": [[1, 2]] * 12}, "group user: expected text or numbers, got values of type list"),
        ({"day": pa.array(range(13, 25))}, "split train has no rows"),
        ({"day": pa.array([1] * 12)}, "split validation has no rows"),
        ({"delay": ["late"] * 12}, "cannot read split train"),
    ],
)
def test_bad_columns_are_named(refused, tmp_path, changes, message):
    refused(message, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_bad_rows_of_tables_have_their_number_in_the_file(source, write, prepared, tmp_path):
    """Rows that are dropped count; of text, whose bad rows have lines, rows without a condition
    have none.
    """
    source["drop"] = [["day", "==", 1]]
    (tmp_path / "log").mkdir()
    sizes = list("112221119222")
    write("log/1.parquet", size=sizes, delay=[None] * 2 + [3, None] + ROWS["delay"][4:])
    again = write(size=sizes, clicked=[7, 1] * 4 + [0, None, 2, 1], delay=[0] * 10 + [None] * 2)
    pq.write_table(pq.read_table(again), tmp_path / "log/2.parquet", row_group_size=3)
    text = write(delay=[None, None, *ROWS["delay"][2:]])
    csv.write_csv(pq.read_table(text), tmp_path / "log.csv")
    options = {"shards": 2, "bad_rows": 0.9}
    found = prepared(files=["log", "log.csv"], options=options).bad_rows
    no_click = "label click: expected 0 or 1, got"
    assert found.examples == [
        f"{tmp_path / 'log/1.parquet'}: row 1: label late is missing",
        f"{tmp_path / 'log/1.parquet'}: row 3: label late is missing",
        *(f"{tmp_path / 'log/2.parquet'}: row {row}: {no_click} '7'" for row in (2, 4, 6)),
    ]
    assert (found.rows, found.bad) == (36, 9)
    found = prepared("text", files=["log.csv"], options=options).bad_rows
    assert found.examples == [f"{tmp_path / 'log.csv'}: label late is missing"]


def test_values_of_a_label_are_named_beside_missing_ones(prepared):
    table = pa.concat_tables([pa.table(ROWS)] * 2).to_pydict()
    values = [f"v{number}" for number in range(SHOWN_LABELS + 1)]
    labels = [None, *values, *"01" * 6]
    reasons = prepared(**table | {"clicked": labels}, options={"bad_rows": 0.9}).bad_rows.reasons
    named = [repr(value) for value in values[:-1]] + ["other text"]
    assert list(reasons) == [
        "clicked is missing",
        *(f"label click: expected 0 or 1, got {each}" for each in named),
    ]


def test_an_empty_name_of_the_group_or_the_weight_is_none(source, prepared):
    source |= {"group": "", "weight": ""}
    manifest = prepared(options={"shards": 2})
    assert manifest.splits["train"].rows == 6
    assert (manifest.group, manifest.weight) == (None, None)


def test_columns_with_the_names_of_a_split_and_a_label(source, prepared, rows):
    source["group"] = "split:train"
    source["fields"]["label:click"] = "categorical"
    prepared(**{"split:train": ROWS["user"], "label:click": ROWS["city"]})
    assert (rows()[GROUP], rows()["label:click"]) == ([0, 1, 0, 2, 1, -1], rows()["city"])


def test_a_label_that_compares_several_types(source, refused):
    source["labels"]["late"] = [["kind", "in", ["a", 1]]]
    refused(r"log\.parquet: cannot read split", kind=ROWS["city"])


def test_groups_that_cannot_be_hashed_are_named(source, refused):
    del source["group"]
    source["split"] = by_hash(0.8, 0.9, column="user")
    unread = (
        "cannot read split train, validation, test: hash of user: expected text or numbers, got"
    )
    refused(rf"log\.parquet: {unread}", user=[[1, 2]] * 12)


def test_bad_files_are_named(write, refused, tmp_path):
    log = write()
    whole = log.read_bytes()
    third = len(whole) // 3
    for content, message in (
        (whole[:-20], "not a readable parquet file"),
        (whole[:4] + b"\xff" * third + whole[4 + third :], "cannot read split train"),
    ):
        log.write_bytes(content)
        refused(rf"log\.parquet: {message}", files=["log.parquet"])
    refused("no such file", files=["absent.parquet"])


def test_a_damaged_manifest_is_named(prepared, tmp_path):
    prepared()
    path = tmp_path / "out/schema.json"
    content = json.loads(path.read_text())
    train = content["splits"]["train"]
    for change, message in (
        ({"format": 99}, f"format 99, this version reads {FORMAT}"),
        ({"tasks": ["click", 3]}, r"damaged: tasks\[1\]: expected text, got 3"),
        ({"splits": {"train": {"rows": 1}}}, r"damaged: missing key 'splits\.train\.positives'"),
        ({"sha256": {}}, "damaged: its sha256 differs from the recorded one"),
        ({"colour": "red"}, "damaged: unknown key 'colour'"),
        ({"splits": {"test": train}}, "damaged: splits: expected train, got test"),
        (
            {"splits": {"train": train | {"unknown": {"city": 0}}}},
            r"damaged: splits\.train\.unknown: expected counts",
        ),
        ({"fields": content["fields"][1:]}, "damaged: its fields are not those of its schema"),
        ({"schema": {}}, "damaged: the file: missing key 'name'"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(DataError, match=message):
            read_manifest(tmp_path / "out")
    prepared()  # repairs it
    assert read_manifest(tmp_path / "out").tasks == ["click", "late"]
    for text, message in (
        (b'{"dataset": "caf\xe9"}', ".*utf-8"),
        (b"[" * 100_000, "of a prepared folder: nested too deeply"),
        (b"{}", ""),
    ):
        path.write_bytes(text)
        with pytest.raises(DataError, match=rf"schema\.json: not a manifest {message}"):
            read_manifest(tmp_path / "out")
    with pytest.raises(DataError, match="not a prepared folder"):
        read_manifest(tmp_path)


def test_last_token_of_lists_and_truth_columns(source, prepared, refused, rows):
    text = {"kind": "categorical", "tokens": "last", "separator": "|"}
    source["fields"] = {"seen": {"kind": "categorical", "tokens": "last"}, "text": text}
    source["truth"] = {"click": "chance"}
    columns = {
        "seen": pa.array([[1, 2], [2], [], None, [3, 1], [2, 2]] * 2, pa.list_(pa.int64())),
        "text": ["a|b", "b", None, "b|c", "c", "a"] * 2,
        "chance": [0.25] * 11 + [0.5],
    }
    prepared(**columns)
    assert [rows()[name] for name in ("seen", "text")] == [[1, 1, 0, 0, 2, 1], [1, 1, 0, 2, 2, 3]]
    assert rows("test")["truth:click"] == [0.25, 0.25, 0.5]
    message = r"field seen: cannot read seen .* expected a column of lists, or text and a separator"
    refused(message, **columns | {"seen": [1] * 12})
    refused(
        "truth click: expected numbers, got values of type string",
        **columns | {"chance": ["x"] * 12},
    )


def test_a_folder_of_files_is_one_input(write, prepared, tmp_path):
    table = pq.read_table(write())
    (tmp_path / "files").mkdir()
    pq.write_table(table.slice(0, 5), tmp_path / "files/a.parquet")
    pq.write_table(table.slice(5), tmp_path / "files/b.parquet")
    whole = prepared("whole")
    folder = prepared(files=["files"])
    assert (folder.fingerprint, folder.splits) == (whole.fingerprint, whole.splits)
    # read in spite of its name: other inputs
    pq.write_table(table.slice(0, 5), tmp_path / "files/part-0")
    assert prepared(files=["files"]).splits["train"].rows == whole.splits["train"].rows + 5


def test_flights_splits_by_month(tmp_path):
    manifest = prepare(load_schema("flights"), None, tmp_path / "flights")
    assert [split.rows for split in manifest.splits.values()] == [244_737, 28_618, 53_991]
    assert manifest.splits["test"].positives == {"click": 11_760, "conversion": 7_224}
    # a run refuses data of another fingerprint, even if it is prepared again from the same files
    expected = "beb47fa9318d1a25b73e201c70e50d1d8a32f66d94d6596850e56e89494aa812"
    assert manifest.fingerprint == expected


def test_encoders_are_read_back_as_they_were(source, write, prepared, rows, tmp_path):
    source["fields"]["spread"] = {"column": "city", "kind": "categorical", "hashed": 7}
    manifest = prepared()
    encoders = read_encoders(tmp_path / "out", read_manifest(tmp_path / "out"))
    (raw,) = pq.read_table(write()).combine_chunks().to_batches()
    for field, size in zip(parse_schema(source).fields, manifest.num_embeddings):
        assert encode_field(field, encoders[field.name], raw)[:6].to_pylist() == rows()[field.name]
        assert encoders[field.name].num_embeddings == size
    vocabulary = tmp_path / "out/vocabulary.parquet"
    pq.write_table(pq.read_table(vocabulary).slice(1), vocabulary)
    with pytest.raises(
        DataError, match=r"vocabulary\.parquet: field city: expected ids 1 to 3, got 2 "
    ):
        read_encoders(tmp_path / "out", read_manifest(recorded(tmp_path / "out")))
    vocabulary.write_bytes(vocabulary.read_bytes()[:50])
    with pytest.raises(DataError, match=r"vocabulary\.parquet: not readable"):
        read_encoders(tmp_path / "out", read_manifest(recorded(tmp_path / "out")))


def test_grow_keeps_ids(source, prepared, tmp_path):
    source["fields"]["wind"] = {"kind": "dense", "column": "rain"}
    first = prepared("first")
    later = {"rain": [None] * 3 + [7.0] * 9, "city": ["new", "b", "a", None, "c", "new", *"azbcca"]}
    grown = prepared(options={"grow": tmp_path / "first"}, **later)
    assert grown.num_embeddings[0] == first.num_embeddings[0] + 1
    vocabulary = pq.read_table(tmp_path / "out/vocabulary.parquet").to_pylist()
    assert [row["value"] for row in vocabulary if row["field"] == "city"] == ["a", "b", "c", "new"]
    assert (grown.fields[2].edges, grown.dense) == (first.fields[2].edges, first.dense)
    assert prepared("alone", **later).inputs != grown.inputs


def test_conversions_without_a_click_are_counted(source, prepared):
    source["labels"] = {"click": "clicked", "conversion": "bought"}
    bought = [1, 1, 0, 0, 1, 0] + [0, 1] * 3
    columns = {"clicked": [0, 1] * 6, "bought": bought, "delay": None}
    for funnel, counts in (
        (None, [{"conversion": 2}, {"conversion": 0}, {"conversion": 0}]),
        (["conversion", "click"], [{"click": 2}, {"click": 0}, {"click": 0}]),
        ([], [{}, {}, {}]),
    ):
        if funnel is not None:
            source["funnel"] = funnel
        splits = prepared(**columns).splits
        assert [info.outside_funnel for info in splits.values()] == counts


def test_uint64_values_beyond_int64_are_categories(write, prepared, rows, tmp_path):
    """One value of the column is a hash beyond int64; all of them are texts then, in every batch
    and shard.
    """
    big = 2**64 - 1
    values = pa.array([big, 2, big, None, 3, 2, 2, 2**63, 3, None, 5, big], pa.uint64())
    pq.write_table(
        pq.read_table(write(city=values, user=values)), tmp_path / "log.parquet", row_group_size=1
    )
    manifest = prepared(files=["log.parquet"])
    vocabulary = pq.read_table(tmp_path / "out/vocabulary.parquet").to_pylist()
    assert [row["value"] for row in vocabulary if row["field"] == "city"] == [str(big), "2", "3"]
    assert [rows()[name] for name in ("city", GROUP)] == [[1, 2, 1, 0, 3, 2], [0, 1, 0, -1, 2, 1]]
    assert prepared("sharded", ["log.parquet"], {"shards": 2}).fingerprint == manifest.fingerprint
