"""What an engine does, whatever it runs on, and the engine of this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from adaftr_fast.errors import EngineError

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[int], object]
"""Reports an amount of finished work to a progress bar."""
Step = Callable[[Item, Advance], Result]
"""A function of an item, which reports its progress. An engine may call it twice for an item, even at the same time."""

_limit: int | None = None  # of cores


class Engine(Protocol):
    """Calls a function for each of several items.

    Attributes:
        remote: whether the calls run in other processes, on machines that share a file system with this one. The
            function, items and results are pickled then.
    """

    remote: bool

    def map(
        self,
        function: Step[Item, Result],
        items: Iterable[Item],
        *,
        done: Callable[[int, Result], object] = ...,
        advance: Advance = ...,
    ) -> list[Result]:
        """Returns the results in the order of the items. The number of calls in progress is bounded.

        Args:
            items: taken one after the other, when there is a place for another call. Those after a call is done may
                depend on its result.
            done: called in this process with the index and the result of each finished call, in any order.
            advance: called in this process with the amounts of work that the calls report.

        Raises:
            Exception: what a call raised, or ``done``. The other calls are cancelled, as they are after Ctrl-C.
            EngineError: the engine cannot run the calls.
        """


def ignore(*_: object) -> None:
    """Does nothing: the default of ``done`` and ``advance``."""


class Local:
    """The engine of one process; see ``Engine``.

    The calls run one after the other. Each may use threads of its own on all cores.
    """

    remote = False

    def map(
        self,
        function: Step[Item, Result],
        items: Iterable[Item],
        *,
        done: Callable[[int, Result], object] = ignore,
        advance: Advance = ignore,
    ) -> list[Result]:
        """Returns the results; see ``Engine.map``."""
        results = []
        for index, item in enumerate(items):
            results.append(function(item, advance))
            done(index, results[-1])
        return results


def on_one_thread(function: Callable[[Item], Result]) -> Step[Item, Result]:
    """Returns a step that calls the function on one thread, with the working folder that this process has now.

    Such calls give the same bits wherever and beside however many others they run.

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


def cores() -> int:
    """Returns the number of cores this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return available if _limit is None else min(available, _limit)


def limit_cores(count: int) -> None:
    """Makes ``cores`` return at most ``count`` in this process, which shares its machine with other calls."""
    global _limit
    _limit = count
