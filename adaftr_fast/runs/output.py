"""The folder that a run writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adaftr_fast.distributed.ranks import Ranks, after_rank_zero
from adaftr_fast.stores import AnyPath, StorePath, as_path, local_folder
from adaftr_fast.stores.path import written_locally


@contextmanager
def output(folder: str | AnyPath, ranks: Ranks | None = None) -> Iterator[Path]:
    """Yields the local folder that stands for ``folder``, on every rank the same; see ``local_folder``.

    Rank 0 downloads and uploads. All ranks raise its errors.
    """
    place = as_path(folder)
    with ExitStack() as stack:
        local = Path(after_rank_zero(ranks, lambda: str(stack.enter_context(local_folder(place)))))
        if ranks is not None and not ranks.is_rank_zero and isinstance(place, StorePath):
            stack.enter_context(written_locally(place, local))
        yield local
