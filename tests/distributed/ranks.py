"""Runs a function on several ranks, as processes of this machine."""

import gc
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import tests.forks  # noqa: F401  # names what the fork server imports once for all ranks
from adaftr_fast.distributed.ranks import JoinedRanks, Ranks
from adaftr_fast.extras.torchrec.tables import TorchRecTables

_joined = itertools.count()


def _rank(
    number: int, function: Callable[..., Any], size: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    gc.freeze()  # as in forks.py
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=number, world_size=size
    )
    torch.save(function(number, *arguments), f"{folder}/{number}")
    dist.barrier()
    dist.destroy_process_group()
    gc.collect()  # as in distributed.ranks.joined


def on_ranks(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """Returns the result of ``function(rank, *arguments)`` on each of ``size`` ranks (tensors,
    numbers, strings).
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = (function, size, folder, arguments)
        torch.multiprocessing.start_processes(_rank, whole, size, start_method="forkserver")
        return [torch.load(Path(folder, str(number)), weights_only=True) for number in range(size)]


def joined_ranks(seconds: float = 60) -> Ranks:
    """Returns the ranks of ``on_ranks``, which share a store. All must call it equally often."""
    prefix = f"joined/{next(_joined)}"
    return JoinedRanks(
        dist.PrefixStore(prefix, dist.distributed_c10d._get_default_store()),
        seconds,
        TorchRecTables,
    )
