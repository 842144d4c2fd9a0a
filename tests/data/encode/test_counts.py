import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.data.encode import counts
from adaftr_fast.data.encode.counts import ValueCounts


def test_read_merges_one_file_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "COMPACT_ROWS", 10_000)
    values = pa.array(range(20_000))
    paths = [tmp_path / f"{number}.parquet" for number in range(12)]
    for path in paths:
        counts_of_shard = ValueCounts(pa.int64())
        counts_of_shard.update(values)
        counts_of_shard.write(path)
    table, held, read = counts_of_shard.table(), [], pq.ParquetFile.read

    def measured(file):
        held.append(pa.total_allocated_bytes())
        return read(file)

    monkeypatch.setattr(pq.ParquetFile, "read", measured)
    merged = ValueCounts.read(paths).table()
    assert merged["value"].equals(table["value"])
    assert set(merged["count"].to_pylist()) == {12}
    assert max(held) - held[0] < 3 * table.nbytes
