"""Repeats the failures that ``make chaos`` has found and that were copied to
``tests/chaos/cases``.
"""

import json
from pathlib import Path

import pytest

from tests.chaos.worker import repeat
from tests.ops.marks import needs_extension

CASES = [
    # a search of ops compares kernels with references
    pytest.param(path, marks=needs_extension if path.stem.startswith("ops-") else (), id=path.stem)
    for path in sorted((Path(__file__).parent / "cases").glob("*.json"))
]


@pytest.mark.parametrize("path", CASES)
def test_case(path):
    content = json.loads(path.read_text())
    assert repeat(content["kind"], content["case"]) is None
