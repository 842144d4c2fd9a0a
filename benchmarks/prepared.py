"""Writes a prepared folder of random rows with skewed ids: click and conversion, and Ali-CCP's 23
fields, or more.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.data.bad_rows import Unused
from adaftr_fast.data.dataset.manifest import FORMAT, FieldInfo, Manifest, SplitInfo
from adaftr_fast.data.dataset.split_file import GROUP
from adaftr_fast.data.prepare.split_writer import ENCODING
from adaftr_fast.files.whole import sha256

FIELDS = 23
TASKS = ("click", "conversion")
ROW_GROUP = 1 << 17


def write_prepared(
    folder: Path, rows: int, ids: int, held_out: int = 1 << 16, fields: int = FIELDS
) -> Manifest:
    """Writes ``rows`` training rows and ``held_out`` rows of each other split.

    Ids are log-uniform in [0, ids), and the labels depend on them.
    """
    random = np.random.default_rng(0)
    names = [f"field_{number}" for number in range(fields)]
    counts = {"train": rows, "validation": held_out, "test": held_out}
    splits = {
        name: _write(folder / f"{name}.parquet", count, ids, names, random)
        for name, count in counts.items()
    }
    about = [FieldInfo(name, "categorical", [name], ids) for name in names]
    schema = {
        "name": "random",
        "labels": {task: task for task in TASKS},
        "group": "user",
        "split": {split: {"where": [["part", "==", split]]} for split in splits},
        "fields": dict.fromkeys(names, "categorical"),
    }
    meaning = ("random", "", FORMAT, "random", "random", list(TASKS), "user", splits, about, schema)
    digests = {f"{name}.parquet": sha256(folder / f"{name}.parquet") for name in splits}
    manifest = Manifest(
        *meaning, weight=None, bad_rows=None, unused=Unused(), dense=[], compared={}, sha256=digests
    )
    manifest.write(folder)
    return manifest


def _write(
    path: Path, rows: int, ids: int, names: list[str], random: np.random.Generator
) -> SplitInfo:
    types = (
        dict.fromkeys(names, pa.int32()) | dict.fromkeys(TASKS, pa.uint8()) | {GROUP: pa.int64()}
    )
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])
    positives = dict.fromkeys(TASKS, 0)
    with pq.ParquetWriter(path, schema, **ENCODING) as writer:
        for start in range(0, rows, ROW_GROUP):
            n = min(ROW_GROUP, rows - start)
            columns = [
                (float(ids) ** random.random(n, np.float32)).astype(np.int32) % ids for _ in names
            ]
            click = random.random(n) < 0.04 * (1 + (columns[0] % 7 == 0))
            bought = click & (random.random(n) < 0.02 * (1 + 5 * (columns[1] % 5 == 0)))
            labels = [click.astype(np.uint8), bought.astype(np.uint8)]
            for task, label in zip(TASKS, labels):
                positives[task] += int(label.sum())
            writer.write_batch(
                pa.record_batch([*columns, *labels, columns[2].astype(np.int64)], schema=schema)
            )
    return SplitInfo(rows, positives, unknown=dict.fromkeys(names, 0))
