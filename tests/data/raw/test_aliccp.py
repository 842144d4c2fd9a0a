import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw import aliccp
from adaftr_fast.data.raw.staging import staged_rows
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.schema.types import SPLITS
from adaftr_fast.data.synthetic.log import ImpressionLog, LogConfig
from adaftr_fast.data.synthetic.write import write_raw
from adaftr_fast.errors import DataError

FIELDS = ["101", "109_14", "205", "210"]


def blob(*tokens):
    return "\x01".join(f"{field}\x02{feature}\x03{value}" for field, feature, value in tokens)


COMMON = (
    f"u1,4,{blob((101, 7, 1.0), ('109_14', 3, 0.7), (101, 8, 1.0), ('109_14', 5, 2.3))}\nu2,0,\n"
)
SKELETON = (
    f"1,1,0,u1,4,{blob((210, 1, 1.0), (205, 2, 1.0), (999, 4, 1.0), (210, 9, 1.0))}\n"
    f"2,0,1,u2,1,{blob((205, 3, 1.0))}\n"
    f"3,0,0,u3,1,{blob((205, 3, 1.0))}\n"  # no such user
    f"4,0,0,u1,3,{blob((205, 3, 1.0))}\n"  # cut short
    "5,0,0,u1,1,205\x02x\x031.0\n"
    "6,,0,u1,1,205\x021\x031.0\n"
    "7,0,0,u1,1,205\n"
    "8,0,0\n"
    f"9,0,0,u1,2,{blob((205, 6, 1.0), ('109_14', 1, 1.0))}\n"
)


def test_tokens_and_join_by_hand(tmp_path):
    """Two fields are read by all tokens; u1 has some of 109_14 in the skeleton and in the common
    features.
    """
    lists = ["109_14", "210"]
    table, bad_rows = aliccp.parse_common(COMMON.encode(), FIELDS, lists)
    assert (bad_rows.rows, bad_rows.bad) == (2, 0)
    assert table.to_pydict() == {
        "common_feature_index": ["u1", "u2"],
        "101": [8, None],
        "109_14": [[3, 5], []],
        "205": [None, None],
        "210": [[], []],
    }
    pq.write_table(table, tmp_path / "part.parquet")
    common = staged_rows(tmp_path)
    table, bad_rows = aliccp.parse_skeleton(SKELETON.encode(), FIELDS, lists, common=common)
    assert table.to_pydict() == {
        "click": [1, 0, 0],
        "conversion": [0, 1, 0],
        "101": [8, None, 8],
        "109_14": [[3, 5], [], [1]],
        "205": [2, 3, 6],
        "210": [[1, 9], [], []],
    }
    assert (bad_rows.rows, bad_rows.bad) == (9, 6)
    assert bad_rows.reasons == {
        "no common features with this index": 1,
        "feature_num is not the number of tokens": 1,
        "a token is not field, feature and value": 2,
        "click is missing": 1,
        "expected 6 columns, got 3": 1,
    }
    assert bad_rows.examples[0] == "3: no common features with this index: 'u3'"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aliccp") / "raw"
    config = LogConfig(
        rows=2_000, users=80, items=30, list_scale=0.05, rates={"click": 0.3, "conversion": 0.1}
    )
    return config, write_raw(config, folder)


def test_raw_files_round_trip(raw, tmp_path):
    config, files = raw
    source = load_schema("aliccp").source
    manifest = prepare(
        parse_schema(source | {"defaults": {"min_count": 1}}), files, tmp_path / "out"
    )
    assert manifest.bad_rows.bad == 0
    assert manifest.bad_rows.rows > config.rows  # users too
    assert len(manifest.fields) == 23
    test = pq.read_table(tmp_path / "out/test.parquet")
    log = ImpressionLog(config).batch(1_750, 2_000)
    for label in ("click", "conversion"):
        assert test[label].to_pylist() == log[label].to_pylist()
    vocabulary = pq.read_table(tmp_path / "out/vocabulary.parquet").to_pylist()
    value = {(row["field"], row["id"]): row["value"] for row in vocabulary}
    for field in ("101", "121", "205", "508", "150_14"):
        raw_values = [
            str(each[-1] if isinstance(each, list) else each) for each in log[field].to_pylist()
        ]
        known = {row["value"] for row in vocabulary if row["field"] == field}
        expected = [each if each in known else None for each in raw_values]
        assert [value.get((field, number)) for number in test[field].to_pylist()] == expected
    train, validation = (
        set(pq.read_table(tmp_path / f"out/{each}.parquet")["101"].to_pylist())
        for each in SPLITS[:2]
    )
    assert train - {0}
    assert validation == {0}  # split by user: validation users are unknown
    assert sum(manifest.splits[split].rows for split in SPLITS[:2]) == 1_750


def test_a_damaged_file_is_an_error_or_tolerated(raw, tmp_path):
    _, files = raw
    cut = tmp_path / "cut.csv"
    cut.write_bytes(files[0].read_bytes()[:-30])
    given = [cut, *files[1:]]
    with pytest.raises(
        DataError, match=r"1 of .* rows cannot be read .*cut\.csv:1750: feature_num is not"
    ):
        prepare(load_schema("aliccp"), given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = prepare(load_schema("aliccp"), given, tmp_path / "out", bad_rows=0.001)
    assert manifest.bad_rows.bad == 1
    with pytest.raises(
        DataError, match=r"expected 4 file\(s\) \(TRAIN COMMON_TRAIN TEST COMMON_TEST\), got 1"
    ):
        prepare(load_schema("aliccp"), given[:1], tmp_path / "other")


def test_features_of_a_chunked_table_line_up():
    rows = "".join(f"u{n},1,{blob((101, n, 1.0))}\n" for n in range(3_000))
    table, _ = aliccp.parse_common(rows.encode(), ["101"])
    assert np.array_equal(table["101"].to_numpy(), np.arange(3_000))
    assert table["common_feature_index"].type == pa.string()
