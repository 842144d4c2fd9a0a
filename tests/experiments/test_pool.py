import json
import signal
from pathlib import Path

import pytest

from adaftr_fast.config import ModelConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.engines import Local, Processes
from adaftr_fast.experiments.jobs import RESULT
from adaftr_fast.experiments.study import Study
from tests.forks import Script, wait_for


def test_zero_processes_raise():
    with pytest.raises(ValueError, match="jobs: expected >= 1, got 0"):
        Processes(0)


SCRIPT = """
import signal, sys
from pathlib import Path
from adaftr_fast.engines import Processes
from tests.experiments.test_pool import study

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell disables Ctrl-C in background jobs
study(Path(sys.argv[1]), Path(sys.argv[2]), Processes(int(sys.argv[3])))
"""


def study(data, out, engine):
    model = ModelConfig(
        embedding_dim=4, expert_hidden=[8], tower_hidden=[8, 4], relatedness_hidden=[4]
    )
    training = TrainingConfig(batch_size=100, max_epochs=8, patience=8, progress=False)
    config = RunConfig(model=model, training=training)
    Study(PreparedData(data), config, 1, engine, out).compare("table6")


def test_an_interrupted_experiment_resumes(folder, tmp_path):
    kept = {}
    for how, count in ((signal.SIGKILL, 1), (signal.SIGINT, 2)):
        # identifies its child processes
        script = Script(SCRIPT, folder, tmp_path, count, STARTED_BY=tmp_path)
        before = kept
        wait_for(lambda before=before: len(results(tmp_path)) > len(before))
        assert workers_of(tmp_path)
        script.send_signal(how)
        script.communicate(600)
        assert script.returncode != 0
        wait_for(lambda: not workers_of(tmp_path))  # all workers have exited
        kept = results(tmp_path)
        assert before.items() <= kept.items()  # no job was repeated
        assert len(kept) < 6
    study(folder, tmp_path, Local())
    assert len(results(tmp_path)) == 6
    assert kept.items() <= results(tmp_path).items()
    study(folder, tmp_path / "here", Local())  # a process gives the same bits
    assert scores(tmp_path / "here") == scores(tmp_path)


def results(folder):
    """Returns when each result was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob(f"runs/*/{RESULT}")}


def scores(folder):
    """Returns the metrics of each run on the test split."""
    paths = folder.glob(f"runs/*/{RESULT}")
    return {path.parent.name: json.loads(path.read_text())["test"] for path in paths}


def workers_of(starter):
    """Returns the command lines of the child processes of the script that got this variable."""
    lines = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
            line = (path / "cmdline").read_text()
        except OSError:
            continue
        if f"STARTED_BY={starter}".encode() in environment:
            lines.append(line)
    return lines
