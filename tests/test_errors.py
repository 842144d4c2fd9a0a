"""What the messages of errors are made of."""

import pytest

from adaftr_fast.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [("one\ntwo", "one"), ("\n  two \n", "two"), ("", "OSError"), (" \n", "OSError")],
)
def test_the_first_line_of_a_message(message, line):
    assert first_line(OSError(message)) == line
