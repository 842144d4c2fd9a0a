"""Tensor files named by a checksum: written durably, and verified before they are read.

With sharded tables each rank writes a *shard file* with the rows that it holds. Rank 0 then writes
a file that lists the shard files with their checksums, and so commits them. All ranks must see the
folder.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

from torch import Tensor

from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.distributed.rows import ShardedRows
from adaftr_fast.errors import CheckpointError
from adaftr_fast.files.tensors import Checksum, SavedTensors, shard_key, write_tensors
from adaftr_fast.files.whole import new_beside, replace

MARK = ".ranks"  # a file with which the ranks check that they see one folder


def write_file(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    checksum: Checksum | None = None,
) -> tuple[str, str]:
    """Writes a file, which is on disk on return, with its name.

    Args:
        folder: the folder of the file.
        name: the name of the file, in which ``{}`` is replaced by the checksum and ``{:.16}`` by 16
            digits of it.
        tensors: the tensors by name.
        metadata: the metadata.
        checksum: a new checksum; by default SHA-256.

    Returns:
        The file's name and the checksum of its content in hexadecimal.

    Raises:
        OSError: the file cannot be written.
    """
    with new_beside(folder / name.format("")) as new:
        digest = write_tensors(new, tensors, metadata, checksum)
        named = folder / name.format(digest)
        replace(new, named)
    return named.name, digest


def local_rows(sharded: Mapping[str, ShardedRows]) -> dict[str, Tensor]:
    """Returns the rows on this rank, with the names that they have in a shard file."""
    return {
        shard_key(name, first): rows for name, each in sharded.items() for first, rows in each.local
    }


def read_local_rows(saved: SavedTensors, sharded: Mapping[str, ShardedRows]) -> None:
    """Reads the rows of this rank from files that every rank sees.

    Raises:
        CheckpointError: a tensor is missing or has another shape. Nothing is read then.
    """
    for name, rows in sharded.items():
        found = saved.shape(name) if name in saved else None
        if found != tuple(rows.shape):
            raise CheckpointError(
                f"saved state: {name}: expected shape {tuple(rows.shape)}, got {found}"
            )
    for name, rows in sharded.items():
        rows.read(saved.rows(name))


def damages(
    folder: Path,
    checksums: Mapping[str, str],
    checksum: Callable[[Path], str],
    ranks: Ranks = ALONE,
) -> list[str]:
    """Returns what is wrong with files, for the user; empty if they are all as they were written.

    All ``ranks`` must call it with the same files. Each reads some of them, and all return or raise
    the same.

    Args:
        folder: the folder of the files.
        checksums: the recorded checksum of each file, by name.
        checksum: returns that of a file.
        ranks: the ranks that call it.

    Raises:
        CheckpointError: a file cannot be read for another reason than that it is missing.
    """
    damaged: list[str] = []
    unread: list[str] = []
    for name, recorded in [*checksums.items()][ranks.rank :: ranks.size]:
        path = folder / name
        try:
            if checksum(path) != recorded:
                damaged.append(
                    f"{path}: damaged: its {path.stat().st_size} bytes have another checksum than "
                    "recorded"
                )
        except FileNotFoundError:
            damaged.append(f"{path}: missing")
        except OSError as error:
            unread.append(f"{path}: cannot be read: {error}")
    damaged, unread = (list(chain(*each)) for each in zip(*ranks.gathered([damaged, unread])))
    if unread:
        raise CheckpointError(unread[0])
    return damaged


def check_shared_folder(folder: Path, ranks: Ranks, reason: str) -> None:
    """Creates ``folder`` on rank 0. Raises CheckpointError, with the reason, on all ranks unless
    all of them see it.

    A process alone need not check.
    """
    if ranks.is_alone:
        return
    mark = folder / MARK

    def write() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        text = secrets.token_hex(8)
        mark.write_text(text)
        return text

    text = ranks.from_rank_zero(write)
    sees = ranks.gathered(_content(mark) == text)
    ranks.from_rank_zero(mark.unlink)
    check_seen(folder, sees[ranks.rank], ranks, reason)


def check_seen(folder: Path, seen: bool, ranks: Ranks, reason: str) -> None:
    """Raises CheckpointError on all ranks unless each rank sees the folder.

    Args:
        folder: the folder.
        seen: whether this rank sees it.
        ranks: the ranks, which all call it.
        reason: why they must see it, for the message.
    """
    blind = [str(rank) for rank, each in enumerate(ranks.gathered(seen)) if not each]
    if blind:
        raise CheckpointError(
            f"{folder}: rank {', '.join(blind)} does not see rank 0's folder at this path: "
            f"{reason}, so it must be on "
            "a file system that all ranks share"
        )


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
