"""The search for damaged files starts from whole ones, and is a function of its seed."""

import random
from contextlib import nullcontext

import pytest

from adaftr_fast.errors import ServingError
from tests.chaos import parsers
from tests.chaos.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_whole_files_of_every_target_are_read(name, tmp_path):
    """Damaged files reach every check of a reader only if whole ones pass."""
    expected = (
        pytest.raises(ServingError, match=r"model\.pt2: cannot be read")
        if name == "serving"
        else nullcontext()
    )
    path = tmp_path / TARGETS[name].file
    path.write_bytes(TARGETS[name].seeds()[0])
    with expected:
        TARGETS[name].read(path)


def test_cases_are_functions_of_the_seed():
    cases = [parsers.draw(random.Random(f"seed-{number}")) for number in range(20)]
    assert cases == [parsers.draw(random.Random(f"seed-{number}")) for number in range(20)]
    assert len({case["target"] for case in cases}) > 5
