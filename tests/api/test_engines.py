"""The choice of an engine."""

import pytest

from adaftr_fast.api.engines import open_engine
from adaftr_fast.errors import ConfigError


def test_wrong_engines_are_named():
    for given, message in (
        (["spark"], "engine: expected one of local, ray, got 'spark'"),
        (
            ["local", "auto"],
            "address: goes with engine ray, got address = 'auto' with engine local",
        ),
    ):
        with pytest.raises(ConfigError, match=message), open_engine(*given):
            pass
