"""Whole files of every kind, small, from which the parsers' cases are made."""

import functools
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, shipped_schemas
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.raw import write_raw

BEFORE = Path(__file__).parents[1] / "compatibility" / "files" / "before.tar.xz"
ROWS = 60
COLUMNS = ("time", "user", "item", "city", "device", "price", "tags", "place", "weight", "click", "buy")


@functools.cache
def before() -> dict[str, bytes]:
    """Returns the files of tests/compatibility by name."""
    with tarfile.open(BEFORE) as archive:
        return {file.name: archive.extractfile(file).read() for file in archive if file.isfile()}


@functools.cache
def log() -> bytes:
    """Returns the first rows of a log as text, with every split of the schema ``log``."""
    lines = gzip.decompress(before()["log.csv.gz"]).split(b"\n")
    return b"\n".join([*lines[:40], *lines[450 : 410 + ROWS], b""])


@functools.cache
def tables() -> list[bytes]:
    """Returns delimited texts."""
    plain = log().replace(b'"', b"")
    return [log(), plain, plain.replace(b"\n", b"\r\n"), plain.replace(b",", b"\t"), plain.replace(b",", b";")]


@functools.cache
def parquets() -> list[bytes]:
    """Returns the log as parquet, written in several ways."""
    table = pyarrow.csv.read_csv(io.BytesIO(log()))
    listed = table.set_column(6, "tags", pa.array([["a", None], [], None, ["b"]] * ROWS).slice(0, len(table)))
    coded = table.set_column(1, "user", table["user"].dictionary_encode())
    ways = [
        (table, {}), (table, {"compression": "none", "use_dictionary": False, "write_page_checksum": True}),
        (table, {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 13}), (listed, {}),
        (table, {"compression": "gzip", "store_schema": False}), (coded, {"version": "1.0", "row_group_size": 30}),
    ]  # fmt: skip
    return [_parquet(each, **options) for each, options in ways]


def _parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


@functools.cache
def messages() -> bytes:
    """Returns the log as messages of a topic, one in each line."""
    rows = pyarrow.csv.read_csv(io.BytesIO(log())).to_pylist()
    return b"\n".join(json.dumps(row, default=str).encode() for row in rows)


def schema() -> bytes:
    """Returns the schema file of the log."""
    return before()["log.toml"].replace(b"< 400", b"< 450").replace(b"400", b"450")


@functools.cache
def schemas() -> list[bytes]:
    """Returns schema files: those of the log, and those that ship, as values of JSON where they need a base."""
    folder = Path(load_schema.__code__.co_filename).parent / "shipped"
    shipped = [(folder / f"{name}.toml").read_bytes() for name in shipped_schemas()]
    return [schema(), schema(), before()["day.toml"], *shipped]


@functools.cache
def prepared() -> dict[str, bytes]:
    """Returns the files of a folder that this version prepares from the log."""
    return _made(lambda folder: _prepare(folder))


def _prepare(folder: Path) -> Path:
    (folder / "log.csv").write_bytes(log())
    (folder / "log.toml").write_bytes(schema())
    prepare(load_schema(str(folder / "log.toml")), [folder / "log.csv"], folder / "data")
    return folder / "data"


@functools.cache
def aliccp() -> tuple[bytes, bytes]:
    """Returns a skeleton file and its common features."""
    files = _made(lambda folder: write_raw(LogConfig(30, users=4, items=5, list_scale=0.01), folder / "raw")[0].parent)
    skeleton, common = (
        next(files[name] for name in files if word in name) for word in ("skeleton_train", "common_features_train")
    )
    return skeleton, common


def _made(make: Callable[[Path], Path]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder))
        return {path.name: path.read_bytes() for path in sorted(made.iterdir())}


@functools.cache
def tensors() -> list[bytes]:
    """Returns safetensors files."""
    return [content for name, content in before().items() if name.startswith("runs/") and name.endswith(".safetensors")]
