"""A schema that is written as TOML reads as it was."""

import datetime
import tomllib

import pytest

from adaftr_fast.data.schema.parse import load_schema, parse_schema, shipped_schemas, write_schema
from adaftr_fast.errors import DataError

ODD = {
    "name": 'a "log" of\tJürgen\\\x7f\n',
    "labels": {"click": "click", "a.b": [["a.b", "in", [1, -2.5, True, "x"]]]},
    "split": {
        "train": {"where": [["at", "<", datetime.datetime(2020, 1, 2, 3, 4, 5, 678)]]},
        "validation": {"where": [["on", "==", datetime.date(2020, 1, 2)]]},
        "test": {
            "where": [[["at", ">=", datetime.time(3, 4)]], [["n", "<", 1e300]]],
            "hash": {"start": 0.1 + 0.2},
        },
    },
    "fields": {
        "": "numeric",
        "user id": {"kind": "categorical", "tokens": "all", "separator": "|"},
    },
}


def test_every_value_of_toml_reads_as_it_was(tmp_path):
    write_schema(tmp_path / "odd.toml", ODD, "Inferred from 'log.csv'.")
    text = (tmp_path / "odd.toml").read_text()
    assert text.startswith("# Inferred from 'log.csv'.\n")
    assert tomllib.loads(text) == ODD
    assert parse_schema(tomllib.loads(text)) == parse_schema(ODD)


@pytest.mark.parametrize("name", shipped_schemas())
def test_shipped_schemas_read_as_they_were(name, tmp_path):
    schema = load_schema(name)
    write_schema(tmp_path / "copy.toml", schema.source, name)
    assert load_schema(str(tmp_path / "copy.toml")) == schema


def test_an_edited_file_is_not_replaced(tmp_path):
    path = tmp_path / "mine.toml"
    for _ in range(2):  # as an interrupted command is repeated
        write_schema(path, ODD, "odd")
    path.write_text("# edited\n" + path.read_text())
    with pytest.raises(
        DataError,
        match=r"write_schema: .*mine\.toml exists with another content; name another file",
    ):
        write_schema(path, ODD, "odd")
    with pytest.raises(
        DataError, match=r"write_schema: expected a file name that ends in \.toml, got .*mine'"
    ):
        write_schema(tmp_path / "mine", ODD, "odd")
    assert [each.name for each in tmp_path.iterdir()] == ["mine.toml"]
