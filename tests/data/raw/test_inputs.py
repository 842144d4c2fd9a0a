import datetime
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.encode.encoders import Hashed
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.raw.inputs import column_types, read_header
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError

SPLITS = ("train", "validation", "test")


def same_splits(one, other):
    return all(pq.read_table(one / f"{s}.parquet").equals(pq.read_table(other / f"{s}.parquet")) for s in SPLITS)


@pytest.fixture
def table(write):
    return pq.read_table(write())


@pytest.mark.parametrize(("name", "delimiter"), [("log.csv", ","), ("log.tsv", "\t"), ("log.csv.gz", ";")])
def test_text_equals_parquet(source, table, write, tmp_path, name, delimiter):
    with pa.output_stream(tmp_path / name) as stream:
        csv.write_csv(table, stream, csv.WriteOptions(delimiter=delimiter))
    prepare(parse_schema(source), [write()], tmp_path / "parquet")
    manifest = prepare(parse_schema(source), [tmp_path / name], tmp_path / "text")
    assert same_splits(tmp_path / "parquet", tmp_path / "text")
    assert (manifest.bad_rows.rows, manifest.bad_rows.bad) == (12, 0)


def test_types_of_text_follow_from_the_schema(source):
    source["weight"] = "w"
    source["labels"]["old"] = [["date", ">", datetime.date(2013, 1, 1)], ["name", "in", ["a", "b"]]]
    source["labels"]["many"] = [["amount", ">", 1.5], ["flag", "==", True]]
    source["drop"] = [["size", ">", 3]]
    types = column_types(parse_schema(source))
    assert types == {
        "city": pa.string(),
        "size": pa.int64(),  # a categorical field, so whole numbers
        "rain": pa.float64(),
        "clicked": pa.float64(),
        "delay": pa.float64(),
        "day": pa.float64(),
        "user": pa.string(),
        "w": pa.float64(),
        "date": pa.date32(),
        "name": pa.string(),
        "amount": pa.float64(),
        "flag": pa.bool_(),
    }


def test_bad_rows_of_text(source, tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"{day},u,a,{day % 2},{day % 2},{day % 2},{20 * (day % 2)}" for day in range(1, 13)]
    rows[3] = "4,u,a,1,wet,0,3"
    rows[5] = "6,u,a,1,1,,3"
    log.write_text("\n".join(["day,user,city,size,rain,clicked,delay", *rows]))
    with pytest.raises(
        DataError, match=r"rows cannot be read .*log\.csv:5: rain is not of type double: 'wet' .*bad_rows"
    ):
        prepare(parse_schema(source), [log], tmp_path / "out")
    manifest = prepare(parse_schema(source), [log], tmp_path / "out", bad_rows=0.2)
    assert manifest.bad_rows.reasons == {"rain is not of type double": 1, "clicked is missing": 1}
    assert manifest.splits["train"].rows == 4
    with pytest.raises(DataError, match=r"bad_rows: expected a share in \[0, 1\), got 1.5"):
        prepare(parse_schema(source), [log], tmp_path / "out", bad_rows=1.5)
    log.write_text("\n".join(["day,user,city,size,rain,clicked,delay", *rows[:3], "4,u,a,1,1,yes,3"]))
    with pytest.raises(DataError, match=r"log\.csv:5: label clicked: expected 0 or 1, got text: 'yes'"):
        prepare(parse_schema(source), [log], tmp_path / "out")
    log.write_text("\n".join(["day,user,city,size,rain,clicked,delay", *rows[:3], "4,u,a,1,1,2,3"]))
    with pytest.raises(DataError, match=r"log\.csv: label click: expected 0 or 1, got 2$"):
        prepare(parse_schema(source), [log], tmp_path / "out")
    log.write_text("day,day\n1,2\n")
    with pytest.raises(DataError, match=r"log\.csv:1: expected a header of distinct column names"):
        prepare(parse_schema(source), [log], tmp_path / "out")
    log.write_text("day,user\n1,2\n")
    with pytest.raises(DataError, match=r"log\.csv: no column 'city', .* the file has day, user"):
        prepare(parse_schema(source), [log], tmp_path / "out")


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_header_alone_has_no_rows(source, table, tmp_path, end):
    (tmp_path / "log.csv").write_text(",".join(table.column_names) + end)
    with pytest.raises(DataError, match="split train has no rows"):
        prepare(parse_schema(source), [tmp_path / "log.csv"], tmp_path / "out")


def test_tokens_of_a_text(source, write, tmp_path):
    source["fields"] = {"seen": {"kind": "categorical", "tokens": "last", "separator": "|"}}
    log = write(seen=["a|b", "b", None, "b|c", "c", "a"] * 2)
    manifest = prepare(parse_schema(source), [log], tmp_path / "out")
    assert pq.read_table(tmp_path / "out/train.parquet")["seen"].to_pylist() == [1, 1, 0, 2, 2, 3]
    assert manifest.num_embeddings == [4]


def test_hashed_ids_need_no_vocabulary(source, write, tmp_path):
    source["fields"]["city"] = {"kind": "categorical", "hashed": 1000}
    prepare(parse_schema(source), [write()], tmp_path / "out")
    train, test = (pq.read_table(tmp_path / f"out/{split}.parquet")["city"].to_pylist() for split in ("train", "test"))
    assert train[0] == train[2] == train[5] == test[2]
    assert train[3] == 0  # missing
    assert test[0] > 0  # never seen in training, and yet an id
    assert "city" not in pq.read_table(tmp_path / "out/vocabulary.parquet")["field"].to_pylist()
    ids = Hashed(1 << 20).encode(pa.array([5, 17, None])).to_pylist()
    assert ids == Hashed(1 << 20).encode(pa.array(["5", "17", None])).to_pylist()
    digests = [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") for text in (b"5", b"17")]
    assert ids == [*(1 + digest % (1 << 20) for digest in digests), 0]
    with pytest.raises(DataError, match=r"rain\.hashed: expected a categorical or cross field, got a numeric one"):
        parse_schema(source | {"fields": {"rain": {"kind": "numeric", "hashed": 5}}})
    with pytest.raises(DataError, match="hashed: expected an integer >= 1, got 0"):
        parse_schema(source | {"fields": {"rain": {"kind": "categorical", "hashed": 0}}})


def test_split_by_hash(source, write, tmp_path):
    rows = 3_000
    random = np.random.default_rng(0)
    user = [None if number == 0 else f"u{number}" for number in random.integers(0, 300, rows)]
    columns = {"day": [1] * rows, "city": ["a"] * rows, "size": [1] * rows, "rain": [0.0] * rows,
               "clicked": [0, 1] * (rows // 2), "delay": [0, 99] * (rows // 2), "user": user}  # fmt: skip
    log = write(**columns)
    ranges = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
    for column in ("user", None):
        where = {} if column is None else {"column": column}
        split = {name: {"hash": where | {"start": start, "stop": stop}} for name, (start, stop) in ranges.items()}
        manifest = prepare(parse_schema(source | {"split": split}), [log], tmp_path / f"by_{column}")
        shares = [manifest.splits[name].rows / rows for name in SPLITS]
        assert sum(shares) == 1
        np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.05)
    for wrong, message in (({"start": 0.5, "stop": 0.5}, "expected 0 <= start < stop <= 1, got 0.5 and 0.5"),
                           ({"from": 1}, "unknown key 'from'")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            parse_schema(source | {"split": source["split"] | {"train": {"hash": wrong}}})


def test_weights_are_kept_and_checked(source, write, tmp_path):
    source["weight"] = "w"
    manifest = prepare(parse_schema(source), [write(w=[1, 2, 3] * 4)], tmp_path / "out")
    assert manifest.weight == "w"
    assert pq.read_table(tmp_path / "out/train.parquet")["weight:value"].to_pylist() == [1, 2, 3, 1, 2, 3]
    for value, shown in ((-1.0, "-1"), (None, "nan"), (float("inf"), "inf")):
        with pytest.raises(DataError, match=f"weight w: expected finite numbers >= 0, got {shown}"):
            prepare(parse_schema(source), [write(w=[1.0] * 11 + [value])], tmp_path / "out")
    with pytest.raises(DataError, match="field rain reads 'rain', a truth or weight column"):
        parse_schema(source | {"weight": "rain"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\r1,2\r", r"log.csv:1: expected lines that end in LF or CR LF, got a carriage return within 'a,b\\r1,2"),
        ("x" * 140_000 + "\n1\n", r"log.csv:1: expected a header in one line, got 'x{120} \.\.\.': field larger than"),
        ('a,"b\nc",d\n1,2,3\n', "log.csv:1: expected a header in one line, got .*: unexpected end of data"),
        ("a," * 70_000 + "\n1\n", r"log.csv:1: expected a header of distinct column names, got 'a,.{118} \.\.\.'$"),
    ],
)
def test_a_first_line_that_is_no_header_is_shown_in_part(tmp_path, content, message):
    path = tmp_path / "log.csv"
    path.write_text(content, newline="")
    with pytest.raises(DataError, match=message):
        read_header(path)


def test_errors_name_some_of_many_columns(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(",".join(f"c{number}" for number in range(10_000)) + "\n")
    with pytest.raises(DataError, match=r"no column 'click'; the file has c0, .*, c49 and 9,950 more$"):
        infer_schema(path, ["click"])
