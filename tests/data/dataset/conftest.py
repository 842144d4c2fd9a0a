"""Prepared folders."""

import pytest


@pytest.fixture
def folder(prepared, tmp_path):
    prepared()
    return tmp_path / "out"
