"""Loads the state of an unfinished run on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.torchrec.rows import ShardedRows
from adaftr_fast.training.checkpoint.files import read_local_rows
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.run_snapshots import Found, RunSnapshots


def load_state(
    ranks: Ranks | None, snapshots: RunSnapshots | None, sharded: Mapping[str, ShardedRows]
) -> tuple[Progress, Mapping[str, Tensor], dict[str, Tensor]] | None:
    """Loads the newest snapshot on all ranks.

    Args:
        ranks: the ranks that train together.
        snapshots: the run's snapshots, or None if none are written; without sharded tensors on rank 0 alone, which
            sends what it reads to the others.
        sharded: the sharded tensors by name. Each rank reads the rows that it owns.

    Returns:
        The progress, the other tensors of the state and the sums of the running means. None without a snapshot.

    Raises:
        CheckpointError: like ``RunSnapshots.load``, or a sharded tensor is missing or has another shape.
    """
    if ranks is not None and not sharded:
        return _from_rank_zero(ranks, snapshots)
    found = None if snapshots is None else snapshots.load()
    if found is not None:
        read_local_rows(found[1], sharded)
    return found


def _from_rank_zero(
    ranks: Ranks, snapshots: RunSnapshots | None
) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
    found: list[Found | None] = [None]  # on rank 0

    def load() -> dict[str, Any] | None:
        found[0] = None if snapshots is None else snapshots.load()
        return found[0] and asdict(found[0][0])

    progress = ranks.from_rank_zero(load)
    if progress is None:
        return None
    _, saved, sums = found[0] or (None, None, None)
    tensors = ranks.tensors_from_rank_zero(None if saved is None else dict(saved))
    return Progress(**progress), tensors, ranks.tensors_from_rank_zero(sums)
