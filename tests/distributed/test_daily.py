"""``daily`` and ``demo`` by several ranks: equality with one process, and killed and
failed ranks.
"""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.config import RunConfig
from adaftr_fast.data.raw.source import SHIPPED
from adaftr_fast.data.schema.parse import parse_schema, write_schema
from adaftr_fast.distributed.ranks import ALONE
from adaftr_fast.runs.daily import RECORDS, train_daily
from adaftr_fast.serving.scorer import load_scorer
from adaftr_fast.training.checkpoint.weights import load_checkpoint
from tests.distributed.ranks import joined_ranks, on_ranks
from tests.distributed.test_torchrun import (
    FORKS,
    RESTARTS,
    children,
    command_by_hand,
    torchrun,
    wait_for,
)
from tests.logs import read_records
from tests.runs.conftest import SOURCE, settings, write_day
from tests.tolerances import assert_same_bits

DAYS = 3
OPTIONS = {
    "model.expert_hidden": "[8]", "model.tower_hidden": "[16,16]", "model.relatedness_hidden": "[4]",
    "optimizer.lr": 0.01, "training.batch_size": 64, "training.max_epochs": 2, "training.progress": "false",
}  # fmt: skip
"""Those of ``settings``."""


def config_of(optimizer: dict, training: dict) -> RunConfig:
    config = settings()
    return replace(
        config,
        optimizer=replace(config.optimizer, **optimizer),
        training=replace(config.training, **training),
    )


def daily(
    folder: Path, out: str, optimizer: dict, training: dict, ranks=ALONE, days: int = DAYS
) -> None:
    files = [folder / f"day{day}.parquet" for day in range(days)]
    config = config_of(optimizer, training)
    list(train_daily(parse_schema(SOURCE), files, config, folder / out, ranks))


def daily_by_rank(
    rank: int, size: int, folder: str, jobs: dict[str, tuple[dict, dict]], days: int = DAYS
) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(size)
    for out, (optimizer, training) in jobs.items():
        daily(Path(folder), out, optimizer, training, joined_ranks(), days)


def flags(**options) -> list[str]:
    given = OPTIONS | {name.replace("__", "."): value for name, value in options.items()}
    words = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return ["--preset", "paper", *words]


def command(folder: Path, out: Path, *files: Path, **options) -> list[str]:
    """Returns the arguments of ``daily``."""
    days = files or [folder / f"day{day}.parquet" for day in range(DAYS)]
    place = f"daily --dataset {folder}/shop.toml --out {out} --files".split()
    return [*place, *map(str, days), *flags(**options)]


def assert_same_days(found: Path, expected: Path) -> None:
    """Asserts equal records and weights, up to the order of float additions."""
    ours = read_records(found / RECORDS)
    theirs = read_records(expected / RECORDS)
    assert len(ours) == len(theirs) == DAYS
    for day, (mine, other) in enumerate(zip(ours, theirs), start=1):
        for part in ("before_training", "validation"):
            for task, values in (other[part] or {}).items():
                assert mine[part][task] == pytest.approx(values, rel=1e-3), (day, part, task)
        assert all(mine[name] == other[name] for name in ("day", "rows", "ids"))
        weights, of_other = (
            load_checkpoint(out / f"day-{day:04d}/run/best")[0] for out in (found, expected)
        )
        assert weights.keys() == of_other.keys()
        for name, value in of_other.items():
            torch.testing.assert_close(
                weights[name], value, rtol=1e-3, atol=1e-4, msg=f"day {day}: {name}"
            )


def write_days(folder: Path, rows: int = 400) -> Path:
    for day in range(DAYS):
        write_day(folder, day, rows)
    write_schema(folder / "shop.toml", SOURCE, "")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three days' files and the schema, and ``one``, the result of one process."""
    root = write_days(tmp_path_factory.mktemp("days"))
    daily(root, "one", {}, {})
    return root


@pytest.fixture(scope="module")
def by_two(folder) -> Path:
    """The result of the command on two ranks."""
    out = folder / "command"
    codes, shown, errors = command_by_hand(*command(folder, out))
    assert codes == [0, 0], errors
    assert [text.count("before training") for text in shown] == [DAYS, 0]  # one rank prints
    return out


def test_days_of_several_ranks_equal_those_of_one_process(folder, by_two):
    """Four ranks stop after the second day, and one process goes on."""
    on_ranks(daily_by_rank, 4, 4, str(folder), {"by 4": ({}, {})}, DAYS - 1)
    daily(folder, "by 4", {}, {})
    for found in (by_two, folder / "by 4"):
        assert_same_days(found, folder / "one")


def test_a_stream_of_two_ranks_equals_the_days_of_one_process(folder, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "in").mkdir()
    for day in range(DAYS):
        (tmp_path / "in" / f"{day}.parquet").symlink_to(folder / f"day{day}.parquet")
    source = f"--folder {tmp_path}/in --settle 0 --poll 0 --idle 0.01 --keep {DAYS}".split()
    place = f"stream --dataset {folder}/shop.toml --out {out}".split()
    codes, shown, errors = command_by_hand(*place, *source, *flags())
    assert codes == [0, 0], errors
    assert [text.count("before training") for text in shown] == [DAYS, 0]  # one rank prints
    assert load_scorer(out / "serving").about.tasks == ["click", "conversion"]
    chunks = read_records(out / "stream.jsonl")
    (out / RECORDS).write_text(
        "".join(json.dumps(each | {"day": each["chunk"]}) + "\n" for each in chunks)
    )
    for day in range(1, DAYS + 1):
        (out / f"chunk-{day:06d}").rename(out / f"day-{day:04d}")
    assert_same_days(out, folder / "one")


def check_a_killed_rank(rank: int, folder: Path, by_two: Path, out: Path, **options) -> None:
    """Kills a rank in the second day: torchrun starts both again, and the days are those of
    ``by_two`` to the bit.
    """
    arguments = command(
        folder, out, training__checkpoint_seconds=0, training__sync_steps=1, **options
    )
    run = torchrun(2, ["-m", "adaftr_fast.cli", *arguments], *RESTARTS, source=FORKS)
    wait_for(lambda: list((out / "day-0002/run/last").glob("*-*.safetensors")))
    os.kill(children(run)[rank], signal.SIGKILL)
    run.end()
    assert read_records(out / RECORDS) == read_records(by_two / RECORDS)
    ours, theirs = (load_checkpoint(each / "day-0003/run/best")[0] for each in (out, by_two))
    assert_same_bits(ours, theirs)


def test_a_killed_rank_zero(folder, by_two, tmp_path):
    check_a_killed_rank(0, folder, by_two, tmp_path)


def test_an_error_of_rank_zero_ends_all_ranks(folder, tmp_path):
    arguments = command(
        folder, tmp_path / "out", folder / "day0.parquet", folder / "missing.parquet"
    )
    codes, _, errors = command_by_hand(*arguments)
    assert 0 not in codes
    assert all("missing.parquet" in err for err in errors)
    assert [record["day"] for record in read_records(tmp_path / "out" / RECORDS)] == [1]


def test_demo(tmp_path):
    (tmp_path / "shipped").mkdir()
    shipped = pq.read_table(SHIPPED / "flights.parquet")
    pq.write_table(shipped[::20], tmp_path / "shipped/flights.parquet")
    small = (
        "import pathlib, adaftr_fast.data.raw.source as s; s.SHIPPED = "
        f"pathlib.Path('{tmp_path}/shipped')"
    )
    out = tmp_path / "out"
    command = f"demo --out {out} --training.max_epochs 1 --training.progress false"
    command = f"{command} --training.batch_size 1024".split()
    codes, shown, errors = command_by_hand(*command, before=small)
    assert codes == [0, 0], errors
    assert [text.count("Test split") for text in shown] == [1, 0]
    assert {"mmoe", "adaftr", "report.md", "report.png", "metrics.jsonl"} <= {
        each.name for each in out.iterdir()
    }
    records = read_records(out / "metrics.jsonl")
    assert [record["model"] for record in records] == ["mmoe", "adaftr"]
