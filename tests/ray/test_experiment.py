"""Experiments on a Ray cluster: the bits of one process, a killed node, Ctrl-C and relative
paths.
"""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="make test-ray installs it")

from adaftr_fast._locks import LOCK
from adaftr_fast.cli import main
from adaftr_fast.config import RunConfig, TrainingConfig
from adaftr_fast.engines import Ray
from adaftr_fast.experiments.catalog import Variant
from adaftr_fast.experiments.jobs import RESULT, execute, plan, run_all
from tests.experiments import conftest as small
from tests.ops.marks import on_threads
from tests.ray.cluster import soon

folder, data, config = small.folder, small.data, small.config  # fixtures

BUDGET = RunConfig(
    training=TrainingConfig(batch_size=50, max_epochs=16, patience=16, progress=False)
)
DIVERGES = replace(BUDGET, optimizer=replace(BUDGET.optimizer, lr=1e30))
GRACE = 300  # seconds: the jobs end long before
ENGINE = Ray(cpus=1, grace=GRACE)


@pytest.fixture
def jobs(data):
    """Returns a function that plans four jobs in a folder, the last of which diverges."""

    def jobs(root):
        rows = [("shared_bottom", BUDGET), ("mmoe", BUDGET), ("adaftr", BUDGET), ("mmoe", DIVERGES)]
        return [plan(data, Variant(name, {"name": name}), budget, 0, root) for name, budget in rows]

    return jobs


def here(jobs):
    """Executes jobs in this process."""
    with on_threads(1):
        return {job.key: execute(job) for job in jobs}


def same(outcomes, others):
    """Returns whether outcomes are equal but for the time that they took."""
    return {key: replace(each, seconds=0) for key, each in outcomes.items()} == {
        key: replace(each, seconds=0) for key, each in others.items()
    }


def records(job):
    """Returns the lines of metrics.jsonl, whose times tell one training from another."""
    path = job.folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_interrupted_jobs_and_one_of_a_killed_node_resume(nodes, jobs, tmp_path):
    """Results are those of one process."""
    todo = jobs(tmp_path / "ray")
    at = []
    victims = []

    def interrupt(_):
        at.append(time.time())
        os.kill(os.getpid(), signal.SIGINT)

    def begun():
        return (todo[3].folder / RESULT).exists() and any(map(records, todo[:3]))

    with soon(interrupt, begun), pytest.raises(KeyboardInterrupt):
        run_all([todo[3], *todo[:3]], engine=ENGINE, progress=False)
    assert time.time() - at[0] < GRACE / 2
    assert not list(tmp_path.glob(f"ray/*/{LOCK}"))  # the jobs have ended
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"ray/*/{RESULT}")}
    open_jobs = [job for job in todo if records(job) and job.folder / RESULT not in done]
    assert open_jobs
    before = {job.key: records(job) for job in open_jobs}
    for job in open_jobs:
        assert max(path.stat().st_mtime for path in (job.folder / "last").iterdir()) > at[0]

    def kill(job):
        """Kills the node whose worker holds the lock of a job."""
        before[job.key] = records(job)
        worker = json.loads((job.folder / LOCK).read_text())["pid"]
        status = (Path("/proc") / str(worker) / "stat").read_text()
        raylet = int(status.rsplit(")", 1)[1].split()[1])
        (node,) = [
            each for each in nodes.nodes if each.all_processes["raylet"][0].process.pid == raylet
        ]
        victims.append(job)
        nodes.kill(node.node_id)

    def goes_on(job):
        return len(before[job.key]) < len(records(job)) < BUDGET.training.max_epochs - 1

    with soon(kill, lambda: next(filter(goes_on, open_jobs), None)):
        outcomes = run_all(todo, engine=ENGINE, progress=False)
    assert len(victims) == 1
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for job in open_jobs:  # these epochs were not trained again
        assert records(job)[: len(before[job.key])] == before[job.key]
    assert same(outcomes, here(jobs(tmp_path / "here")))
    assert "not finite" in outcomes[todo[3].key].error
    assert sum(outcome.error is None for outcome in outcomes.values()) == 3
    assert not list(tmp_path.glob(f"ray/*/{LOCK}"))


def test_the_command_takes_relative_paths(nodes, folder, config, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command = (
        f"experiment fig3 --dataset {os.path.relpath(folder)} --config {config.name} --seeds 1"
    )
    assert main(f"{command} --out out --engine ray --address {nodes.address}".split()) == 0
    assert len(list(tmp_path.glob(f"out/tiny/runs/*/{RESULT}"))) == 2
    assert "| layer 1 |" in capfd.readouterr().out
