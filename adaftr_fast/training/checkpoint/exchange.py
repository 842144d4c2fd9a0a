"""What a run's files hold, between the chief, who has them, and the other ranks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adaftr_fast._tensor_file import SavedTensors, in_file_order
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import CheckpointError
from adaftr_fast.torchrec.rows import ShardedRows
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.run_snapshots import RunSnapshots


def load_on_all_ranks(
    ranks: Ranks, snapshots: RunSnapshots | None, sharded: Mapping[str, ShardedRows]
) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
    """What the chief's newest snapshot holds, on every rank; what is ``sharded`` goes where it belongs.

    Args:
        snapshots: the chief's; None elsewhere, or where nothing is saved.
    """
    found: list = [None]  # the chief's

    def load() -> Progress | None:
        found[0] = None if snapshots is None else snapshots.load()
        return found[0] and found[0][0]

    progress = ranks.from_chief(load)
    if progress is None:
        return None
    _, saved, sums = found[0] or (None, None, None)
    return progress, distribute(ranks, saved, sharded), ranks.tensors_from_chief(sums)


def distribute(
    ranks: Ranks, saved: SavedTensors | dict[str, Tensor] | None, sharded: Mapping[str, ShardedRows]
) -> dict[str, Tensor]:
    """The chief's tensors on every rank, but for those that are ``sharded``: their rows go where they belong.

    Args:
        saved: the chief's; None elsewhere. A file, where anything is sharded.

    Raises:
        CheckpointError: something that is sharded is missing or of another shape.
    """
    ranks.from_chief(lambda: _check(saved, sharded))
    for name, rows in sharded.items():
        rows.fill(saved.rows(name) if ranks.rank == 0 else None)
    mine = None if saved is None else {name: saved[name] for name in saved if name not in sharded}
    return ranks.tensors_from_chief(mine)


def send_shards(sharded: Mapping[str, ShardedRows]) -> None:
    """What the others do while the chief writes a file with all that is ``sharded``."""
    for name in in_file_order(sharded):
        sharded[name].send()


def _check(saved: SavedTensors | dict[str, Tensor], sharded: Mapping[str, ShardedRows]) -> None:
    for name, rows in sharded.items():
        found = saved.shape(name) if name in saved else None
        if found != tuple(rows.shape):
            raise CheckpointError(f"saved state: {name}: expected {tuple(rows.shape)}, the checkpoint has {found}")
