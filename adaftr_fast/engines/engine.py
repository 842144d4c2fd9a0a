"""What an engine does, whatever it runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[int], object]
"""Reports an amount of finished work to a progress bar."""
Step = Callable[[Item, Advance], Result]
"""A function of an item, which reports its progress. An engine may call it twice for an item, even at the same time."""


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
