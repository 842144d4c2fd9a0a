"""Ranks open a prepared folder together."""

import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import torch.distributed as dist

from adaftr_fast.data.dataset import manifest
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.distributed.ranks import JoinedRanks
from adaftr_fast.errors import DataError
from adaftr_fast.runs.run import open_split
from tests.distributed.ranks import on_ranks
from tests.distributed.test_torchrun import data  # noqa: F401  # a fixture


def opened(rank: int, folder: str) -> list[str]:
    """Opens two splits; returns the files of which this rank has compared the sha256, and its
    error.
    """
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    compared = []
    sha256 = manifest.sha256
    manifest.sha256 = lambda path: compared.append(path.name) or sha256(path)
    try:
        for name in ("train", "test"):
            open_split(PreparedData(folder), name, JoinedRanks(dist.HashStore(), 60))
    except DataError as error:
        compared.append(str(error))
    return compared


def test_one_rank_of_a_machine_compares_a_file_and_all_raise_its_error(data, tmp_path):  # noqa: F811
    assert on_ranks(opened, 2, str(data)) == [["train.parquet", "test.parquet"], []]
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    path = damaged / "test.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.arange(len(table))[::-1]), path)
    one, other = on_ranks(opened, 2, str(damaged))
    assert one == ["train.parquet", "test.parquet", *other]
    assert other == [
        f"{path}: damaged: its sha256 differs from the one in schema.json; prepare again"
    ]
