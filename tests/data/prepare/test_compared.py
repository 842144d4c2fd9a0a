"""Values of columns that labels compare with text are shown, and those that are nearly such a text
are refused.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.api.prepared import Prepared

CLICKS = [
    *("True", "False", "True", "False", "true ", "False"),
    *("False", "True", "False", "False", "TRUE", "TRUE"),
]


def test_variants_of_a_text_are_shown_and_refused(source, prepared, refused, write, tmp_path):
    """Rows of all splits count: the last two of these are test rows, and a shard has no training
    rows.
    """
    source["labels"]["click"] = [["clicked", "==", "True"]]
    path = write(clicked=CLICKS)
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    of_shards = {"files": ["log.parquet"], "options": {"shards": 3}}
    values = r"'TRUE' \(2 rows\), 'true ' \(1 rows\), 'False' \(6 rows\), 'True' \(3 rows\)"
    spellings = r"\['TRUE', 'True', 'true '\]"
    refused(f"clicked has {values}; 'TRUE', 'true ' differ .*: {spellings}", **of_shards)
    source["labels"]["click"] = [["clicked", "in", ["TRUE", "True", "true "]]]
    compared = prepared(**of_shards).compared
    assert [*compared["clicked"].items()] == [("False", 6), ("True", 3), ("TRUE", 2), ("true ", 1)]
    note = "Compared by labels: clicked: 'False' 6, 'True' 3, 'TRUE' 2, 'true ' 1"
    assert note in Prepared(tmp_path / "out").notes()


def test_many_values_are_shown_in_part(source, prepared, refused, write):
    source["labels"]["click"] = [["page", "in", ["Buy"]]]
    pages = [f"p{number}" for number in range(97)] + ["Buy", "buy", "Buy"]
    path = write()
    table = pa.concat_tables([pq.read_table(path)] * 100).append_column(
        "page", pa.array(pages * 12)
    )
    pq.write_table(table, path)
    refused(r"'buy' \(12 rows\), 'Buy' \(24 rows\).*; 'buy' differ ", files=["log.parquet"])
    source["labels"]["click"] = [["page", "in", ["Buy", "buy"]]]
    (compared,) = prepared(files=["log.parquet"]).compared.values()
    assert len(compared) == 20
    assert list(compared.items())[:3] == [("Buy", 24), ("buy", 12), ("p0", 12)]
