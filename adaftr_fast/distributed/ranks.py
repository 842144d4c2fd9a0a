"""The ranks of a training run: joining the process group, exchanging values, and naming a failed
rank.

torchrun starts one process per rank. Only rank 0 reads and writes the run's files and prints to the
user. It sends the other ranks what they need. Ranks exchange plain values as JSON, and tensors;
they pickle nothing.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from adaftr_fast import _startup, errors
from adaftr_fast._startup import launched
from adaftr_fast.errors import RankError, UserError, first_line

if TYPE_CHECKING:
    from adaftr_fast.optim.tables import Sharder

BUILTINS: tuple[type[Exception], ...] = (IndexError, OSError, TypeError, ValueError)
ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (*vars(errors).values(), *BUILTINS)
    if kind in BUILTINS or (isinstance(kind, type) and issubclass(kind, UserError))
}
"""The errors that a message can name."""


def text_of(value: Any, sender: str) -> str:
    """Returns a plain value as JSON text, with NaN and infinities.

    Args:
        value: None, a bool, int, float or str, or a list, or a dict with str keys, of such values.
        sender: the method, for the error message.

    Raises:
        TypeError: the value is of another type, or contains one.
    """
    _check(value, sender)
    return json.dumps(value)


def _check(value: Any, sender: str) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                kind = type(key).__name__
                raise TypeError(f"{sender}: expected str as keys of dicts, got {kind}: {key!r}")
            _check(each, sender)
    elif isinstance(value, list):
        for each in value:
            _check(each, sender)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(
            f"{sender}: expected a plain value (None, bool, int, float, str, list, or dict with "
            f"str keys), got {type(value).__name__}"
        )


def bytes_of(text: str) -> Tensor:
    """Returns JSON text, which is ASCII, as a uint8 tensor."""
    return torch.frombuffer(bytearray(text.encode("ascii")), dtype=torch.uint8)


def value_of(message: Tensor) -> Any:
    """Returns the value of a uint8 tensor of JSON text."""
    return json.loads(message.numpy().tobytes())


def named(error: Exception) -> list[str]:
    """Returns the name of the error's class, or of the nearest parent in ``ERRORS``, and its
    message.
    """
    for kind in type(error).__mro__:
        if ERRORS.get(kind.__name__) is kind:
            return [kind.__name__, str(error)]
    return [RankError.__name__, f"rank 0 failed: {type(error).__name__}: {error}"]


def error_of(name: str, message: str) -> Exception:
    """Returns the error that ``named`` describes."""
    return ERRORS.get(name, RankError)(message)


GLOO_SOURCE = re.compile(r"\bgloo/[\w/]+\.(cc|h):\d+\]")  # the source location in every gloo error
SIGN_SECONDS, WATCH_SECONDS, DONE = 5.0, 0.2, "done"  # of a rank for which the others wait
T = TypeVar("T")
LONGEST = 1e9  # seconds of a timeout; torch takes no much longer ones
RESPONSE_SECONDS = 20.0  # time that a rank has to respond after another one timed out


def is_first() -> bool:
    """Returns whether this process is rank 0 or was started alone."""
    return not launched() or os.environ["RANK"] == "0"


def restarted() -> bool:
    """Returns whether torchrun restarted the ranks after a failure.

    Raises:
        RankError: torchrun may restart ranks on several machines, each of which counts its own
            restarts.
    """
    if _on_several_machines() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise RankError(
            "--restart cannot be combined with torchrun's --max-restarts on several machines: "
            "empty --out instead"
        )
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_share() -> slice:
    """Returns the part of a list that belongs to this rank if the ranks of its machine share the
    work.
    """
    size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return slice(int(os.environ.get("LOCAL_RANK", "0")) % size, None, size)


def _on_several_machines() -> bool:
    return launched() and os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]


@contextmanager
def joined(device: str, timeout: float, sharder: Sharder | None = None) -> Iterator[Ranks]:
    """Joins the process group for the block and yields the ranks, ``ALONE`` if this process was
    started alone.

    Args:
        device: the device to train on: "cpu", or "cuda" for one GPU per rank.
        timeout: time in seconds that a rank waits for the others.
        sharder: see ``Ranks``.

    Raises:
        RankError: a rank failed, exited or timed out. The message names the rank and the cause
            where they are known.
    """
    if not launched():
        yield ALONE
        return
    end_with_launcher()
    if device not in ("cpu", "cuda"):
        raise RankError(f"training.device: expected cpu or cuda (one GPU per rank), got {device}")
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ranks = None
    try:
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        timeout = min(timeout, LONGEST)
        limit = timedelta(seconds=timeout)
        store, rank, size = _rendezvous(limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        ranks = JoinedRanks(store, timeout, sharder)
        # a rank that ends before the others have connected would make them fail to
        dist.all_reduce(torch.zeros(1))
        yield ranks
    except BaseException as error:
        if not is_of_a_collective(error):
            if ranks is not None:
                ranks.leave_reason(error)
            raise
        message = (
            f"the ranks cannot connect: {error}" if ranks is None else ranks.explanation(error)
        )
        raise RankError(message) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
            # the group's threads end with its last reference, and must end before the interpreter
            # does
            gc.collect()


def is_of_a_collective(error: BaseException) -> bool:
    """Returns whether a collective raised the error, so that the cause is another rank and not this
    one.
    """
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and bool(GLOO_SOURCE.search(str(error)))
    )


class Ranks:
    """The ranks that train together: this process alone. ``JoinedRanks`` are those of a process
    group.

    All ranks must call the methods in the same order.

    Attributes:
        rank: the rank of this process.
        size: the number of ranks.
        is_alone: whether this process trains alone, without a process group.
        group: the process group, for collectives on tensors of the device.
        sharder: divides the tables of a model among the ranks; None if they are to be replicated.
    """

    rank = 0
    size = 1
    is_alone = True
    sharder: Sharder | None = None

    @property
    def group(self) -> dist.ProcessGroup:
        # Not stored: the group's threads end with its last reference, and must end before the
        # interpreter does.
        world = dist.group.WORLD
        assert world is not None  # joined() yields several ranks only while the group exists
        return world

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    def agree(self, what: str, value: Any) -> None:
        """Raises RankError on every rank if the plain value ``value`` differs between ranks."""

    def gathered(self, value: Any) -> list[Any]:
        """Returns every rank's plain value on every rank, as read from JSON. Raises TypeError as
        ``from_rank_zero``.
        """
        return [value]

    def largest(self, number: int) -> int:
        """Returns the maximum of the ranks' numbers."""
        return number

    def mean(self, value: Tensor) -> Tensor:
        """Returns the mean of the ranks' tensors, which have one shape."""
        return value

    def from_rank_zero(self, make: Callable[[], T]) -> T:
        """Calls ``make`` on rank 0 and returns its result on every rank, of several as read from
        JSON.

        Args:
            make: a function that returns a plain value: None, a bool, int, float or str, or a list,
                or a dict with str keys, of such values. NaN and infinities are kept. A process
                alone may return any value.

        Raises:
            TypeError: the result is not a plain value.
            Exception: ``make`` raised it. On the other ranks it has the same message and, if it is
                a UserError, IndexError, OSError, TypeError or ValueError, the same class, else
                RankError.
        """
        return make()

    def after_rank_zero(self, make: Callable[[], T]) -> T:
        """Does what ``from_rank_zero`` does, for work of any length, such as reading all of a data
        set.

        Raises:
            DistError: another rank failed, or rank 0 gives no sign of life. ``joined`` names the
                rank.
            Exception: as ``from_rank_zero``.
        """
        return make()

    def tensors_from_rank_zero(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Returns rank 0's named tensors on every rank, each on the device type that it has on rank
        0.

        Args:
            tensors: the tensors on rank 0; ignored elsewhere.
        """
        return tensors or {}

    def tensors_to_rank_zero(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Returns every rank's named CPU tensors on rank 0, and an empty list elsewhere.

        Args:
            tensors: the tensors of this rank. Names, shapes and dtypes may differ between ranks.
        """
        return [tensors]


ALONE = Ranks()


class JoinedRanks(Ranks):
    """The ranks of the default process group.

    Args:
        store: the store of the group.
        timeout: the seconds that a rank waits for the others.
        sharder: see ``Ranks``.
    """

    is_alone = False

    def __init__(self, store: Store, timeout: float, sharder: Sharder | None = None) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.timeout = timeout
        self.sharder = sharder
        self._store = store
        self._waits = 0

    def agree(self, what: str, value: Any) -> None:
        first, *others = self.gathered(text_of(value, "Ranks.agree"))
        for rank, other in enumerate(others, start=1):
            if other != first:
                raise RankError(
                    f"{what} differ between rank 0 and rank {rank}: start all ranks with the same "
                    "settings and data"
                )

    def gathered(self, value: Any) -> list[Any]:
        own = bytes_of(text_of(value, "Ranks.gathered"))
        sizes = [torch.tensor(0) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor(len(own)))
        longest = max(map(int, sizes))
        texts = [own.new_empty(longest) for _ in sizes]
        dist.all_gather(texts, torch.cat([own, own.new_zeros(longest - len(own))]))
        return [value_of(each[: int(size)]) for each, size in zip(texts, sizes)]

    def largest(self, number: int) -> int:
        result = torch.tensor(number)
        dist.all_reduce(result, dist.ReduceOp.MAX)
        return int(result)

    def mean(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def from_rank_zero(self, make: Callable[[], T]) -> T:
        failure = None
        message = torch.empty(0, dtype=torch.uint8)
        if self.is_rank_zero:
            try:
                text = text_of({"value": make()}, "Ranks.from_rank_zero")
            except Exception as error:
                text = text_of({"error": named(error)}, "Ranks.from_rank_zero")
                failure = error
            message = bytes_of(text)
        size = torch.tensor(len(message))
        dist.broadcast(size, 0)
        message = message.resize_(int(size))
        dist.broadcast(message, 0)
        if failure is not None:
            raise failure
        content = value_of(message)
        if "error" in content:
            raise error_of(*content["error"])
        value: T = content["value"]
        return value

    def after_rank_zero(self, make: Callable[[], T]) -> T:
        """See ``Ranks``. The other ranks watch the store instead of waiting in a collective.

        They wait as long as rank 0 gives a sign of life, which a thread of it does, and ``timeout``
        seconds longer.
        """
        self._waits += 1
        wait = f"wait/{self._waits}"
        outcome: Future[T] = Future()
        if not self.is_rank_zero:
            self._watch(wait)
        else:
            with self._signs_of_life(wait):
                try:
                    outcome.set_result(make())
                except Exception as error:
                    outcome.set_exception(error)
        return self.from_rank_zero(outcome.result)

    @contextmanager
    def _signs_of_life(self, wait: str) -> Iterator[None]:
        """Changes the value of the key ``wait`` during the block, and sets it to DONE after it,
        unless it raises.
        """
        ended = threading.Event()

        def live() -> None:
            # the store has gone, which this rank's next collective reports
            with suppress(RuntimeError):
                for sign in itertools.count():
                    self._store.set(wait, str(sign))
                    if ended.wait(min(SIGN_SECONDS, self.timeout / 4)):
                        return

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        self._store.set(wait, DONE)

    def _watch(self, wait: str) -> None:
        """Returns when the key ``wait`` is DONE. Raises DistError if a rank fails, or if the key
        stays as it is.
        """
        seen = ""
        end = time.monotonic() + self.timeout
        while (now := self._store.get(wait).decode() if self._store.check([wait]) else "") != DONE:
            if now != seen:
                seen = now
                end = time.monotonic() + self.timeout
            if self._store.check(["failed"]):
                raise dist.DistError("a rank failed")  # ``explanation`` names it
            if time.monotonic() > end:
                raise dist.DistError("rank 0 gives no sign of life")
            time.sleep(WATCH_SECONDS)

    def tensors_from_rank_zero(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        own = tensors or {}
        result = {}
        for name, *spec in self.from_rank_zero(lambda: _specs(own)):
            value = own[name].contiguous() if self.is_rank_zero else _empty(*spec)
            dist.broadcast(value, 0)
            result[name] = value
        return result

    def tensors_to_rank_zero(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        specs = self.gathered(_specs(tensors))
        if not self.is_rank_zero:
            for value in tensors.values():
                if value.numel():
                    dist.send(value.contiguous(), 0)
            return []
        result = [tensors]
        for rank in range(1, self.size):
            result.append({name: _empty(*spec) for name, *spec in specs[rank]})
            for value in result[rank].values():
                if value.numel():
                    dist.recv(value, rank)
        return result

    def leave_reason(self, error: BaseException) -> None:
        """Stores this rank's error, so that the other ranks' ``explanation`` reports it."""
        self._store.set_timeout(timedelta(seconds=RESPONSE_SECONDS))
        with suppress(RuntimeError):  # the store may be gone; this rank raises the error itself
            self._store.set(
                f"failed/{self.rank}", " ".join(f"{type(error).__name__}: {error}".split())
            )
            self._store.set("failed", "")

    def explanation(self, error: BaseException) -> str:
        """Returns why a collective failed: the errors that other ranks stored, or the ranks that do
        not respond.

        Without torchrun's store, rank 0 holds the store, and its own error is lost with it.
        """
        cause = first_line(error)
        seconds = min(self.timeout, RESPONSE_SECONDS)
        self._store.set_timeout(timedelta(seconds=seconds))
        try:
            if reasons := self._reasons():
                return f"rank {self.rank} stopped: {'; '.join(reasons)}"
            missing = [str(rank) for rank in self._missing(seconds)]
        except RuntimeError:
            missing = ["0, which holds the store"]
        if not missing:
            return f"rank {self.rank}: a collective failed although all ranks respond: {cause}"
        return (
            f"rank {self.rank} timed out waiting for rank {', '.join(missing)}; the same command "
            "resumes "
            f"from the last checkpoint ({cause})"
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
        while missing := [
            rank for rank in range(self.size) if not self._store.check([f"present/{rank}"])
        ]:
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return missing


def _specs(tensors: dict[str, Tensor]) -> list[list[Any]]:
    """Describes named tensors by plain values: name, shape, dtype and device type of each."""
    return [
        [n, list(x.shape), str(x.dtype).removeprefix("torch."), x.device.type]
        for n, x in tensors.items()
    ]


def _empty(shape: list[int], dtype: str, device: str) -> Tensor:
    kind = getattr(torch, dtype)
    assert isinstance(kind, torch.dtype)  # the name comes from _specs
    return torch.empty(shape, dtype=kind, device=device)


def _rendezvous(limit: timedelta) -> tuple[Store, int, int]:
    """Returns the ranks' store, this process's rank and the number of ranks.

    By default, restarted processes reuse torchrun's store and would find the addresses of the
    processes they replace. On one machine, all ranks know the number of the restart, which serves
    as a prefix. On several machines they do not know it, so they need a store that starts with
    them.
    """
    variables = os.environ
    shared = variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if (
        _on_several_machines()
        and shared
        and int(variables.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    ):
        raise RankError(
            "restarts on several machines need a new store: start torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        )
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
    except ValueError as error:  # a variable is missing or is not a number
        raise RankError(f"the ranks cannot connect: {error}") from error
    if shared:
        store = PrefixStore(variables.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    return store, rank, size


def end_with_launcher() -> None:
    """Makes Linux kill this process when torchrun, its parent, ends. Does nothing without torchrun
    or Linux.

    torchrun ends its ranks, unless it is killed by SIGKILL. They would train on, or wait for each
    other until ``training.rank_timeout``, and keep the run locked.

    Raises:
        RankError: torchrun has ended already.
    """
    # The signal is that of a parent that ends from now on.
    if _startup.end_with_launcher() and os.getppid() != _startup.PARENT:
        raise RankError("torchrun, which started this rank, has ended")
