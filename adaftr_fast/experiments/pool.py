"""Runs jobs on an engine with one thread each, so that neither engine nor number of parallel jobs changes a bit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from tqdm import tqdm

from adaftr_fast.engines.engine import Engine, on_one_thread
from adaftr_fast.experiments.jobs import Job, Outcome, execute, finished


def run_all(jobs: Sequence[Job], *, engine: Engine, progress: bool) -> dict[str, Outcome]:
    """Runs the unfinished jobs, each distinct job once.

    Args:
        jobs: the jobs.
        engine: the engine, such as ``Processes``.
        progress: shows a progress bar over the jobs.

    Returns:
        The outcome of every job by its key.

    Raises:
        KeyboardInterrupt: Ctrl-C interrupted the jobs, which save snapshots; finished ones remain finished.
        EngineError: a process was killed, or the cluster fails.
    """
    todo = {job.key: job for job in jobs}
    outcomes = {key: outcome for key, job in todo.items() if (outcome := finished(job)) is not None}
    open_jobs = [job for key, job in todo.items() if key not in outcomes]
    with tqdm(total=len(todo), initial=len(outcomes), unit="run", disable=not progress) as bar:

        def done(index: int, outcome: Outcome) -> None:
            outcomes[outcome.key] = outcome
            bar.set_postfix_str(open_jobs[index].folder.name, refresh=False)
            bar.update()

        engine.map(on_one_thread(_run), open_jobs, done=done)
    return outcomes


def _run(job: Job) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of dead towers, which the report names
        return execute(job)
