import importlib
import importlib.util
import warnings

import pytest

from adaftr_fast import _extension


@pytest.fixture
def unloadable(monkeypatch):
    """Returns a function that makes the extension fail to import, with or without its file."""

    def missing(name):
        raise ImportError("undefined symbol: torch")

    def make(there):
        monkeypatch.setattr(importlib, "import_module", missing)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)

    return make


def test_an_extension_that_fails_to_load_warns(unloadable):
    unloadable(there=True)
    with pytest.warns(RuntimeWarning, match=r"is installed but does not load \(undefined symbol: torch\)"):
        assert _extension._load() == (None, "undefined symbol: torch")


def test_a_missing_extension_does_not_warn(unloadable):
    unloadable(there=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _extension._load() == (None, "undefined symbol: torch")


def test_without_an_extension_the_build_says_so(monkeypatch):
    monkeypatch.setattr(_extension, "_C", None)
    info = _extension.build_info()
    assert info["C++ extension"].startswith("missing, plain-PyTorch references are used instead")
    assert info["in use"] == "none"
