"""Joins the ranks of torchrun, with what shards tables over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adaftr_fast.config import TrainingConfig
from adaftr_fast.distributed import ranks
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.optim.tables import Sharder


@contextmanager
def joined(config: TrainingConfig) -> Iterator[Ranks]:
    """Yields the ranks that train together during the block; ``ALONE`` if this process was started
    alone.

    Raises:
        RankError: as ``distributed.ranks.joined``.
    """
    sharder: Sharder | None = None
    if config.tables == "torchrec":
        from adaftr_fast.extras.torchrec.tables import TorchRecTables

        sharder = TorchRecTables
    with ranks.joined(config.device, config.rank_timeout, sharder) as found:
        yield found
