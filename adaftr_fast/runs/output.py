"""The folder that a run writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adaftr_fast.distributed.ranks import Ranks, after_rank_zero
from adaftr_fast.stores import AnyPath, Output, as_path, local_folder


@contextmanager
def output(folder: str | AnyPath, ranks: Ranks | None = None) -> Iterator[Output]:
    """Yields where ``folder`` is written, on every rank the same; see ``local_folder``.

    Rank 0 downloads and uploads. All ranks raise its errors.
    """
    place = as_path(folder)
    with ExitStack() as stack:
        local = after_rank_zero(ranks, lambda: str(stack.enter_context(local_folder(place))))
        yield Output(Path(local), place)
