"""The commands that are killed: how each starts, what it writes, and how it is read.

All paths are relative to a working directory, so that results that name them are equal. ``inputs``
beside it has what the commands read.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos.kills.services import BETWEEN, BROKER, BUCKET, TOPIC

TRAINING = (
    "--model.expert_hidden [16] --model.tower_hidden [16,8] --model.relatedness_hidden [4] "
    "--optimizer.lr 0.01 --training.batch_size 64 --training.max_epochs 3 "
    "--training.progress false --training.checkpoint_seconds 0.05"
)
LABELS = "--labels click conversion --group user"
TIMES = ("seconds", "samples_per_s", "arrived", "lag", "rows_per_s", "time")
STORED = f"s3://{BUCKET}/out"
SERVED = (
    "stream",
    "prepare to a store",
    "train to a store",
    "export to a store",
    "predict to a store",
)


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        arguments: those of ``adaftr-fast``.
        before: the same for other inputs, whose result is replaced; None if it cannot be.
        lock: the lock file of the writer.
        read: reads the result, or raises an error if it is not whole.
        ranks: how many processes torchrun starts; 0 without torchrun.
        is_stored: whether the output is ``STORED``, and what was read from it lies in ``out``.
    """

    arguments: list[str]
    before: list[str] | None
    lock: str
    read: Callable[[], object]
    ranks: int = 0
    is_stored: bool = False


def commands():
    """Returns the commands by name. Those of ``SERVED`` need ``services.start`` before."""
    found = {
        "prepare": Command(_prepare("log.csv"), _prepare("other.csv"), ".out.lock", _read_prepared),
        "train": Command(_train("data", 1), _train("data", 2), "out/.lock", _read_run),
        "daily": Command(_daily(), None, "out/.lock", _read_days),
        "export": Command(_export("run"), _export("other_run"), ".out.lock", _read_model),
        "predict": Command(_predict("log.csv"), _predict("other.csv"), ".out.lock", _read_scores),
        "torchrun": Command(_train("data", 1), _train("data", 2), "out/.lock", _read_run, ranks=2),
        "stream": Command(_stream(), None, "out/.lock", _read_stream),
    }
    return found | {
        f"{name} to a store": _stored(found[name])
        for name in ("prepare", "train", "export", "predict")
    }


def _stored(command):
    arguments, before = (
        [STORED if word == "out" else word for word in words]
        for words in (command.arguments, command.before)
    )
    return replace(command, arguments=arguments, before=before, is_stored=True)


def _prepare(log, out="out"):
    return f"prepare --files ../inputs/{log} {LABELS} --out {out}".split()


def _train(data, seed, out="out"):
    return f"train --data.folder ../inputs/{data} {TRAINING} --training.seed {seed} --out {out}".split()


def _daily():
    days = " ".join(f"../inputs/day{number}.parquet" for number in (1, 2, 3))
    return f"daily --dataset ../inputs/day.toml --files {days} {TRAINING} --out out".split()


def _stream():
    return (
        f"stream --dataset ../inputs/day.toml --kafka_topic {TOPIC} "
        f"--kafka_servers {os.environ.get(BROKER)} --chunk_rows {2000 + 2000 // BETWEEN} "
        f"--chunk_seconds 600 --idle 2 --poll 0.1 {TRAINING} --out out"
    ).split()


def _export(run, out="out"):
    return f"export --run ../inputs/{run} --data ../inputs/data --out {out}".split()


def _predict(log):
    return (
        f"predict --model ../inputs/model --files ../inputs/{log} --keep row --progress false "
        "--out out"
    ).split()


def _read_prepared():
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.errors import DataError

    while True:
        try:
            return PreparedData(Path("out")).load("train")
        # the folder was replaced between the two calls
        except DataError as error:
            if "was replaced since it was opened" not in str(error):
                raise


def _read_run():
    from adaftr_fast.errors import CheckpointError
    from adaftr_fast.training.trained import load_trained

    try:
        return load_trained(Path("out"))
    # the first epoch of a run removes the checkpoint of the run before it
    except CheckpointError as error:
        if "no checkpoint here" in str(error):
            return None
        raise


def _read_days():
    records = Path("out/daily.jsonl")
    return (
        [json.loads(line) for line in records.read_text().split("\n")[:-1]]
        if records.exists()
        else None
    )


def _read_stream():
    from adaftr_fast.extras.streaming.loop import Journal
    from adaftr_fast.serving.scorer import load_scorer

    return Journal(Path("out")), load_scorer(Path("out/serving")) if Path(
        "out/serving"
    ).exists() else None


def _read_model():
    from adaftr_fast.serving.scorer import load_scorer

    return load_scorer(Path("out"))


def _read_scores():
    import pyarrow.parquet as pq

    return pq.read_table("out")


def write_inputs(folder):
    """Writes the inputs of all commands to the working directory ``folder``; runs in a process of
    its own.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    from adaftr_fast.cli import main

    def log(rows, seed, first=0):
        random = np.random.default_rng(seed)
        item = first + random.integers(0, 300, rows)
        click = random.random(rows) < 1 / (1 + np.exp(-((item * 7919) % 23 - 11) / 3))
        columns = {
            "row": np.arange(rows),
            "item": item,
            "user": random.integers(0, 90, rows),
            "x": random.random(rows),
        }
        columns |= {
            "click": click.astype(np.int8),
            "conversion": (click & (item % 3 == 0)).astype(np.int8),
        }
        return pa.table(columns)

    csv.write_csv(log(80_000, 1), folder / "log.csv")
    csv.write_csv(log(40_000, 2), folder / "other.csv")
    pq.write_table(log(5000, 3), folder / "log.parquet")
    for day in (1, 2, 3):
        pq.write_table(log(2000, 10 + day, 100 * day), folder / f"day{day}.parquet")
    (folder / "day.toml").write_text(DAY)
    for arguments in (
        _prepare("log.parquet", "../inputs/data"),
        _train("data", 1, "../inputs/run"),
        _train("data", 2, "../inputs/other_run"),
        _export("run", "../inputs/model"),
    ):
        if main(arguments):
            raise SystemExit(f"{arguments}: failed")


DAY = """
name = "shop"
group = "user"
[labels]
click = "click"
conversion = "conversion"
[split]
train = {hash = {stop = 0.8}}
validation = {hash = {start = 0.8, stop = 0.9}}
test = {hash = {start = 0.9}}
[fields]
item = "categorical"
user = "categorical"
x = {kind = "numeric", buckets = 4}
"""
