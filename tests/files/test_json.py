import datetime
import json
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from adaftr_fast.files.json import dumps, from_json


@dataclass
class Inner:
    value: float
    note: str | None = None


@dataclass
class Outer:
    inner: dict[str, Inner]
    kind: Literal["a", "b"] = "a"
    sizes: list[int] = field(default_factory=list)


def test_round_trip_with_nan_as_null():
    text = dumps(
        {"inner": {"x": {"value": math.nan}, "y": {"value": 2, "note": "é"}}, "sizes": (1, 2)}
    )
    assert '"value": null' in text
    read = from_json(Outer, json.loads(text))
    assert math.isnan(read.inner["x"].value)
    assert read.inner["y"] == Inner(2.0, "é")
    assert (read.kind, read.sizes) == ("a", [1, 2])
    assert dumps([math.inf, datetime.date(2013, 1, 8)]) == '[null, "2013-01-08"]'


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"the file: expected an object, got \[\]"),
        ({}, "missing key 'inner'"),
        ({"inner": {}, "colour": 1}, "unknown key 'colour'; expected one of inner, kind, sizes"),
        ({"inner": {"x": {}}}, r"missing key 'inner\.x\.value'"),
        ({"inner": {"x": {"value": "1"}}}, r"inner\.x\.value: expected a number, got '1'"),
        ({"inner": {"x": {"value": 1, "note": 3}}}, r"inner\.x\.note: expected text, got 3"),
        ({"inner": {}, "kind": "c"}, r"kind: expected one of a, b, got 'c'"),
        ({"inner": {}, "sizes": [1, True]}, r"sizes\[1\]: expected an integer, got True"),
        ({"inner": {}, "sizes": None}, r"sizes: expected a list such as .*, got None"),
    ],
)
def test_errors_name_the_key(value, message):
    with pytest.raises(ValueError, match=message):
        from_json(Outer, value)
