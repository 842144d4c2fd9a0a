"""Repeats the failures that ``make chaos`` has found and that were copied to
``tests/chaos/cases``.
"""

import json
from pathlib import Path

import pytest

from tests.chaos.worker import repeat

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path):
    content = json.loads(path.read_text())
    assert repeat(content["kind"], content["case"]) is None
