"""Jobs done side by side, each in a process of its own kind on one thread, so that their number changes no bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait

import torch
from tqdm import tqdm

from adaftr_fast.errors import ConfigError, TrainingError
from adaftr_fast.experiments.jobs import Job, Outcome, execute, finished


def run_all(jobs: Sequence[Job], *, workers: int, progress: bool) -> dict[str, Outcome]:
    """The outcome of every job by its key; jobs done before are not done again, equal ones once.

    Args:
        workers: processes at the same time, each on one thread.
        progress: show a bar over the runs, with their rate and the time left.

    Raises:
        KeyboardInterrupt: Ctrl-C; what is done stays done.
        TrainingError: a process was killed.
    """
    if workers < 1:
        raise ConfigError(f"jobs: expected >= 1, got {workers}")
    todo = {job.key: job for job in jobs}
    outcomes = {key: outcome for key, job in todo.items() if (outcome := finished(job)) is not None}
    open_jobs = [job for key, job in todo.items() if key not in outcomes]
    with tqdm(total=len(todo), initial=len(outcomes), unit="run", disable=not progress) as bar:
        for job, outcome in _in_processes(open_jobs, min(workers, len(open_jobs))):
            outcomes[job.key] = outcome
            bar.set_postfix_str(job.folder.name, refresh=False)
            bar.update()
    return outcomes


def _in_processes(jobs: list[Job], workers: int) -> Iterator[tuple[Job, Outcome]]:
    """Pairs in the order in which the jobs end."""
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads in an undefined state
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    waiting = iter(jobs)
    try:  # no more is submitted than can run, since what waits inside the pool could not be called back
        running = {pool.submit(_execute, job): job for job in islice(waiting, workers)}
        while running:
            for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                job, outcome = running.pop(future), future.result()
                running |= {pool.submit(_execute, each): each for each in islice(waiting, 1)}
                yield job, outcome
    except BrokenProcessPool as error:
        raise TrainingError(
            "a training process ended without a word (killed, or out of memory); the runs that are done are kept: "
            "give the same command again, with fewer --jobs if memory is short"
        ) from error
    finally:  # on an error or Ctrl-C, what still runs saves where it stands
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # of dead towers: the report says it, the bar stays whole
    os.setpgid(0, 0)  # Ctrl-C is for the parent, which passes it on, once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _execute(job: Job) -> Outcome:
    """Within a run, and only there, the parent's signal stops the process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return execute(job)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    """A run must not go on when nobody waits for it: started again, it would be trained twice into one folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # workers are spawned
    wait([parent.sentinel])
    os._exit(1)
