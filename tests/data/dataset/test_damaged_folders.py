"""Files of a prepared folder that are damaged, replaced or outside it are named."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.errors import DataError
from tests.data.manifests import recorded


def test_damaged_columns_are_named(folder, rewritten):
    with pytest.raises(DataError, match="no split 'dev'; expected one of train, validation, test"):
        PreparedData(folder).load("dev")
    table = pq.read_table(folder / "train.parquet")
    cities = [pa.array([value, 1, 1, 1, 1, 1], pa.int32()) for value in (4, None)]
    for changed, message in (
        (table.slice(1), "expected 6 rows, got 5"),
        (table.drop_columns("rain"), "no column rain"),
        (table.set_column(0, "city", [[1] * 6]), "column city: expected int32, got int64"),
        (
            table.set_column(0, "city", cities[0]),
            r"city: expected values in \[0, 4\), got values from 1 to 4",
        ),
        (table.set_column(0, "city", cities[1]), "column city: expected no missing values, got 1"),
    ):
        with pytest.raises(DataError, match=message):
            list(rewritten(changed).load("train").batches(4))


def test_a_vocabulary_that_is_none_is_named(folder):
    """With the checksums of what it holds, as a program that has changed it may record them."""
    table = pq.read_table(folder / "vocabulary.parquet")
    rows = len(table)
    for name, wrong, message in (
        ("value", [None] + ["x"] * (rows - 1), "a value of its own for each id, got 1 nulls"),
        ("value", ["x"] * rows, "a value of its own for each id, got 0 nulls, and 1 values"),
        ("count", [-1] * rows, "expected a count >= 0"),
        ("count", [None] * rows, "expected a count >= 0"),
    ):
        place = table.schema.get_field_index(name)
        column = pa.array(wrong, table.schema.field(name).type)
        pq.write_table(table.set_column(place, name, column), folder / "vocabulary.parquet")
        recorded(folder)
        with pytest.raises(DataError, match=message):
            read_encoders(folder, PreparedData(folder).manifest)


READERS = {
    "schema.json": [PreparedData],
    "vocabulary.parquet": [lambda folder: read_encoders(folder, PreparedData(folder).manifest)],
    "train.parquet": [
        lambda folder: PreparedData(folder).load("train"),
        lambda folder: read_split(folder, PreparedData(folder).manifest, "train"),
    ],
}


def test_every_changed_byte_of_a_folder_is_found(folder):
    """Changes every 211th byte of a file in turn."""
    assert PreparedData(folder).manifest.sha256.keys() == {path.name for path in folder.iterdir()}
    for name, readers in READERS.items():
        content = (folder / name).read_bytes()
        for place in range(0, len(content), 211):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            (folder / name).write_bytes(damaged)
            for read in readers:
                with pytest.raises(DataError, match=name):
                    read(folder)
        (folder / name).write_bytes(content)
        for read in readers:
            read(folder)


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_that_is_replaced_after_it_was_opened_is_named_as_such(
    prepared, folder, tmp_path, shards
):
    data = PreparedData(folder)
    prepared("next", city=["x"] * 12)
    shutil.rmtree(folder)
    (tmp_path / "next").rename(folder)
    if shards:
        (folder / "train.parquet").unlink()  # its rows have files of other names
    message = rf"^{folder}: was replaced since it was opened; start again with the new one"
    for read in (
        lambda: data.load("train"),
        lambda: data.load("train", checked=slice(0)),  # another process compares the files
        lambda: read_encoders(folder, data.manifest),
        lambda: read_split(folder, data.manifest, "train"),
    ):
        with pytest.raises(DataError, match=message):
            read()


def test_a_file_that_is_replaced_while_it_is_read_is_named(folder):
    split = PreparedData(folder).load("train")
    path = folder / "train.parquet"
    table = pq.read_table(path)
    # fewer rows, other columns, and other values
    for other in (table.slice(0, 2), table.select(["city"]), table.take([5, 4, 3, 2, 1, 0])):
        pq.write_table(other, path)
        with pytest.raises(DataError, match=r"train\.parquet: was replaced since it was opened"):
            list(split.shuffled(2, seed=0, epoch=0))


@pytest.mark.parametrize("name", ["../other/train.parquet", ""])
def test_a_manifest_names_no_file_outside_its_folder(folder, name):
    path = folder / "schema.json"
    content = json.loads(path.read_text())
    train = content["splits"]["train"]
    (folder.parent / "other").mkdir()
    shutil.copy(folder / "train.parquet", folder.parent / "other/train.parquet")
    named = f"expected the name of a file in the same folder, got {name!r}"
    for splits, place in (
        (content["splits"] | {"train": train | {"files": {name: 1}}}, "splits.train.files"),
        ({name: train}, "splits"),
    ):
        path.write_text(json.dumps(content | {"splits": splits}))
        with pytest.raises(DataError) as error:
            PreparedData(folder)
        assert str(error.value) == f"{path}: damaged: {place}: {named}"


def test_a_folder_is_read_where_it_is_moved_aside_while_it_is_replaced(folder):
    """On a file system that cannot exchange two folders."""
    aside = folder.with_name(f".{folder.name}.replaced")
    folder.rename(aside)
    split = PreparedData(folder).load("train")
    assert sum(len(batch) for batch in split.batches(4)) == 6
    aside.rename(folder)
    assert sum(len(batch) for batch in split.batches(4)) == 6
