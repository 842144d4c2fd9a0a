"""Values and errors as JSON, in the tensors of bytes that ranks exchange.

Reading a message creates values and errors, and never runs code that came with it, as unpickling would.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from adaftr_fast import errors
from adaftr_fast.errors import RankError, UserError

BUILTINS: tuple[type[Exception], ...] = (IndexError, OSError, TypeError, ValueError)
ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (*vars(errors).values(), *BUILTINS)
    if kind in BUILTINS or (isinstance(kind, type) and issubclass(kind, UserError))
}
"""The errors that a message can name."""


def text_of(value: Any, sender: str) -> str:
    """Returns a plain value as JSON text, with NaN and infinities.

    Args:
        value: None, a bool, int, float or str, or a list, or a dict with str keys, of such values.
        sender: the method, for the error message.

    Raises:
        TypeError: the value is of another type, or contains one.
    """
    _check(value, sender)
    return json.dumps(value)


def _check(value: Any, sender: str) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{sender}: expected str as keys of dicts, got {type(key).__name__}: {key!r}")
            _check(each, sender)
    elif isinstance(value, list):
        for each in value:
            _check(each, sender)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(
            f"{sender}: expected a plain value (None, bool, int, float, str, list, or dict with str keys), "
            f"got {type(value).__name__}"
        )


def bytes_of(text: str) -> Tensor:
    """Returns JSON text, which is ASCII, as a uint8 tensor."""
    return torch.frombuffer(bytearray(text.encode("ascii")), dtype=torch.uint8)


def value_of(message: Tensor) -> Any:
    """Returns the value of a uint8 tensor of JSON text."""
    return json.loads(message.numpy().tobytes())


def named(error: Exception) -> list[str]:
    """Returns the name of the error's class, or of the nearest parent in ``ERRORS``, and its message."""
    for kind in type(error).__mro__:
        if ERRORS.get(kind.__name__) is kind:
            return [kind.__name__, str(error)]
    return [RankError.__name__, f"rank 0 failed: {type(error).__name__}: {error}"]


def error_of(name: str, message: str) -> Exception:
    """Returns the error that ``named`` describes."""
    return ERRORS.get(name, RankError)(message)
