"""Writes a synthetic log in Ali-CCP's raw format, to test and benchmark how it is prepared.

``adaftr_fast.data.raw.aliccp`` describes the format. The rows of the last day are the test split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from adaftr_fast._publish import publishing
from adaftr_fast.data.synthetic.layout import LogField
from adaftr_fast.data.synthetic.log import DAY, ImpressionLog, LogConfig, as_arrow
from adaftr_fast.errors import DataError

NAMES = ("sample_skeleton_{}.csv", "common_features_{}.csv")  # file names in the archives of the data set
BATCH_ROWS = 1 << 16
BATCH_USERS = 1 << 12  # user blobs are long


def write_raw(config: LogConfig, folder: str | Path, *, progress: bool = False) -> list[Path]:
    """Writes skeleton and common features of ``train`` and ``test`` to a new folder.

    Returns:
        The four files in the order that ``prepare`` expects.

    Raises:
        DataError: the layout is not aliccp, there are fewer than two days, or the folder exists.
        BusyError: another process or thread writes the folder.
    """
    folder = Path(folder)
    if config.layout != "aliccp" or config.days < 2:
        raise DataError(f"raw layout: expected layout aliccp and days >= 2, got {config.layout} and {config.days}")
    with publishing(folder) as new:
        if folder.exists():
            raise DataError(f"{folder}: exists; name a new folder")
        new.mkdir()
        _write(ImpressionLog(config), new, progress=progress)
    return [folder / name.format(split) for split in ("train", "test") for name in NAMES]


def _write(log: ImpressionLog, new: Path, *, progress: bool) -> None:
    config = log.config
    test_start = -(-(config.days - 1) * config.rows // config.days)  # the first row of the last day
    with tqdm(total=config.rows, unit=" rows", unit_scale=True, desc="synthesize", disable=not progress) as bar:
        for split, start, stop in (("train", 0, test_start), ("test", test_start, config.rows)):
            skeleton, common = (new / name.format(split) for name in NAMES)
            with skeleton.open("wb") as file:
                users = [np.empty(0, np.int64)]
                for first in range(start, stop, BATCH_ROWS):
                    row = np.arange(first, min(first + BATCH_ROWS, stop))
                    file.write(_skeleton(log, row))
                    users.append(np.unique(log.owners(row)["user"]))
                    bar.update(len(row))
            with common.open("wb") as file:
                file.writelines(_common(log, np.unique(np.concatenate(users))))


def _skeleton(log: ImpressionLog, row: np.ndarray) -> bytes:
    owners = log.owners(row)
    batch = log.batch(int(row[0]), int(row[-1]) + 1).drop_columns([DAY])
    fields = [field for field in log.layout.fields if field.owner != "user"]
    columns = [pa.array(row + 1), batch["click"], batch["conversion"], _index(owners["user"])]
    return _lines(columns, fields, [batch[field.name] for field in fields])


def _common(log: ImpressionLog, users: np.ndarray) -> Iterator[bytes]:
    fields = [field for field in log.layout.fields if field.owner == "user"]
    for first in range(0, len(users), BATCH_USERS):
        batch = users[first : first + BATCH_USERS]
        yield _lines([_index(batch)], fields, [as_arrow(log.field_values(field, batch)) for field in fields])


def _index(users: np.ndarray) -> pa.Array:
    """Returns the names of users' common features [n]."""
    return pc.binary_join_element_wise("user", pc.utf8_lpad(pa.array(users).cast(pa.string()), 12, "0"), "")


def _lines(columns: list[pa.Array], fields: list[LogField], values: list[pa.Array]) -> bytes:
    counts = sum(
        pc.list_value_length(each).to_numpy() if pa.types.is_list(each.type) else each.is_valid().to_numpy(False) * 1
        for each in values
    )
    blobs = [_blob(field.name, each) for field, each in zip(fields, values)]
    blob = pc.binary_join_element_wise(*blobs, "\x01", null_handling="skip")
    texts = [column.cast(pa.string()) for column in (*columns, pa.array(counts))]
    lines = pc.binary_join_element_wise(*texts, blob, ",")
    return ("\n".join(lines.to_pylist()) + "\n").encode()


def _blob(name: str, values: pa.Array) -> pa.Array:
    """A field's tokens [n], null where it has none."""
    if not pa.types.is_list(values.type):
        return pc.binary_join_element_wise(name, "\x02", values.cast(pa.string()), "\x031.0", "")
    tokens = pc.binary_join_element_wise(name, "\x02", values.values.cast(pa.string()), "\x031.0", "")
    return pc.binary_join(pa.ListArray.from_arrays(values.offsets, tokens), "\x01")
