"""Runs the calls in this process, one after the other. Each may use threads of its own on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from adaftr_fast.engines.engine import Advance, Item, Result, Step, ignore


class Local:
    """The engine of one process; see ``Engine``."""

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
