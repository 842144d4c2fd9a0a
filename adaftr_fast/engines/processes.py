"""Runs the calls in parallel processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Any

from adaftr_fast.engines.engine import Advance, Item, Result, Step, ignore
from adaftr_fast.errors import ConfigError, EngineError


class Processes:
    """The engine of several processes, each of which runs one call at a time; see ``Engine``.

    Ctrl-C interrupts the calls, each once, and waits for them. They end with this process, however it ends.

    Args:
        count: the number of processes.

    Raises:
        ConfigError: there is none.
    """

    remote = True

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ConfigError(f"jobs: expected >= 1, got {count}")
        self._count = count

    def map(
        self,
        function: Step[Item, Result],
        items: Iterable[Item],
        *,
        done: Callable[[int, Result], object] = ignore,
        advance: Advance = ignore,
    ) -> list[Result]:
        """Returns the results; see ``Engine.map``. ``advance`` is called once for each finished call."""
        context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads in an undefined state
        pool = ProcessPoolExecutor(self._count, mp_context=context, initializer=_prepare_process)
        todo = enumerate(items)
        running: dict[Future[Any], int] = {}
        results: dict[int, Result] = {}
        try:
            while True:  # submits only as many calls as run, because the pool cannot cancel queued ones
                for index, item in islice(todo, self._count - len(running)):
                    running[pool.submit(_call, function, item)] = index
                if not running:
                    return [results[index] for index in sorted(results)]
                for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                    index = running.pop(future)
                    results[index], amount = future.result()
                    advance(amount)
                    done(index, results[index])
        except BrokenProcessPool as error:
            raise EngineError(
                "engine local: a process was killed, perhaps for lack of memory; what has finished is kept: run the "
                "same command again, with fewer --jobs if memory is short"
            ) from error
        finally:  # on an error or Ctrl-C, the running calls are interrupted
            for child in multiprocessing.active_children():
                if child.pid is not None:  # started
                    os.kill(child.pid, signal.SIGINT)
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare_process() -> None:
    os.setpgid(0, 0)  # only the parent receives Ctrl-C, and forwards it once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(function: Step[Item, Result], item: Item) -> tuple[Result, int]:
    """Returns the result and the amount of work that the call has reported. The parent's signal interrupts only it."""
    amounts: list[int] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return function(item, amounts.append), sum(amounts)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    """Exits when the parent ends. Otherwise the same command would meet the calls of the one before."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # the processes are spawned
    wait([parent.sentinel])
    os._exit(1)
