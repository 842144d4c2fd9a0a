import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.dataset.manifest import FORMAT, read_manifest
from adaftr_fast.data.dataset.split_file import GROUP
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.encode.encoders import count_values, encode_field
from adaftr_fast.data.parallel import Shard
from adaftr_fast.data.prepare import run, steps
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.errors import DataError
from tests.data.manifests import recorded


def test_stray_quotes_lose_no_rows(tmp_path):
    """Two values with a quote at their start only stood for all thousand lines between them."""
    users = ['"x' if number in (500, 1500) else f"u{number % 50}" for number in range(2000)]
    lines = [f"{user},{number % 3 // 2}" for number, user in enumerate(users)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["user,click", *lines]) + "\n")
    hashes = {"train": {"stop": 0.8}, "validation": {"start": 0.8, "stop": 0.9}, "test": {"start": 0.9}}
    split = {name: {"hash": bounds} for name, bounds in hashes.items()}
    fields, labels = {"user": "categorical"}, {"click": "click"}
    schema = parse_schema({"name": "quotes", "labels": labels, "split": split, "fields": fields})
    with pytest.raises(DataError, match=r"2 of 2,000 rows .*log\.csv:502: the line ends inside quotes: '\"x,1'"):
        prepare(schema, [log], tmp_path / "out")
    manifest = prepare(schema, [log], tmp_path / "out", bad_rows=0.001)
    assert sum(info.rows for info in manifest.splits.values()) == 1998
    assert (manifest.bad_rows.lines, manifest.bad_rows.rows, manifest.bad_rows.bad) == (2000, 2000, 2)
    assert manifest.bad_rows.account() == "2,000 lines below the header = 1,998 rows kept + 2 left out"


def test_files_do_not_grow_in_number_with_the_fields(source, write, tmp_path, monkeypatch):
    """A file or a row group per field makes wide logs slow."""
    counted, merge = [], run.merge_counted

    def listed(job, *arguments):
        counted.extend(path.name for path in job.work.counts(Shard()).parent.iterdir())
        return merge(job, *arguments)

    monkeypatch.setattr(run, "merge_counted", listed)
    del source["group"]
    prepare(parse_schema(source), [write()], tmp_path / "out")
    assert len(counted) == 1 < len(source["fields"])
    assert pq.read_metadata(tmp_path / "out/vocabulary.parquet").num_row_groups == 1


def test_ids_labels_and_groups_by_hand(source, write, tmp_path):
    manifest = prepare(parse_schema(source), [write()], tmp_path / "out")
    train = pq.read_table(tmp_path / "out/train.parquet").to_pydict()
    assert train["city"] == [1, 2, 1, 0, 3, 1]
    assert train["size"] == [1, 1, 2, 2, 2, 1]
    assert train["rain"] == [1, 1, 1, 2, 0, 2]
    assert train["city_size"] == [1, 3, 2, 0, 4, 1]
    assert train["click"] == [0, 1, 0, 1, 0, 1]
    assert train["late"] == [0, 1, 0, 1, 0, 1]
    assert train[GROUP] == [0, 1, 0, 2, 1, -1]
    assert manifest.num_embeddings == [4, 3, 3, 5]
    assert manifest.tasks == ["click", "late"]
    # Days 7, 9, 11 are the even rows of the rest; z and 9 never occur in training.
    validation = pq.read_table(tmp_path / "out/validation.parquet").to_pydict()
    test = pq.read_table(tmp_path / "out/test.parquet").to_pydict()
    assert (validation["city"], validation["size"]) == ([1, 2, 3], [1, 0, 2])
    assert (test["city"], test["rain"]) == ([0, 0, 1], [2, 2, 2])
    assert validation["rain"] == [1, 0, 1]
    assert (test["click"], test["late"]) == ([1, 1, 1], [1, 1, 1])
    assert manifest.splits["train"].positives == {"click": 3, "late": 3}


def test_even_and_odd_rows_do_not_depend_on_batch_size(source, write, tmp_path, monkeypatch):
    log = write()
    prepare(parse_schema(source), [log], tmp_path / "whole")
    for rows in (1, 2, 3, 5):
        monkeypatch.setattr("adaftr_fast.data.raw.batches.BATCH_ROWS", rows)
        prepare(parse_schema(source), [log], tmp_path / f"by{rows}")
        for split in ("train", "validation", "test"):
            whole, batched = (pq.read_table(tmp_path / name / f"{split}.parquet") for name in ("whole", f"by{rows}"))
            assert whole.equals(batched)


def test_vocabulary_and_manifest_content(source, write, tmp_path):
    prepare(parse_schema(source), [write()], tmp_path / "out")
    vocabulary = pq.read_table(tmp_path / "out/vocabulary.parquet").to_pylist()
    assert vocabulary[0] == {"field": "city", "id": 1, "value": "a", "count": 3}
    assert {"field": "size", "id": 2, "value": "2", "count": 3} in vocabulary
    content = json.loads((tmp_path / "out/schema.json").read_text())
    assert content["fields"][2] == {
        "name": "rain", "kind": "numeric", "columns": ["rain"], "num_embeddings": 3, "edges": [0.0],
        "multiple": False,
    }  # fmt: skip
    assert content["schema"] == source


def test_fingerprint_follows_meaning_not_files(source, write, tmp_path):
    def fingerprint(folder, source=source, **changes):
        return prepare(parse_schema(source), [write(**changes)], tmp_path / folder).fingerprint

    first = fingerprint("a")
    later_day = [*range(1, 12), 40]  # only test rows change
    assert fingerprint("b", day=pa.array(later_day)) == first
    assert fingerprint("c", city=["q", *"baacaazbcca"]) != first
    assert fingerprint("d", source=source | {"defaults": {"buckets": 3}}) != first
    later = source | {"labels": source["labels"] | {"late": [["delay", ">=", 16]]}}
    assert fingerprint("e", source=later) != first


def test_a_split_by_date(source, write, tmp_path):
    (tmp_path / "dated.toml").write_text(
        """
        name = "dated"
        labels = { click = "clicked" }
        fields = { city = "categorical" }
        [split]
        train = { where = [["date", "<=", 2013-01-06]] }
        validation = { where = [["date", "in", [2013-01-07, 2013-01-08]]] }
        test = { where = [["date", ">", 2013-01-08]] }
        """
    )
    dates = pa.array([datetime.date(2013, 1, day) for day in range(1, 13)])
    manifest = prepare(load_schema(str(tmp_path / "dated.toml")), [write(date=dates)], tmp_path / "out")
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 6, "validation": 2, "test": 4}
    where = read_manifest(tmp_path / "out").schema["split"]["train"]["where"]
    assert where == [["date", "<=", "2013-01-06"]]


def test_matching_folder_is_kept_and_another_is_replaced(source, write, tmp_path):
    out = tmp_path / "out"
    first = prepare(parse_schema(source), [write()], out)
    written = (out / "train.parquet").stat().st_mtime_ns
    assert prepare(parse_schema(source), [write()], out) == first
    assert (out / "train.parquet").stat().st_mtime_ns == written
    source["defaults"] = {"buckets": 3}
    assert prepare(parse_schema(source), [write()], out) != first
    assert (out / "train.parquet").stat().st_mtime_ns != written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet", "out"]


def test_folder_with_other_files_is_not_replaced(source, write, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    with pytest.raises(DataError, match=r"is not a prepared folder \(it holds thesis\.txt\)"):
        prepare(parse_schema(source), [write()], out)
    (out / "schema.json").write_text("{}")
    with pytest.raises(DataError, match="no keys 'format' and 'fingerprint'"):
        prepare(parse_schema(source), [write()], out)
    (out / "schema.json").write_text('{"format": 0, "fingerprint": ""}')
    with pytest.raises(DataError, match=r"not replaced, because it also holds thesis\.txt"):
        prepare(parse_schema(source), [write()], out)
    assert sorted(path.name for path in out.iterdir()) == ["schema.json", "thesis.txt"]
    (out / "thesis.txt").unlink()
    prepare(parse_schema(source), [write()], out)  # a folder of an older format is replaced


def test_failure_removes_the_work_folder(source, write, tmp_path):
    log = write(clicked=[0, 1] * 5 + [0, 2])
    with pytest.raises(DataError, match=r"log\.parquet: label click: expected 0 or 1, got 2$"):
        prepare(parse_schema(source), [log], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clicked": [0, None] * 6}, r"log\.parquet: label click: missing in 3 rows"),
        ({"clicked": ["no"] * 12}, "label click: expected 0 or 1, got values of type string"),
        ({"clicked": [0] * 12}, "label click: 0 of 6 training rows are positive"),
        ({"city": None, "user": None}, "no column 'city', 'user', which schema tiny reads; the file has day"),
        ({"rain": ["wet"] * 12}, "field rain: cannot read rain"),
        ({"user": [[1, 2]] * 12}, "group user: expected text or numbers, got values of type list"),
        ({"day": pa.array(range(13, 25))}, "split train has no rows"),
        ({"day": pa.array([1] * 12)}, "split validation has no rows"),
        ({"delay": ["late"] * 12}, "cannot read split train"),
    ],
)
def test_bad_columns_are_named(source, write, tmp_path, changes, message):
    log = write(**changes)
    with pytest.raises(DataError, match=message):
        prepare(parse_schema(source), [log], tmp_path / "out")


def test_groups_that_cannot_be_hashed_are_named(source, write, tmp_path):
    log = write(user=[[1, 2]] * 12)
    del source["group"]
    rows = {"train": {"stop": 0.8}, "validation": {"start": 0.8, "stop": 0.9}, "test": {"start": 0.9}}
    source["split"] = {name: {"hash": {"column": "user"} | bounds} for name, bounds in rows.items()}
    expected = r"log\.parquet: cannot read split train: hash of user: expected text or numbers, got values of type list"
    with pytest.raises(DataError, match=expected):
        prepare(parse_schema(source), [log], tmp_path / "out")


def test_bad_files_are_named(source, write, tmp_path):
    schema = parse_schema(source)
    log = write()
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"log\.parquet: not a readable parquet file"):
        prepare(schema, [log], tmp_path / "out")
    log.write_bytes(whole[:4] + b"\xff" * (len(whole) // 3) + whole[4 + len(whole) // 3 :])
    with pytest.raises(DataError, match=r"log\.parquet: cannot read split train"):
        prepare(schema, [log], tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        prepare(schema, [tmp_path / "absent.parquet"], tmp_path / "out")
    with pytest.raises(DataError, match=r"census: expected 2 file\(s\) \(TRAIN TEST\), got 0"):
        prepare(load_schema("census"), [], tmp_path / "out")


def test_a_damaged_manifest_is_named(source, write, tmp_path):
    out = tmp_path / "out"
    prepare(parse_schema(source), [write()], out)
    content = json.loads((out / "schema.json").read_text())
    train = content["splits"]["train"]
    (out / "schema.json").write_text("{}")
    with pytest.raises(DataError, match="not a manifest"):
        read_manifest(out)
    (out / "schema.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(DataError, match=f"format 99, this version reads {FORMAT}"):
        read_manifest(out)
    for change, message in (
        ({"tasks": 3}, "tasks: expected .*list.*, got 3"),
        ({"tasks": ["click", 3]}, r"tasks\[1\]: expected str, got 3"),
        ({"splits": {"train": {"rows": 1}}}, r"missing key 'splits\.train\.positives'"),
        ({"sha256": {}}, "its sha256 differs from the recorded one"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"splits": {"test": train}}, "splits: expected train, got test"),
        ({"splits": {"train": train | {"unknown": {"city": 0}}}}, r"splits\.train\.unknown: expected counts of city, "),
        (
            {"splits": {"train": train | {"unknown": dict.fromkeys(train["unknown"], 10**400)}}},
            r"splits\.train\.unknown",
        ),
        ({"fields": content["fields"][1:]}, "its fields are not those of its schema"),
        ({"schema": {}}, "the file: missing key 'name'"),
    ):
        (out / "schema.json").write_text(json.dumps(content | change))
        with pytest.raises(DataError, match=rf"schema\.json: damaged: {message}"):
            read_manifest(out)
    prepare(parse_schema(source), [write()], out)  # repairs it
    assert read_manifest(out).tasks == ["click", "late"]
    (out / "schema.json").write_bytes(b'{"dataset": "caf\xe9"}')
    with pytest.raises(DataError, match=r"schema\.json: not a manifest .*utf-8"):
        read_manifest(out)
    with pytest.raises(DataError, match="not a prepared folder"):
        read_manifest(tmp_path)


def test_last_token_of_lists_and_truth_columns(source, write, tmp_path):
    source["fields"] = {"seen": {"kind": "categorical", "tokens": "last"}}
    source["truth"] = {"click": "chance"}
    lists = [[1, 2], [2], [], None, [3, 1], [2, 2]]
    chance = [0.25] * 11 + [0.5]
    log = write(seen=pa.array(lists + lists, pa.list_(pa.int64())), chance=chance)
    prepare(parse_schema(source), [log], tmp_path / "out")
    train = pq.read_table(tmp_path / "out/train.parquet").to_pydict()
    assert train["seen"] == [1, 1, 0, 0, 2, 1]
    assert train["truth:click"] == [0.25] * 6
    assert pq.read_table(tmp_path / "out/test.parquet")["truth:click"].to_pylist() == [0.25, 0.25, 0.5]
    with pytest.raises(
        DataError, match=r"field seen: cannot read seen .* expected a column of lists, or text and a separator"
    ):
        prepare(parse_schema(source), [write(seen=[1] * 12, chance=chance)], tmp_path / "out")
    with pytest.raises(DataError, match="truth click: expected numbers, got values of type string"):
        prepare(parse_schema(source), [write(seen=lists * 2, chance=["x"] * 12)], tmp_path / "out")


def test_a_generated_log_needs_no_file(tmp_path):
    source = load_schema("synthetic").source
    small = source["generate"] | {"rows": 3_000, "users": 50, "items": 20}
    manifest = prepare(parse_schema(source | {"generate": small}), None, tmp_path / "out")
    assert {name: split.rows for name, split in manifest.splits.items()} == {
        "train": 2_400,
        "validation": 300,
        "test": 300,
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "schema.json",
        "test.parquet",
        "train.parquet",
        "validation.parquet",
        "vocabulary.parquet",
    ]


def test_a_folder_of_files_is_one_input(source, write, tmp_path):
    rows = pq.read_table(write())
    (tmp_path / "files").mkdir()
    pq.write_table(rows.slice(0, 5), tmp_path / "files/a.parquet")
    pq.write_table(rows.slice(5), tmp_path / "files/b.parquet")
    whole = prepare(parse_schema(source), [write()], tmp_path / "whole")
    folder = prepare(parse_schema(source), [tmp_path / "files"], tmp_path / "out")
    assert (folder.fingerprint, folder.splits) == (whole.fingerprint, whole.splits)
    pq.write_table(rows.slice(0, 5), tmp_path / "files/part-0")  # read in spite of its name: other inputs
    more = prepare(parse_schema(source), [tmp_path / "files"], tmp_path / "out")
    assert more.splits["train"].rows == whole.splits["train"].rows + 5


def test_flights_splits_by_month(tmp_path):
    manifest = prepare(load_schema("flights"), None, tmp_path / "flights")
    assert {name: split.rows for name, split in manifest.splits.items()} == {
        "train": 244_737,
        "validation": 28_618,
        "test": 53_991,
    }
    assert manifest.splits["test"].positives == {"click": 11_760, "conversion": 7_224}


def test_encoders_are_read_back_as_they_were(source, write, tmp_path):
    source["fields"] = source["fields"] | {"spread": {"column": "city", "kind": "categorical", "hashed": 7}}
    path = write()
    prepare(parse_schema(source), [path], tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    encoders = read_encoders(tmp_path / "out", manifest)
    (rows,) = pq.read_table(path).combine_chunks().to_batches()
    train = pq.read_table(tmp_path / "out/train.parquet")
    for field in parse_schema(source).fields:
        ids = encode_field(field, encoders[field.name], rows)
        assert ids[:6].to_pylist() == train[field.name].to_pylist()
        assert encoders[field.name].num_embeddings == manifest.num_embeddings[list(encoders).index(field.name)]
    vocabulary = tmp_path / "out/vocabulary.parquet"
    pq.write_table(pq.read_table(vocabulary).slice(1), vocabulary)
    with pytest.raises(DataError, match=r"vocabulary\.parquet: field city: expected ids 1 to 3, got 2 "):
        read_encoders(tmp_path / "out", read_manifest(recorded(tmp_path / "out")))
    vocabulary.write_bytes(vocabulary.read_bytes()[:50])
    with pytest.raises(DataError, match=r"vocabulary\.parquet: not readable"):
        read_encoders(tmp_path / "out", read_manifest(recorded(tmp_path / "out")))


def test_grow_keeps_ids(source, write, tmp_path):
    first = prepare(parse_schema(source), [write()], tmp_path / "first")
    later = write("later.parquet", city=["new", "b", "a", None, "c", "new", "a", "z", "b", None, "c", "a"])
    grown = prepare(parse_schema(source), [later], tmp_path / "grown", grow=tmp_path / "first")
    assert grown.num_embeddings[0] == first.num_embeddings[0] + 1
    vocabulary = pq.read_table(tmp_path / "grown/vocabulary.parquet").to_pylist()
    cities = [row["value"] for row in vocabulary if row["field"] == "city"]
    assert cities == ["a", "b", "c", "new"]
    assert grown.fields[2].edges == first.fields[2].edges
    alone = prepare(parse_schema(source), [later], tmp_path / "alone")
    assert alone.inputs != grown.inputs


def test_grow_counts_no_dense_field(source, write, tmp_path, monkeypatch):
    counted = []

    def listed(fields, batches):
        counted.append([field.name for field in fields])
        return count_values(fields, batches)

    monkeypatch.setattr(steps, "count_values", listed)
    source["fields"]["rain"] = "dense"
    first = prepare(parse_schema(source), [write()], tmp_path / "first")
    later = write("later.parquet", rain=[None] * 3 + [7.0] * 9)
    grown = prepare(parse_schema(source), [later], tmp_path / "grown", grow=tmp_path / "first")
    assert counted == [["city", "size", "city_size", "rain"], ["city", "size", "city_size"]]
    assert grown.dense == first.dense


def test_conversions_without_a_click_are_counted(source, write, tmp_path):
    click, conversion = [0, 1, 0, 1, 0, 1] * 2, [1, 1, 0, 0, 1, 0] + [0, 1] * 3
    path = write(clicked=click, delay=None, bought=conversion)
    source["labels"] = {"click": "clicked", "conversion": "bought"}

    def outside(folder):
        return [
            info.outside_funnel for info in prepare(parse_schema(source), [path], tmp_path / folder).splits.values()
        ]

    assert outside("default") == [{"conversion": 2}, {"conversion": 0}, {"conversion": 0}]
    source["funnel"] = ["conversion", "click"]
    assert outside("other") == [{"click": 2}, {"click": 0}, {"click": 0}]
    source["funnel"] = []
    assert outside("none") == [{}, {}, {}]


def test_shards_add_up_rows_outside_the_funnel(source, write, tmp_path):
    source["labels"] = {"click": "clicked", "conversion": "bought"}
    path = write("log.csv", clicked=[0, 1] * 6, delay=None, bought=[1, 1, 1, 0, 1, 0] + [0, 1] * 3)
    table = pq.read_table(path)
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=2)
    schema, files = parse_schema(source), [tmp_path / "log.parquet"]
    last = prepare(schema, files, tmp_path / "sharded", shards=2)
    whole = prepare(schema, files, tmp_path / "whole")
    assert whole.splits["train"].outside_funnel == {"conversion": 3}
    assert {name: info.outside_funnel for name, info in last.splits.items()} == {
        name: info.outside_funnel for name, info in whole.splits.items()
    }


def test_uint64_values_beyond_int64_are_categories(source, write, tmp_path):
    """One value of the column is a hash beyond int64; all of them are texts then, in every batch and shard."""
    big = 2**64 - 1
    columns = {"city": pa.array([big, 2, big, None, 3, 2, 2, 2**63, 3, None, 5, big], pa.uint64())}
    columns["user"] = pa.array([big, 1, big, 2, 1, None, 2**63, big, 1, 2, 1, 1], pa.uint64())
    path = write(**columns)
    pq.write_table(pq.read_table(path), path, row_group_size=1)
    manifest = prepare(parse_schema(source), [path], tmp_path / "out")
    vocabulary = pq.read_table(tmp_path / "out/vocabulary.parquet").to_pylist()
    assert [row["value"] for row in vocabulary if row["field"] == "city"] == [str(big), "2", "3"]
    train = pq.read_table(tmp_path / "out/train.parquet")
    assert train["city"].to_pylist() == [1, 2, 1, 0, 3, 2]
    assert train[GROUP].to_pylist() == [0, 1, 0, 2, 1, -1]
    prepare(parse_schema(source), [path], tmp_path / "sharded", shards=2)
    assert read_manifest(tmp_path / "sharded").fingerprint == manifest.fingerprint
