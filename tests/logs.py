"""A log of impressions whose clicks follow the item; the splits of schemas; and the records that
runs log.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa


def shop_log(
    rows: int, users: int, *, time: str = "time", conversion: str = "conversion"
) -> pa.Table:
    """Returns ``rows`` impressions of ``users`` users; ``time`` and ``conversion`` name their
    columns.
    """
    random = np.random.default_rng(0)
    item = random.integers(0, 40, rows)
    click = random.random(rows) < 1 / (1 + np.exp(-(item - 20) / 6))
    columns = {
        time: np.arange(rows),
        "user": [f"u{i}" for i in random.integers(0, users, rows)],
        "item": item,
        "price": random.random(rows).round(2),
        "click": click.astype(np.int8),
        conversion: (click & (random.random(rows) < 0.4)).astype(np.int8),
    }
    return pa.table(columns)


def by_day(day: int) -> dict[str, Any]:
    """Returns the splits of a schema: what is before a day, on it and after it."""
    return {
        name: {"where": [["day", op, day]]}
        for name, op in (("train", "<"), ("validation", "=="), ("test", ">"))
    }


def by_hash(start: float, stop: float, **options: str) -> dict[str, Any]:
    """Returns the splits of a schema by hash, of which the validation split has the shares from
    start to stop.
    """
    shares = {
        "train": {"stop": start},
        "validation": {"start": start, "stop": stop},
        "test": {"start": stop},
    }
    return {name: {"hash": share | options} for name, share in shares.items()}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file of JSON lines, such as metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]
