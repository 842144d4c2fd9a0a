"""Files of a prepared folder that are damaged, replaced or outside it are named."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError
from tests.data.manifests import recorded


def test_damaged_columns_are_named(folder):
    path = folder / "train.parquet"
    with pytest.raises(DataError, match="no split 'dev'; expected one of train, validation, test"):
        PreparedData(folder).load("dev")
    table = pq.read_table(path)

    def loading(changed):
        pq.write_table(changed, path)
        return list(PreparedData(recorded(folder)).load("train").batches(4))

    assert sum(len(batch) for batch in loading(table)) == 6
    with pytest.raises(DataError, match="expected 6 rows, got 5"):
        loading(table.slice(1))
    with pytest.raises(DataError, match="no column rain"):
        loading(table.drop_columns("rain"))
    with pytest.raises(DataError, match="column city: expected int32, got int64"):
        loading(table.set_column(0, "city", [[1] * 6]))
    with pytest.raises(DataError, match=r"column city: expected values in \[0, 4\), got values from 4 to 4"):
        loading(table.set_column(0, "city", pa.array([4] * 6, pa.int32())))
    with pytest.raises(DataError, match="column city: expected no missing values, got 1"):
        loading(table.set_column(0, "city", pa.array([1, 1, None, 1, 1, 1], pa.int32())))


def test_half_written_and_damaged_files_are_named(folder):
    path = folder / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    for length in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"train\.parquet: not readable"):
            PreparedData(recorded(folder)).load("train")
    damaged = bytearray(content)
    damaged[content.index(table["group:id"].to_numpy()[:2].tobytes())] ^= 1  # changes a value, not the structure
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"train\.parquet: not readable"):
        list(PreparedData(recorded(folder)).load("train").batches(2))


@pytest.mark.parametrize("name", ["schema.json", "train.parquet", "vocabulary.parquet"])
def test_every_changed_byte_of_a_folder_is_found(folder, name):
    """Changes every 31st byte of a file in turn."""
    content = (folder / name).read_bytes()
    assert PreparedData(folder).manifest.sha256.keys() == {path.name for path in folder.iterdir()}
    for place in range(0, len(content), 31):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (folder / name).write_bytes(damaged)
        with pytest.raises(DataError, match=name):
            read_all(folder)
    (folder / name).write_bytes(content)
    read_all(folder)


def read_all(folder):
    data = PreparedData(folder)
    assert sum(len(batch) for batch in data.load("train").batches(4)) == 6
    read_encoders(folder, data.manifest)
    read_split(folder, data.manifest, "train")


def test_changed_values_are_found_by_all_readers_of_a_split(folder):
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.take([5, 4, 3, 2, 1, 0]), folder / "train.parquet")
    manifest = PreparedData(folder).manifest
    for read in (lambda: PreparedData(folder).load("train"), lambda: read_split(folder, manifest, "train")):
        with pytest.raises(
            DataError, match=r"train\.parquet: damaged: its sha256 differs from the one in schema\.json"
        ):
            read()


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_that_is_replaced_after_it_was_opened_is_named_as_such(source, write, tmp_path, shards):
    out = tmp_path / "out"
    prepare(parse_schema(source), [write()], out)
    data = PreparedData(out)
    prepare(parse_schema(source), [write(city=["x"] * 12)], tmp_path / "next")
    shutil.rmtree(out)
    (tmp_path / "next").rename(out)
    if shards:
        (out / "train.parquet").unlink()  # its rows have files of other names
    for read in (
        lambda: data.load("train"),
        lambda: data.load("train", checked=slice(0)),  # another process compares the files
        lambda: read_encoders(out, data.manifest),
        lambda: read_split(out, data.manifest, "train"),
    ):
        with pytest.raises(DataError, match=rf"^{out}: was replaced since it was opened; start again with the new one"):
            read()


@pytest.mark.parametrize("change", ["fewer rows", "other columns", "other values"])
def test_a_file_that_is_replaced_while_it_is_read_is_named(folder, change):
    split, table = PreparedData(folder).load("train"), pq.read_table(folder / "train.parquet")
    others = {
        "fewer rows": table.slice(0, 2),
        "other columns": table.select(["city"]),
        "other values": table.take([5, 4, 3, 2, 1, 0]),
    }
    pq.write_table(others[change], folder / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: was replaced since it was opened"):
        list(split.shuffled(2, seed=0, epoch=0))


def test_a_manifest_that_is_nested_too_deeply_is_named(folder):
    (folder / "schema.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"schema\.json: not a manifest of a prepared folder: nested too deeply"):
        PreparedData(folder)


@pytest.mark.parametrize("name", ["../other/train.parquet", "/other/train.parquet", "..", "", "sub/train.parquet"])
def test_a_manifest_names_no_file_outside_its_folder(folder, name):
    path = folder / "schema.json"
    content = json.loads(path.read_text())
    train = content["splits"]["train"]
    (folder.parent / "other").mkdir()
    shutil.copy(folder / "train.parquet", folder.parent / "other/train.parquet")
    path.write_text(json.dumps(content | {"splits": content["splits"] | {"train": train | {"files": {name: 1}}}}))
    with pytest.raises(DataError) as error:
        PreparedData(folder)
    expected = f"splits.train.files: expected the name of a file in the same folder, got {name!r}"
    assert str(error.value) == f"{path}: damaged: {expected}"
    path.write_text(json.dumps(content | {"splits": {name: train}}))
    with pytest.raises(DataError, match=r"schema\.json: damaged: splits: expected the name of a file"):
        PreparedData(folder)


def test_a_folder_that_is_moved_aside_while_it_is_replaced_is_read_at_both_places(folder, source, write):
    """On a file system that cannot exchange two folders, the former one is moved aside for a moment."""
    aside = folder.with_name(f".{folder.name}.replaced")
    folder.rename(aside)
    split = PreparedData(folder).load("train")
    assert sum(len(batch) for batch in split.batches(4)) == 6
    aside.rename(folder)
    assert sum(len(batch) for batch in split.batches(4)) == 6
    prepare(parse_schema(source), [write(city=["x"] * 12)], folder)
    with pytest.raises(DataError, match=rf"^{folder}: was replaced since it was opened"):
        list(split.batches(4))
