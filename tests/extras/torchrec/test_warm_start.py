"""Warm starts of sharded tables copy the same bits as those of replicas, from whole tables and from
shards.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from adaftr_fast.config import OptimizerConfig, RunConfig, WarmStartConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.distributed import rows as sharded_rows
from adaftr_fast.distributed.ranks import ALONE
from adaftr_fast.errors import CheckpointError
from adaftr_fast.runs.run import train_one
from adaftr_fast.training.checkpoint.weights import load_checkpoint
from tests.distributed.ranks import joined_ranks, on_ranks
from tests.runs.conftest import SOURCE, settings, write_day

pytest.importorskip("torchrec", reason="make test-torchrec installs it")

BY_TABLE, BY_ROW = (
    {"tables": "torchrec", "sharding": sharding} for sharding in ("table_wise", "row_wise")
)
JOBS = {  # ranks -> the run that each starts from, its data, the learning rate and the sharding
    2: {
        "whole, grown": ("whole", "grown", 0.0, BY_TABLE),
        "whole, other order": ("whole", "other", 0.0, BY_ROW),
        "single": ("single", "grown", 0.0, BY_TABLE),
        "mixed": ("mixed", "other", 0.0, BY_ROW),  # a field of another width is not copied
        # so small that rounding in the order of sums does not grow
        "trained": ("shards", "grown", 0.005, BY_ROW),
    },
    4: {
        "shards, grown": ("shards", "grown", 0.0, BY_TABLE),
        "shards, other order": ("shards", "other", 0.0, BY_ROW),
    },
}


def config_of(
    data: str, lr: float, training: dict, warm_start: WarmStartConfig | None = None, **model
) -> RunConfig:
    config = settings(data, **model)
    optimizer = OptimizerConfig(tables="adagrad", lr=lr, tables_lr=lr)
    training = replace(config.training, max_epochs=1, **training)
    return replace(config, optimizer=optimizer, training=training, warm_start=warm_start)


def start(
    folder: Path, data: str, run: str, lr: float, training: dict, out: Path, ranks=ALONE
) -> dict:
    """Starts from a run; returns the weights."""
    source = WarmStartConfig(str(folder / run), task="conversion" if run == "single" else "")
    config = config_of(str(folder / data), lr, training, source)
    train_one(PreparedData(folder / data), config, out, ranks=ranks)
    return load_checkpoint(out / "best")[0]


def trained_by_two(rank: int, folder: str) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    root = Path(folder)
    config = config_of(str(root / "old"), 0.05, BY_ROW)
    train_one(PreparedData(root / "old"), config, root / "shards", ranks=joined_ranks())


def started(rank: int, size: int, folder: str) -> dict:
    """Returns the weights of every job, and the errors of runs that cannot be started from."""
    os.environ["LOCAL_WORLD_SIZE"] = str(size)
    sharded_rows.CHUNK = 64  # numbers, 8 rows, so that every field takes several reads
    root = Path(folder)
    found = {}
    for name, (run, data, lr, training) in JOBS[size].items():
        found[name] = start(root, data, run, lr, training, root / f"{size} {name}", joined_ranks())
        dist.barrier()
    return {"weights": found, "errors": errors(rank, root)}


def errors(rank: int, root: Path) -> list[str]:
    """A run of which nothing fits, and one whose path another rank does not see."""
    messages = []
    os.chdir(root)
    narrow = {"embedding_dim": 4}
    narrow |= {"expert_hidden": [5], "tower_hidden": [5], "relatedness_hidden": [3]}
    if rank == 1:
        os.chdir(root / "grown")
    for run, model in ((root / "whole", narrow), (os.path.relpath(root / "whole", root), {})):
        config = config_of(str(root / "old"), 0.0, BY_ROW, WarmStartConfig(str(run)), **model)
        try:
            train_one(PreparedData(root / "old"), config, root / "refused", ranks=joined_ranks())
        except CheckpointError as error:
            messages.append(str(error))
    return messages


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Prepared data and runs to start from."""
    root = tmp_path_factory.mktemp("warm")
    files = [write_day(root, day) for day in range(2)]
    prepare(parse_schema(SOURCE), files[:1], root / "old")
    prepare(parse_schema(SOURCE), files[1:], root / "grown", grow=root / "old")
    prepare(parse_schema(SOURCE), files[1:], root / "other")
    old = PreparedData(root / "old")
    train_one(old, config_of(str(root / "old"), 0.05, {}), root / "whole")
    train_one(old, config_of(str(root / "old"), 0.05, {}, name="single_dnn"), root / "single")
    train_one(
        old, config_of(str(root / "old"), 0.05, {}, embedding_dims={"user": 16}), root / "mixed"
    )
    on_ranks(trained_by_two, 2, str(root))
    assert len(list((root / "shards/best").glob("weights-[01]-*"))) == 2
    return root


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, dict]:
    """The weights of the same jobs by one process with replicas."""
    return {
        name: start(folder, data, run, lr, {}, folder / f"1 {name}")
        for jobs in JOBS.values()
        for name, (run, data, lr, _) in jobs.items()
    }


@pytest.mark.parametrize("size", JOBS)
def test_warm_starts_copy_the_bits_of_replicas(size, folder, expected):
    for found in on_ranks(started, size, size, str(folder)):
        for name, (_, _, lr, _) in JOBS[size].items():
            exact = {"rtol": 0, "atol": 0} if lr == 0.0 else {"rtol": 1e-3, "atol": 1e-4}
            torch.testing.assert_close(found["weights"][name], expected[name], **exact)
        nothing, unseen = found["errors"]
        assert "nothing fits for a warm start: expected fields item (4)" in nothing
        seen = "rank 1 does not see rank 0's folder at this path: each rank reads the rows that"
        assert f"{seen} it needs" in unseen
