import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.encode.encoders import Hashed
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.raw.inputs import open_input
from adaftr_fast.data.schema.types import PLAIN_TEXT
from adaftr_fast.errors import DataError


def test_bad_rows_of_text(prepared, refused, tmp_path):
    log = tmp_path / "log.csv"
    header = "day,user,city,size,rain,clicked,delay"
    lines = [f"{day},u,a,{day % 2},{day % 2},{day % 2},{20 * (day % 2)}" for day in range(1, 13)]
    lines[3] = "4,u,a,1,wet,0,3"
    lines[5] = "6,u,a,1,1,,3"
    log.write_text("\n".join([header, *lines]))
    message = r"cannot be read .*log\.csv:5: rain is not of type double: 'wet' .*bad_rows"
    refused(message, files=["log.csv"])
    manifest = prepared(files=["log.csv"], options={"bad_rows": 0.2})
    assert manifest.bad_rows.reasons == {"rain is not of type double": 1, "clicked is missing": 1}
    assert manifest.splits["train"].rows == 4
    assert manifest.bad_rows.account() == "12 lines below the header = 10 rows kept + 2 left out"
    message = r"bad_rows: expected a share in \[0, 1\), got 1.5"
    refused(message, files=["log.csv"], options={"bad_rows": 1.5})
    for text, message in (
        (f"{header}\n1,u,a,1,1,maybe,3", "csv:2: label clicked: expected 0 or 1, got 'maybe'"),
        ("day,day\n1,2\n", "csv:1: expected a header of distinct column names"),
        (header, "split train has no rows"),
        (f"{header}\n", "split train has no rows"),
    ):
        log.write_text(text)
        refused(message, files=["log.csv"])


@pytest.mark.parametrize(
    ("bad", "cure"),
    [
        (1, r"correct the file, or --bad_rows 0.084 "),
        (9, "most rows are bad: check the labels and how the text is written, or --bad_rows 0.75 "),
        (12, "no row is left: check the labels and how the text is written$"),
    ],
)
def test_the_advised_share_of_bad_rows_suffices(refused, tmp_path, bad, cure):
    header = "day,user,city,size,rain,clicked,delay"
    lines = [f"{day},u,a,1,1,{'x' if day <= bad else 1},20" for day in range(1, 13)]
    (tmp_path / "log.csv").write_text("\n".join([header, *lines]))
    refused(cure, files=["log.csv"])


def test_inputs_without_row_groups_are_named(write, refused, tmp_path):
    with pq.ParquetWriter(tmp_path / "none.parquet", pq.read_schema(write())):
        pass
    (tmp_path / "empty").mkdir()
    refused("split train has no rows", files=["none.parquet"])
    refused(r"empty: no column 'city', .*; the file has $", files=["empty"])


def test_hashed_ids_need_no_vocabulary(source, prepared, rows, tmp_path):
    source["fields"]["city"] = {"kind": "categorical", "hashed": 1000}
    prepared()
    train = rows()["city"]
    test = rows("test")["city"]
    assert train[0] == train[2] == train[5] == test[2]
    assert train[3] == 0  # missing
    assert test[0] > 0  # never seen in training, and yet an id
    ids = Hashed(1 << 20).encode(pa.array([5, 17, None])).to_pylist()
    assert ids == Hashed(1 << 20).encode(pa.array(["5", "17", None])).to_pylist()
    digests = [hashlib.blake2b(text, digest_size=8).digest() for text in (b"5", b"17")]
    assert ids == [*(1 + int.from_bytes(each, "little") % (1 << 20) for each in digests), 0]


def test_weights_are_kept_and_checked(source, prepared, refused, tmp_path):
    source["weight"] = "w"
    assert prepared(w=[1, 2, 3] * 4).weight == "w"
    (batch,) = PreparedData(tmp_path / "out").load("train").batches(100)
    assert batch.weight.dtype == torch.float32
    assert batch.weight.tolist() == [1, 2, 3, 1, 2, 3]
    for value, shown in ((-1.0, "-1"), (None, "nan"), (float("inf"), "inf")):
        refused(f"weight w: expected finite numbers >= 0, got {shown}", w=[1.0] * 11 + [value])


def test_a_first_line_that_is_no_header_is_shown_in_part(tmp_path):
    path = tmp_path / "log.csv"
    for content, message in (
        (
            "a,b\r1,2\r",
            r"expected lines that end in LF or CR LF, got a carriage return within 'a,b\\r1,2",
        ),
        (
            "x" * 140_000 + "\n1\n",
            r"expected a header in one line, got 'x{120} \.\.\.': field larger than",
        ),
        (
            'a,"b\nc",d\n1,2,3\n',
            "expected a header in one line, got .*: unexpected end of data",
        ),
        (
            "a," * 70_000 + "\n1\n",
            r"expected a header of distinct column names, got 'a,.{118} \.\.\.'$",
        ),
    ):
        path.write_text(content, newline="")
        with pytest.raises(DataError, match=f"log.csv:1: {message}"):
            open_input(path, PLAIN_TEXT)


def test_errors_name_some_of_many_columns(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(",".join(f"c{number}" for number in range(60)) + "\n")
    with pytest.raises(
        DataError, match=r"no column 'click'; the file has c0, .*, c49 and 10 more$"
    ):
        infer_schema([path], ["click"])
