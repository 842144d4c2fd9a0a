"""Prepared folders."""

import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema


@pytest.fixture
def folder(source, write, tmp_path):
    prepare(parse_schema(source), [write()], tmp_path / "out")
    return tmp_path / "out"
