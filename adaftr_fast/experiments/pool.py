"""Runs jobs in parallel processes with one thread each, so that the number of processes changes no bit."""

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
    """Runs the unfinished jobs, each distinct job once.

    Args:
        jobs: the jobs.
        workers: the number of parallel processes, each on one thread.
        progress: shows a progress bar over the jobs.

    Returns:
        The outcome of every job by its key.

    Raises:
        KeyboardInterrupt: Ctrl-C interrupted the jobs; finished ones remain finished.
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
    """Yields jobs and outcomes in the order in which the jobs end."""
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads in an undefined state
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    waiting = iter(jobs)
    try:  # submits only as many jobs as run, because the pool cannot cancel queued ones
        running = {pool.submit(_execute, job): job for job in islice(waiting, workers)}
        while running:
            for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                job, outcome = running.pop(future), future.result()
                running |= {pool.submit(_execute, each): each for each in islice(waiting, 1)}
                yield job, outcome
    except BrokenProcessPool as error:
        raise TrainingError(
            "a training process was killed, perhaps for lack of memory; finished runs are kept: run the same command "
            "again, with fewer --jobs if memory is short"
        ) from error
    finally:  # on an error or Ctrl-C, the running jobs save snapshots
        for child in multiprocessing.active_children():
            if child.pid is not None:  # started
                os.kill(child.pid, signal.SIGINT)
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # of dead towers, which the report names
    os.setpgid(0, 0)  # only the parent receives Ctrl-C, and forwards it once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _execute(job: Job) -> Outcome:
    """Executes a job; the parent's signal interrupts only the job."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return execute(job)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    """Exits when the parent ends. Otherwise a restarted experiment would train a second process in the same folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # workers are spawned
    wait([parent.sentinel])
    os._exit(1)
