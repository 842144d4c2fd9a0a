"""Calls of one thread, which give the same bits wherever and beside however many others they run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from adaftr_fast.engines.engine import Advance, Item, Result, Step
from adaftr_fast.errors import EngineError


def on_one_thread(function: Callable[[Item], Result]) -> Step[Item, Result]:
    """Returns a step that calls the function on one thread, with the working folder that this process has now.

    Raises, when it is called:
        EngineError: the machine does not see that folder.
    """
    return partial(_call, function, Path.cwd())


def _call(function: Callable[[Item], Result], folder: Path, item: Item, advance: Advance) -> Result:
    import torch

    torch.set_num_threads(1)
    try:
        os.chdir(folder)
    except OSError as error:
        host = socket.gethostname()
        raise EngineError(
            f"node {host}: does not see {folder}; it must be on a file system that all nodes share"
        ) from error
    return function(item)
