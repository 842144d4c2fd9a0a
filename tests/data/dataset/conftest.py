"""Prepared folders."""

import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.dataset.loader import PreparedData
from tests.data.manifests import recorded


@pytest.fixture
def folder(prepared, tmp_path):
    prepared()
    return tmp_path / "out"


@pytest.fixture
def rewritten(folder):
    """Writes other training rows, or the same in other row groups; returns the folder, opened."""

    def rewritten(table=None, **options):
        path = folder / "train.parquet"
        pq.write_table(pq.read_table(path) if table is None else table, path, **options)
        return PreparedData(recorded(folder))

    return rewritten
