"""Engines run pure functions, one call per item, in this process or on several machines."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from adaftr_fast.errors import EngineError

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[int], object]
"""Reports an amount of finished work to a progress bar."""
Step = Callable[[Item, Advance], Result]
"""A function of an item, which reports its progress. An engine may call it twice for an item, even
at the same time.
"""
Todo = Iterator[tuple[int, Any]]
"""The index of each item, and the item."""
Finished = Generator[tuple[int, Any]]
"""The index of each finished call, and its result."""

_limit: int | None = None  # of cores


def ignore(*_: object) -> None:
    """Does nothing: the default of ``done`` and ``advance``."""


class Engine:
    """Calls a function for each of several items.

    Attributes:
        remote: whether the calls run in other processes, on machines that share a file system with
            this one. The function, items and results are pickled then.
    """

    remote = True

    def map(
        self,
        function: Step[Item, Result],
        items: Iterable[Item],
        *,
        done: Callable[[int, Result], object] = ignore,
        advance: Advance = ignore,
    ) -> list[Result]:
        """Returns the results in the order of the items. The number of calls in progress is
        bounded.

        Args:
            items: taken one after the other, when there is a place for another call. Those after a
                call is done may depend on its result.
            done: called in this process with the index and the result of each finished call, in any
                order.
            advance: called in this process with the amounts of work that the calls report; by a
                remote engine, once for each finished call.

        Raises:
            Exception: what a call raised, or ``done``. The other calls are cancelled, as they are
                after Ctrl-C.
            EngineError: the engine cannot run the calls.
        """
        results: dict[int, Result] = {}
        with closing(self._finished(function, enumerate(items), advance)) as finished:
            for index, result in finished:
                results[index] = result
                done(index, result)
        return [results[index] for index in sorted(results)]

    def _finished(self, function: Step[Any, Any], todo: Todo, advance: Advance) -> Finished:
        """Yields the index and the result of each call when it is finished. Cancels the others when
        it is closed.
        """
        raise NotImplementedError


class Local(Engine):
    """The engine of one process.

    The calls run one after the other. Each may use threads of its own on all cores.
    """

    remote = False

    def _finished(self, function: Step[Any, Any], todo: Todo, advance: Advance) -> Finished:
        for index, item in todo:
            yield index, function(item, advance)


def on_one_thread(function: Callable[[Item], Result]) -> Step[Item, Result]:
    """Returns a step that calls the function on one thread, with the working folder that this
    process has now.

    Such calls give the same bits wherever and beside however many others they run.

    Raises, when it is called:
        EngineError: the machine does not see that folder.
    """
    return partial(_call_on_one_thread, function, Path.cwd())


def _call_on_one_thread(
    function: Callable[[Item], Result], folder: Path, item: Item, advance: Advance
) -> Result:
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
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return available if _limit is None else min(available, _limit)


def limit_cores(count: int) -> None:
    """Makes ``cores`` return at most ``count`` in this process, which shares its machine with other
    calls.
    """
    global _limit
    _limit = count
