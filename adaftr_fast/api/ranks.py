"""Joins the ranks of torchrun, with what shards tables over them, and opens their output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adaftr_fast.api.places import Place, local, place_of
from adaftr_fast.config import TrainingConfig
from adaftr_fast.distributed import ranks
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.engines import ignore
from adaftr_fast.optim.tables import Sharder
from adaftr_fast.runs.output import Output


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


@contextmanager
def output(place: Place, ranks: Ranks = ALONE) -> Iterator[Output]:
    """Yields the folder of runs that can be resumed, on every rank the same. A URL is also
    uploaded after an error of the block.

    Rank 0 copies and uploads. All ranks raise the errors of ``output_folder``.
    """
    from adaftr_fast.extras.trackers.log import Trackers

    url = place_of(place)
    if isinstance(url, Path):
        yield Output(url, copied=local, open_trackers=Trackers)
        return
    from adaftr_fast.extras.stores import outputs

    with ExitStack() as stack:
        opened: list[outputs.OutputFolder] = []  # on rank 0

        def begin() -> str:
            opened.append(stack.enter_context(outputs.output_folder(url, resumes=True)))
            return str(opened[0].local)

        folder = Path(ranks.after_rank_zero(begin))
        # all ranks must know that the folder is uploaded, which rank 0 does
        save = opened[0].upload_if_due if opened else ignore
        yield Output(folder, url, local, save, Trackers)
        ranks.after_rank_zero(stack.close)
