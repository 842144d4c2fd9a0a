import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.errors import DataError
from adaftr_fast.training.bayes import bayes_metrics
from adaftr_fast.training.metrics import auc
from tests.data.manifests import recorded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    source = load_schema("synthetic").source
    small = source["generate"] | {"rows": 4_000, "users": 60, "items": 20}
    out = tmp_path_factory.mktemp("data") / "out"
    prepare(parse_schema(source | {"generate": small}), None, out)
    return out


def test_metrics_of_true_probabilities_by_hand(folder):
    table = pq.read_table(folder / "test.parquet")
    metrics = bayes_metrics(folder)
    assert list(metrics) == ["click", "conversion"]
    labels = table["click"].to_numpy()
    truth = table["truth:click"].to_numpy()
    assert metrics["click"]["auc"] == pytest.approx(auc(labels, truth), abs=1e-12)
    expected = -np.mean(labels * np.log(truth) + (1 - labels) * np.log(1 - truth))
    assert metrics["click"]["logloss"] == pytest.approx(expected, rel=1e-9)
    assert 0.6 < metrics["click"]["auc"] < 0.9
    assert bayes_metrics(folder, "train")["conversion"]["gauc"] > 0.5
    assert set(bayes_metrics(folder, "train")["click"]) == {"auc", "gauc", "logloss"}


def test_invalid_input_raises(folder, tmp_path):
    with pytest.raises(DataError, match="no split 'dev'"):
        bayes_metrics(folder, "dev")
    (tmp_path / "schema.json").write_bytes((folder / "schema.json").read_bytes())
    table = pq.read_table(folder / "test.parquet")
    wrong = pa.array(np.full(len(table), 1.5))
    table = table.set_column(table.column_names.index("truth:click"), "truth:click", wrong)
    pq.write_table(table, tmp_path / "test.parquet")
    recorded(tmp_path)
    with pytest.raises(DataError, match=r"column truth:click: expected probabilities in \(0, 1\)"):
        bayes_metrics(tmp_path)
    pq.write_table(
        table.drop_columns(["truth:click", "truth:conversion"]), tmp_path / "test.parquet"
    )
    assert bayes_metrics(recorded(tmp_path)) == {}
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    recorded(tmp_path)
    with pytest.raises(DataError, match=r"test\.parquet: not readable: "):
        bayes_metrics(tmp_path)
