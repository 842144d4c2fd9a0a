"""Prepared folders."""

import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from tests.data.manifests import without_sha256


@pytest.fixture
def whole(source, write, tmp_path):
    prepare(parse_schema(source), [write()], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def folder(whole):
    """A prepared folder whose files may be changed."""
    return without_sha256(whole)
