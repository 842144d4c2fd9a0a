"""Values of columns that labels compare with text are shown, and those that are nearly such a text
are refused.
"""

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.api.prepared import Prepared
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError

CLICKS = [
    "True",
    "False",
    "True",
    "False",
    "true ",
    "False",
    "False",
    "True",
    "False",
    "False",
    "TRUE",
    "TRUE",
]


@pytest.mark.parametrize(("count", "text"), [(1, False), (3, True)])
def test_variants_of_a_text_are_shown_and_refused(source, write, tmp_path, count, text):
    """Rows of all splits count: the last two of these are test rows, and a shard has no training
    rows.
    """
    source["labels"]["click"] = [["clicked", "==", "True"]]
    table = pq.read_table(write(clicked=CLICKS))
    path = tmp_path / "log.parquet"
    pq.write_table(table, path, row_group_size=2)
    if text:
        path = tmp_path / "log.csv"
        pyarrow.csv.write_csv(table, path)
    values = r"'TRUE' \(2 rows\), 'true ' \(1 rows\), 'False' \(6 rows\), 'True' \(3 rows\)"
    spellings = r"\['TRUE', 'True', 'true '\]"
    with pytest.raises(
        DataError, match=f"clicked has {values}; 'TRUE', 'true ' differ .*: {spellings}"
    ):
        prepare(parse_schema(source), [path], tmp_path / "out", shards=count)
    source["labels"]["click"] = [["clicked", "in", ["TRUE", "True", "true "]]]
    manifest = prepare(parse_schema(source), [path], tmp_path / "out", shards=count)
    assert list(manifest.compared["clicked"].items()) == [
        ("False", 6),
        ("True", 3),
        ("TRUE", 2),
        ("true ", 1),
    ]
    assert (
        "Compared by labels: clicked: 'False' 6, 'True' 3, 'TRUE' 2, 'true ' 1"
        in Prepared(tmp_path / "out").notes()
    )


def test_many_values_are_shown_in_part(source, write, tmp_path):
    source["labels"]["click"] = [["page", "in", ["Buy"]]]
    pages = [f"p{number}" for number in range(97)] + ["Buy", "buy", "Buy"]
    table = pq.read_table(write())
    table = pa.concat_tables([table] * 100).append_column("page", pa.array(pages * 12))
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"'buy' \(12 rows\), 'Buy' \(24 rows\).*; 'buy' differ "):
        prepare(parse_schema(source), [tmp_path / "log.parquet"], tmp_path / "out")
    source["labels"]["click"] = [["page", "in", ["Buy", "buy"]]]
    manifest = prepare(parse_schema(source), [tmp_path / "log.parquet"], tmp_path / "out")
    assert len(manifest.compared["page"]) == 20
    assert list(manifest.compared["page"].items())[:3] == [("Buy", 24), ("buy", 12), ("p0", 12)]
