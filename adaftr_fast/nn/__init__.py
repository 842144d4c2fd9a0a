"""Layers shared by the models."""

import importlib
from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "losses":  # imported when it is used: the models need none of it
            return importlib.import_module("adaftr_fast.nn.losses")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
