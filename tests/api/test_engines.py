"""The choice of an engine."""

import sys

import pytest

from adaftr_fast.api.engines import open_engine
from adaftr_fast.cli import main
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


def test_a_missing_ray_is_named_by_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["prepare", "--dataset", "flights", "--engine", "ray", "--out", "none"]) == 2
    message = (
        'adaftr-fast prepare: engine ray: ray is not installed: pip install "adaftr-fast[ray]"\n'
    )
    assert capsys.readouterr().err == message
