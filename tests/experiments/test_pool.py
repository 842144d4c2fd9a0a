import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from adaftr_fast.engines.processes import Processes
from adaftr_fast.experiments.catalog import Variant
from adaftr_fast.experiments.jobs import RESULT, execute, plan
from adaftr_fast.experiments.pool import run_all


@pytest.fixture
def jobs(data, budget, tmp_path):
    names = ("shared_bottom", "mmoe", "adaftr")
    return [plan(data, Variant(name, {"name": name}), budget, 0, tmp_path / "runs") for name in names]


def test_processes_give_the_same_bits_as_one_thread(jobs, data, budget, tmp_path):
    outcomes = run_all([*jobs, jobs[0]], engine=Processes(2), progress=False)
    assert sorted(outcomes) == sorted(job.key for job in jobs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: some libraries' matrix products depend on it
    try:
        here = execute(plan(data, Variant("adaftr", {"name": "adaftr"}), budget, 0, tmp_path / "here"))
    finally:
        torch.set_num_threads(threads)
    assert outcomes[jobs[2].key].test == here.test


def test_finished_jobs_are_not_repeated(jobs, capfd):
    done = [execute(job) for job in jobs[:2]]
    times = [(job.folder / RESULT).stat().st_mtime_ns for job in jobs[:2]]
    outcomes = run_all(jobs[:2], engine=Processes(1), progress=True)  # starts no process
    assert [outcomes[job.key] for job in jobs[:2]] == done
    assert [(job.folder / RESULT).stat().st_mtime_ns for job in jobs[:2]] == times
    assert "2/2" in capfd.readouterr().err


def test_an_error_of_a_job_is_raised(jobs, data):
    jobs[0].config.data.folder = str(data.folder / "nothing")
    with pytest.raises(Exception, match="not a prepared folder"):
        run_all(jobs[:1], engine=Processes(1), progress=False)


def test_zero_processes_raise():
    with pytest.raises(ValueError, match="jobs: expected >= 1, got 0"):
        Processes(0)


SCRIPT = """
from pathlib import Path
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.engines.processes import Processes
from adaftr_fast.experiments.study import compare
from adaftr_fast.config import RunConfig, TrainingConfig

if __name__ == "__main__":
    training = TrainingConfig(batch_size=50, max_epochs=30, patience=30, progress=False)
    budget = RunConfig(training=training)
    compare("table6", PreparedData({data!r}), budget, seeds=1, engine=Processes(2), folder=Path({root!r}).parent)
    print("all done")
"""


def test_an_interrupted_experiment_resumes(folder, tmp_path):
    script, root = tmp_path / "script.py", tmp_path / "runs"
    script.write_text(SCRIPT.format(data=str(folder), root=str(root)))
    marked = os.environ | {"STARTED_BY": str(script)}  # identifies its child processes
    kept = {}
    for how in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, script], stderr=subprocess.DEVNULL, env=marked, preexec_fn=hear_interrupts
        )
        before = kept
        wait_for(lambda before=before: len(results(root)) > len(before))
        process.send_signal(how)
        assert process.wait(600) != 0
        wait_for(lambda: not workers_of(script))  # all workers have exited
        kept = results(root)
        assert before.items() <= kept.items()  # no job was repeated
        assert len(kept) < 6
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "all done\n"
    assert len(results(root)) == 6
    assert kept.items() <= results(root).items()


def hear_interrupts():
    """Restores the default handling of Ctrl-C, which a shell disables in background jobs and their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def results(root):
    """Returns when each result was written."""
    return {path: path.stat().st_mtime_ns for path in root.glob(f"*/{RESULT}")}


def workers_of(script):
    """Returns the command lines of the script's child processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment, line = (path / "environ").read_bytes(), (path / "cmdline").read_text()
        except OSError:
            continue
        if f"STARTED_BY={script}".encode() in environment:
            lines.append(line)
    return lines


def wait_for(condition, seconds=600):  # an upper bound that only broken code reaches
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value
