"""The engine of a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

from adaftr_fast.engines import Advance, Engine, Finished, Item, Result, Step, Todo, limit_cores
from adaftr_fast.errors import ConfigError, EngineError, extras_needed, first_line

RETRIES = 5  # of a call whose worker is lost
MAX_CPUS = 8  # of a call: more calls with fewer cores each divide the work better
QUEUED = 2  # calls per place to run one: the next is at hand when one ends
CONNECT_SECONDS = 10.0
PATIENCE = 60.0  # seconds without a result after which the cluster is looked at


class Ray(Engine):
    """The engine of the Ray cluster that this process is connected to.

    Args:
        cpus: cores of a call. None takes those of the smallest node, at most ``MAX_CPUS``.
        retries: how often a call is repeated after its worker is lost. A call that raises an error
            is not repeated.
        limit: how many calls are in progress at most; None for ``QUEUED`` per place to run one.
        grace: how many seconds calls have to end after they are interrupted, before they are
            killed.
    """

    def __init__(
        self,
        cpus: int | None = None,
        retries: int = RETRIES,
        *,
        limit: int | None = None,
        grace: float = 0.0,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit of calls in progress: expected >= 1, got {limit}")
        self._cpus = cpus
        self._retries = retries
        self._limit = limit
        self._grace = grace

    def _finished(self, function: Step[Any, Any], todo: Todo, advance: Advance) -> Finished:
        import ray

        cpus = self._cpus or _cpus()
        task = ray.remote(_call_on_node).options(
            num_cpus=cpus,
            max_retries=self._retries,
            retry_exceptions=False,
            scheduling_strategy="SPREAD",
        )
        shared = ray.put(function)
        running: dict[Any, int] = {}
        try:
            while True:
                room = self._limit or max(1, QUEUED * _places(cpus))
                for index, item in islice(todo, max(0, room - len(running))):
                    running[task.remote(shared, item, cpus)] = index
                if not running:
                    return
                finished, _ = ray.wait(list(running), timeout=PATIENCE)
                if not finished and not _places(cpus):
                    warnings.warn(
                        f"no node of the Ray cluster has {cpus} CPUs; waiting for one", stacklevel=3
                    )
                for call in finished:
                    index = running.pop(call)
                    result, amount = _result(call)
                    advance(amount)
                    yield index, result
        finally:
            _cancel(list(running), self._grace)


@contextmanager
def ray_engine(address: str = "auto") -> Iterator[Ray]:
    """Connects to a Ray cluster during the block; a connection that this process has already is
    used and stays.

    Args:
        address: HOST:PORT of the cluster; "auto" finds the one that this machine belongs to.

    Raises:
        MissingPackageError: ray is not installed.
        EngineError: there is no such cluster.
    """
    with extras_needed("engine ray: "):
        import ray
    if ray.is_initialized():
        yield Ray()
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_answers(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        start = "start one with `ray start --head`, or name its address as HOST:PORT"
        raise EngineError(
            f"engine ray: no cluster at address {address!r}: {first_line(error)}; {start}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # which ray.init has replaced by one that exits with status 15
        signal.signal(signal.SIGTERM, handler)
    try:
        yield Ray()
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises OSError or ValueError if nothing listens at HOST:PORT, for which Ray would wait many
    minutes.
    """
    host, colon, port = address.rpartition(":")
    if colon and "//" not in address:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _call_on_node(
    function: Step[Item, Result], item: Item, cpus: int
) -> tuple[Result, int] | Exception:
    """Runs in a worker: returns the result and the amount of work that the call has reported, or
    what it raised.
    """
    limit_cores(cpus)
    amounts: list[int] = []
    try:
        return function(item, amounts.append), sum(amounts)
    # the call is cancelled; an import may be half done, so this worker takes no other call
    except KeyboardInterrupt:
        os._exit(1)
    except Exception as error:
        error.add_note(f"raised on node {socket.gethostname()}:\n{traceback.format_exc()}")
        return error


def _result(call: Any) -> tuple[Any, int]:
    """Returns what ``_call_on_node`` returned, or raises what it caught."""
    import ray

    try:
        found = ray.get(call)
    except ray.exceptions.RayError as error:
        what = "a call was lost, also when it was repeated"
        if isinstance(error, ray.exceptions.RayTaskError):  # a result cannot be pickled
            what = "a call failed"
        raise EngineError(
            f"engine ray: {what}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if isinstance(found, Exception):
        raise found
    return found


def _cancel(calls: list[Any], grace: float) -> None:
    """Interrupts calls as Ctrl-C does, and kills those that have not ended after ``grace`` seconds;
    at once for 0.
    """
    import ray

    with suppress(Exception):  # the connection may be lost, which may be the error itself
        for call in calls if grace else ():
            ray.cancel(call)
        # Ray 2.60 ends this process if it is to kill a call whose result is just arriving.
        _, left = ray.wait(calls, num_returns=len(calls), timeout=grace) if calls else ([], [])
        for call in left:
            ray.cancel(call, force=True)


def _node_cpus() -> list[int]:
    """Returns the CPUs of each node that is alive and has any."""
    import ray

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [cpus for cpus in nodes if cpus]


def _cpus() -> int:
    """Returns the cores of a call, so that every node can run one."""
    return min([*_node_cpus(), MAX_CPUS])


def _places(cpus: int) -> int:
    """Returns how many calls the cluster can run at the same time."""
    return sum(each // cpus for each in _node_cpus())
