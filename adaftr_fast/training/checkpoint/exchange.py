"""Exchanges the content of a run's files between rank 0, which reads and writes them, and the other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from adaftr_fast._tensor_file import SavedTensors, in_file_order
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import CheckpointError
from adaftr_fast.torchrec.rows import ShardedRows
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.run_snapshots import Found, RunSnapshots


def load_on_all_ranks(
    ranks: Ranks, snapshots: RunSnapshots | None, sharded: Mapping[str, ShardedRows]
) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
    """Loads the newest snapshot on rank 0 and distributes it to all ranks.

    Args:
        ranks: the ranks.
        snapshots: on rank 0 the run's snapshots, or None if none are written; None on the other ranks.
        sharded: the sharded tensors by name. Their rows are written to the ranks that own them.

    Returns:
        The progress, the other tensors of the state and the sums of the running means. None without a snapshot.
    """
    found: list[Found | None] = [None]  # on rank 0

    def load() -> dict[str, Any] | None:
        found[0] = None if snapshots is None else snapshots.load()
        return found[0] and asdict(found[0][0])

    progress = ranks.from_rank_zero(load)
    if progress is None:
        return None
    _, saved, sums = found[0] or (None, None, None)
    return Progress(**progress), distribute(ranks, saved, sharded), ranks.tensors_from_rank_zero(sums)


def distribute(
    ranks: Ranks, saved: SavedTensors | dict[str, Tensor] | None, sharded: Mapping[str, ShardedRows]
) -> dict[str, Tensor]:
    """Broadcasts rank 0's tensors, and writes the rows of sharded ones to the ranks that own them.

    Args:
        ranks: the ranks.
        saved: the tensors on rank 0, from a file if any are sharded; None on the other ranks.
        sharded: the sharded tensors by name.

    Returns:
        The tensors that are not sharded, on every rank.

    Raises:
        CheckpointError: a sharded tensor is missing or has another shape.
    """
    ranks.from_rank_zero(lambda: _check(saved, sharded))
    for name, rows in sharded.items():
        rows.fill(saved.rows(name) if isinstance(saved, SavedTensors) else None)
    mine = None if saved is None else {name: saved[name] for name in saved if name not in sharded}
    return ranks.tensors_from_rank_zero(mine)


def send_shards(sharded: Mapping[str, ShardedRows]) -> None:
    """Sends this rank's rows of all sharded tensors while rank 0 writes them to a file."""
    for name in in_file_order(sharded):
        sharded[name].send()


def _check(saved: SavedTensors | dict[str, Tensor] | None, sharded: Mapping[str, ShardedRows]) -> None:
    for name, rows in sharded.items():
        found = saved.shape(name) if isinstance(saved, SavedTensors) and name in saved else None
        if found != tuple(rows.shape):
            raise CheckpointError(f"saved state: {name}: expected shape {tuple(rows.shape)}, got {found}")
