"""This process among those that train together, one a rank, as torchrun starts them.

Rank 0, the chief, alone reads and writes a run's files and tells the user; what the others need of it is sent to them.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adaftr_fast.errors import RankError

T = TypeVar("T")
GLOO_SOURCE = re.compile(r"\bgloo/[\w/]+\.(cc|h):\d+\]")  # where gloo was, as all of its errors say
ROLL_CALL_SECONDS = 20.0  # that a rank may take to answer once another has waited in vain


def launched() -> bool:
    """Whether torchrun (or a scheduler that sets its variables) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is rank 0, or was started alone."""
    return not launched() or os.environ["RANK"] == "0"


def restarted() -> bool:
    """Whether torchrun started the ranks again after one had failed.

    Raises:
        RankError: it could do so on several machines, each of which counts for itself.
    """
    if _on_several_machines() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise RankError("--restart does not go with torchrun's --max-restarts on several machines: empty --out instead")
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _on_several_machines() -> bool:
    return launched() and os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]


@contextmanager
def joined(device: str, timeout: float) -> Iterator[Ranks | None]:
    """The ranks, within the block; None where this process was started alone.

    Args:
        device: where training shall be: "cpu", or "cuda" for one GPU a rank.
        timeout: seconds that a rank waits for the others before it gives up.

    Raises:
        RankError: a rank failed, is gone or did not answer in time; which and why, where that can be found out.
    """
    if not launched():
        yield None
        return
    if device not in ("cpu", "cuda"):
        raise RankError(f"training.device: expected cpu or cuda, which is one GPU a rank, got {device}")
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ranks = None
    try:
        backend, limit = "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timedelta(seconds=timeout)
        store, rank, size = _meeting_place(limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        ranks = Ranks(store, timeout)
        yield ranks
    except BaseException as error:
        if not is_of_a_collective(error):
            if ranks is not None:
                ranks.leave_reason(error)
            raise
        explained = f"the ranks cannot meet: {error}" if ranks is None else ranks.explanation(error)
        raise RankError(explained) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()  # its threads end with the last reference, which garbage may hold, and must before Python does


def is_of_a_collective(error: BaseException) -> bool:
    """Whether a collective failed, so that another rank is the cause, and not what this one computes."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and bool(GLOO_SOURCE.search(str(error))))


class Ranks:
    """The default process group and what a run does with it. Every rank must call a method, in the same order.

    Attributes:
        rank, size: of this process, and of the group.
        group: for collectives on tensors of the device.
    """

    def __init__(self, store: dist.Store, timeout: float) -> None:
        self.rank, self.size, self.timeout = dist.get_rank(), dist.get_world_size(), timeout
        self._store = store

    @property
    def group(self) -> dist.ProcessGroup:
        # Not held: the group's threads end with its last reference, which must be before the interpreter's end.
        return dist.group.WORLD

    @property
    def is_chief(self) -> bool:
        return self.rank == 0

    def agree(self, what: str, value: Any) -> None:
        """Raises RankError on every rank if ``value`` is not the same on all."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise RankError(f"{what} differ between rank 0 and rank {rank}: start all alike, on the same data")

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        result = torch.tensor(number)
        dist.all_reduce(result, dist.ReduceOp.MAX)
        return int(result)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of the ranks' tensors of one shape."""
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, on the chief; [] elsewhere."""
        values: list[Any] = [None] * self.size if self.is_chief else []
        dist.gather_object(value, values if self.is_chief else None)
        return values

    def from_chief(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the chief, on every rank; an error it raises there is raised on every rank."""
        box: list[Any] = [None, None]
        if self.is_chief:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def tensors_from_chief(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The chief's named tensors on every rank, each on the device type where the chief has it.

        Args:
            tensors: the chief's; ignored elsewhere.
        """
        about = self.from_chief(lambda: [(n, x.shape, x.dtype, x.device.type) for n, x in (tensors or {}).items()])
        result = {}
        for name, shape, dtype, device in about:
            value = tensors[name].contiguous() if self.is_chief else torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(value, 0)
            result[name] = value
        return result

    def leave_reason(self, error: BaseException) -> None:
        """Lets the others know why this rank leaves them, as their ``explanation`` then does."""
        self._store.set_timeout(timedelta(seconds=ROLL_CALL_SECONDS))
        with suppress(RuntimeError):  # the store may be gone; the error itself is what this rank ends with
            self._store.set(f"failed/{self.rank}", " ".join(f"{type(error).__name__}: {error}".split()))

    def explanation(self, error: BaseException) -> str:
        """Why a collective failed: what a rank left as its reason, or which do not answer the roll call that follows.

        A rank that holds the store itself, as rank 0 does without torchrun's, takes its reason with it.
        """
        cause = str(error).splitlines()[0]
        seconds = min(self.timeout, ROLL_CALL_SECONDS)
        self._store.set_timeout(timedelta(seconds=seconds))
        try:
            if reasons := self._reasons():
                return f"rank {self.rank} cannot go on alone: {'; '.join(reasons)}"
            missing = self._missing(seconds)
        except RuntimeError:
            missing = ["0, at which the ranks meet"]
        if not missing:
            return f"rank {self.rank}: all ranks answer, yet: {cause}"
        return (
            f"rank {self.rank} waited in vain for rank {', '.join(map(str, missing))}; the same command goes on from "
            f"the last checkpoint ({cause})"
        )

    def _reasons(self) -> list[str]:
        keys = {rank: f"failed/{rank}" for rank in range(self.size)}
        return [
            f"rank {rank} failed: {self._store.get(key).decode()}"
            for rank, key in keys.items()
            if self._store.check([key])
        ]

    def _missing(self, seconds: float) -> list[int]:
        self._store.set(f"present/{self.rank}", "")
        end = time.monotonic() + seconds
        while missing := [rank for rank in range(self.size) if not self._store.check([f"present/{rank}"])]:
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return missing


def _meeting_place(limit: timedelta) -> tuple[dist.Store, int, int]:
    """The store that all ranks can reach, this process's rank, and how many there are.

    torchrun's processes share its own store by default, also with those that a restart replaces, whose addresses they
    would find there. On one machine all know the number of the restart and keep apart by it. On several they do not,
    and need a store that starts with them.
    """
    variables = os.environ
    shared = variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if _on_several_machines() and shared and int(variables.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise RankError("restarts on several machines: start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
    store, rank, size = next(dist.rendezvous("env://", timeout=limit))
    if shared:
        store = dist.PrefixStore(variables.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    return store, rank, size
