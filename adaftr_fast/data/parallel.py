"""Shards of the rows of a log, and streams whose items are computed in threads.

Arrow's kernels release the GIL, so threads use all cores.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from adaftr_fast.data.memory import DEFAULT, Memory
from adaftr_fast.engines import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """Shard ``number`` of ``count``, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def all(cls, count: int) -> list[Shard]:
        """Returns all ``count`` shards in order."""
        return [cls(number + 1, count) for number in range(count)]

    @property
    def stride(self) -> slice:
        """Selects every ``count``-th item of a list, starting with item ``number``."""
        return slice(self.number - 1, None, self.count)


UNSHARDED = Shard()


def check_not_forked(starter: int) -> None:
    """Raises RuntimeError if process ``starter`` started the iterator that this process, a fork of
    it, continues.
    """
    if os.getpid() != starter:
        raise RuntimeError(
            "adaftr_fast: this iterator was started before the process was forked, and a fork does "
            "not copy its "
            "threads: start it in the worker process"
        )


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    size: Callable[[Item], int],
    memory: Memory = DEFAULT,
) -> Iterator[Result]:
    """Maps ``function`` over ``items`` in threads. Results keep the order.

    At most two items per core are in memory, and of large ones those that fit ``memory.held``.

    Args:
        size: returns the bytes of memory that an item needs until its result is yielded.
        memory: the bound of this process.

    Raises:
        ConfigError: an item does not fit.
        RuntimeError: a forked process continues the iterator of its parent.
    """
    count = cores()
    starter = os.getpid()
    waiting: deque[tuple[Future[Result], int]] = deque()
    held = 0

    def oldest() -> Result:
        nonlocal held
        check_not_forked(starter)
        future, freed = waiting.popleft()
        held -= freed
        return future.result()

    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                needed = size(item)
                memory.check(needed)
                while waiting and held + needed > memory.held:
                    yield oldest()
                waiting.append((pool.submit(function, item), needed))
                held += needed
                while len(waiting) > count:
                    yield oldest()
            while waiting:
                yield oldest()
        finally:
            for future, _ in waiting:  # after an error, do not start the remaining items
                future.cancel()


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items while a thread computes the next one. Raises RuntimeError in a fork of the
    process.
    """
    starter = os.getpid()
    with ThreadPoolExecutor(1, "adaftr-fast-loader") as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item
            check_not_forked(starter)
